"""Every chapter runs by itself, and the book is built of them without a warning."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from repro.book import rendering

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = rendering.chapters(ROOT)


@pytest.mark.slow
def test_every_chapter_runs_alone_under_nbmake_at_smoke(tmp_path, smoke_results, monkeypatch):
    monkeypatch.setenv("REPRO_RESULTS", str(smoke_results))
    for chapter in CHAPTERS:
        notebook = parameterize_notebook(load_notebook_node(str(chapter)), {"profile": "smoke"})
        nbformat.write(notebook, tmp_path / chapter.name)
    command = ["pytest", "--nbmake", "--nbmake-timeout=300", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(CHAPTERS)} passed" in done.stdout


@pytest.mark.slow
def test_the_book_is_built_at_smoke_without_a_warning(smoke_book):
    assert (smoke_book / "index.html").exists()
    for chapter in CHAPTERS:
        page = (smoke_book / "book" / "chapters" / f"{chapter.stem}.html").read_text()
        assert page.count("<figure") >= 1 and 'alt=""' not in page
        assert str(smoke_book.parents[1]) not in page and "Traceback" not in page


@pytest.mark.slow
def test_an_executed_chapter_shows_its_figures_wherever_it_is_opened(smoke_book):
    """As nbconvert shows it: as many pictures as the page has, their captions, and no raw role of MyST."""
    for chapter in CHAPTERS:
        executed = smoke_book.parent / "executed" / chapter.name
        alone, _ = HTMLExporter().from_filename(str(executed))
        page = (smoke_book / "book" / "chapters" / f"{chapter.stem}.html").read_text()
        pictures = alone.count('src="data:image/svg+xml')
        assert pictures == page.count("<figure") and pictures == alone.count("<em>Figure.</em>"), chapter
        text = re.sub(r"<(script|style)\b.*?</\1>", "", alone, flags=re.DOTALL)
        assert not re.search(r"\{[\w:-]+\}`|```\{|papermill\.record", text), chapter


@pytest.mark.slow
def test_code_that_a_page_shows_can_be_read_without_scrolling(smoke_book):
    """Lines of 87 characters fit beside the contents in a window of 1,280 pixels."""
    for chapter in CHAPTERS:
        executed = json.loads((smoke_book.parent / "executed" / chapter.name).read_text())
        shown = []
        for cell in executed["cells"]:
            if cell["cell_type"] == "code":
                shown.append("".join(cell["source"]))
                for output in cell["outputs"]:
                    texts = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
                    listing = texts.get("text/markdown", "")
                    shown += [listing] if "```" in listing else [texts["text/plain"]] * (len(texts) == 1)
        long = [line for text in shown for line in text.splitlines() if len(line) > 87]
        assert not long, chapter


@pytest.mark.parametrize("profile", ["quick", "paper"])
@pytest.mark.parametrize("chapter", CHAPTERS[1:], ids=lambda path: path.stem)
def test_a_chapter_of_a_scale_without_records_runs_to_its_end(chapter, profile):
    """A scale need not plan all studies either; the first chapter always trains its own."""
    known = {}
    for cell in nbformat.read(chapter, as_version=4).cells:
        if cell.cell_type == "code":
            code = ast.parse(cell.source)
            shown = code.body.pop() if isinstance(code.body[-1], ast.Expr) else None
            exec(compile(code, chapter.name, "exec"), known)
            if shown:
                value = eval(compile(ast.Expression(shown.value), chapter.name, "eval"), known)
                assert getattr(value, "_repr_html_", str)() is not None
            if "parameters" in cell.metadata.get("tags", ()):
                known |= {"profile": profile, "device": "none"}
