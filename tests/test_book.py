"""The book: execution that keeps going, pages that are never stale, chapters that keep the house rules."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.store import write
from repro import profiles
from repro.book import execution, rendering
from repro.config import InputError
from repro.questions.warm_start import warm_start
from repro.store.records import Store

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = rendering.chapters(ROOT)
TOOLS = all(importlib.util.find_spec(m) for m in ("papermill", "nbformat", "jupyter_book"))
needs_tools = pytest.mark.skipif(not TOOLS, reason='needs pip install "repro[book]"')


def write_notebook(path: Path, *cells: tuple) -> None:
    """A notebook of (kind, source, tags...) cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "cells": [
            {"cell_type": kind, "id": f"cell-{i}", "metadata": {"tags": list(tags)}, "source": source}
            | ({"execution_count": None, "outputs": []} if kind == "code" else {})
            for i, (kind, source, *tags) in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(data))


def write_chapter(root: Path, name: str, code: str, text: str = "") -> None:
    write_notebook(
        root / "book" / "chapters" / f"{name}.ipynb",
        ("markdown", f"# Chapter {name}"),
        ("code", 'profile = "smoke"\nshift = 0.0', "parameters"),
        ("code", f"from myst_nb import glue\n{code}"),
        ("markdown", text or "The value is {glue:text}`value`."),
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A book with this project's configuration and three chapters, the second of which raises."""
    root = tmp_path / "tiny"
    for folder in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / folder, root / "book" / folder)
    shutil.copy(ROOT / "_config.yml", root)
    shutil.copy(ROOT / "book" / "references.bib", root / "book")
    (root / "book" / "index.md").write_text(
        "# Tiny\n\nSee {cite:t}`ash2020warm`.\n\n```{bibliography}\n```\n"
    )
    (root / "repro" / "room").mkdir(parents=True)
    (root / "repro" / "room" / "shown.py").write_text("def shown():\n    return 'literally included'\n")
    names = ("01_one", "02_two", "03_three")
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n"
        + "".join(f"  - file: book/chapters/{name}\n" for name in names)
    )
    write_chapter(
        root,
        "01_one",
        "glue('value', f'{41 + 1 + shift:.3f}', display=False)",
        "The value is {glue:text}`value`, $x$ of {eq}`square`.\n\n$$\nx^2\n$$ (square)\n\n"
        "```{literalinclude} /repro/room/shown.py\n:pyobject: shown\n```",
    )
    write_chapter(root, "02_two", "raise ValueError('no luck\\nat all')")
    write_chapter(root, "03_three", "glue('value', profile, display=False)")
    return root


def page(out: Path, name: str) -> str:
    return (out / "_build" / "html" / "book" / "chapters" / f"{name}.html").read_text()


@needs_tools
@pytest.mark.slow
def test_a_failing_chapter_stops_neither_the_others_nor_the_pages(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BOOK_URL", "https://example.org/book")
    monkeypatch.setenv("BOOK_REPOSITORY", "https://github.com/owner/name")
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    assert execution.make_book("quick", parameters={"shift": 1e-3}, out=out, root=tiny) == 1

    table = capsys.readouterr().out
    assert re.search(r"02_two.*failed.*ValueError: no luck", table)
    assert re.search(r"01_one.*passed", table)
    assert "pages without results: 02_two" in table
    assert "42.001" in page(out, "01_one")
    assert "literally included" in page(out, "01_one")
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in page(out, "01_one")
    assert not re.search(
        r"mathjax\.js|mathjax@|require\.js|unpkg|jsdelivr", page(out, "01_one"), re.IGNORECASE
    )
    assert "quick" in page(out, "03_three")
    assert "has no results in this build" in page(out, "02_two")
    assert sorted(path.name for path in (out / "_build" / "executed").glob("*.ipynb")) == [
        "01_one.ipynb",
        "02_two.failed.ipynb",
        "03_three.ipynb",
    ]
    assert {path: path.read_bytes() for path in tiny.rglob("*") if path.is_file()} == before
    source = (out / "_build" / "html" / "_sources" / "book" / "chapters" / "01_one.ipynb").read_text()
    assert str(tmp_path) not in source
    # Published: a sitemap, a card for links, buttons that open the chapter of the repository.
    sitemap = (out / "_build" / "html" / "sitemap.xml").read_text()
    assert "<loc>https://example.org/book/book/chapters/01_one.html</loc>" in sitemap
    assert 'property="og:url" content="https://example.org/book/book/chapters/01_one.html"' in page(
        out, "01_one"
    )
    assert 'property="og:description" content="The value is 42.001, x of (1)."' in page(out, "01_one")
    assert "mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/book/chapters/01_one.ipynb" in page(
        out, "01_one"
    )
    assert "colab.research.google.com/github/owner/name/blob/main/book/chapters/01_one" in page(out, "01_one")


@needs_tools
@pytest.mark.slow
def test_a_batch_goes_on_after_a_failure_and_the_next_begins_with_what_is_missing(
    tiny, tmp_path, monkeypatch, capsys
):
    """The pages are left out: others tests render them."""
    monkeypatch.setattr(rendering, "build", lambda stage, out: out / "index.html")
    luck, out = tmp_path / "luck", tmp_path / "out"
    for path in rendering.chapters(tiny):
        path.unlink()
    for i in range(5):
        condition = (
            f"import pathlib; assert pathlib.Path({str(luck)!r}).exists(), 'no luck'" if i == 2 else ""
        )
        write_chapter(tiny, f"{i:02}_chapter", condition)
    assert execution.make_book("smoke", out=out, root=tiny) == 1
    rows = re.findall(r"(\d\d)_chapter +│ (\S+) +│ (\w+) +│ (.*?) *│", capsys.readouterr().out)
    assert [row[2] for row in rows] == ["passed"] * 2 + ["failed"] + ["passed"] * 2
    assert rows[2][0] == "02" and rows[2][3] == "AssertionError: no luck"
    assert all(float(row[1]) > 0 for row in rows)
    kept = json.loads((out / "_build" / "executed" / "00_chapter.ipynb").read_text())
    assert kept["metadata"]["papermill"]["parameters"] == {"profile": "smoke"}

    luck.touch()
    assert execution.make_book("smoke", out=out, root=tiny) == 0
    rows = re.findall(r"(\d\d)_chapter +│ (\S+) +│ (\w+)", capsys.readouterr().out)
    assert [row[2] for row in rows] == ["kept"] * 2 + ["passed"] + ["kept"] * 2


@needs_tools
@pytest.mark.slow
def test_a_book_in_which_nothing_changed_is_there_without_its_tools(tiny, tmp_path):
    """The records beside a chapter are those that it was executed with, and cost no time again."""
    for path in rendering.chapters(tiny):
        path.unlink()
    (tiny / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n  - file: book/chapters/01_warm_start\n"
    )
    write_chapter(tiny, "01_warm_start", "glue('value', 1, display=False)")
    code = (
        "import sys\nfrom pathlib import Path\nfrom repro.book import execution\n"
        "root, out = map(Path, sys.argv[1:3])\nif sys.argv[3:]: execution.rendering.build = print\n"
        "assert not execution.make_book('smoke', root=root, out=out)\n"
        "print(*{'pandas', 'scipy', 'nbformat', 'papermill'} & set(sys.modules), file=sys.stderr)"
    )
    call = [sys.executable, "-W", "error", "-c", code, str(tiny), str(tmp_path)]
    first, again = (subprocess.run(call, cwd=ROOT, capture_output=True, text=True) for _ in range(2))
    assert "passed" in first.stdout and "kept" in again.stdout and again.stderr.split() == []
    csv = tmp_path / "_build" / "stage" / "book" / "_static" / "records" / "01_warm_start.runs.csv"
    assert len(csv.read_text().splitlines()) == 1  # names of columns alone

    write(Store.of("smoke"), warm_start(profiles.profile("smoke"))[0].run)
    rendering.assemble(tiny, tmp_path / "_build" / "executed", csv.parents[3], {"profile": "smoke"})
    assert len(csv.read_text().splitlines()) == 1
    call.append("without pages, which other tests render")
    assert "passed" in subprocess.run(call, cwd=ROOT, capture_output=True, text=True).stdout
    assert len(csv.read_text().splitlines()) == 3  # the run serves two studies


@needs_tools
@pytest.mark.slow
def test_a_kernel_that_lost_its_ports_to_another_is_started_again(tiny, tmp_path, monkeypatch):
    """Seen where two kernels were started at the same time, once in some hundreds of starts."""
    real, losses = execution._papermill, {"01_one": 2, "03_three": 9}

    def unlucky(call, *rest):
        name = Path(call["input_path"]).stem
        losses[name] -= 1
        return (1, ["Traceback", execution.NO_KERNEL]) if losses[name] >= 0 else real(call, *rest)

    monkeypatch.setattr(execution, "_papermill", unlucky)
    one, three = (path for path in rendering.chapters(tiny) if path.stem != "02_two")
    results = execution.execute([one, three], {}, tmp_path / "executed")
    assert [result.error for result in results] == [None, execution.NO_KERNEL]
    assert losses == {"01_one": -1, "03_three": 9 - execution.TRIES}


@needs_tools
@pytest.mark.slow
def test_pages_follow_outputs_sources_and_parameters(tiny, tmp_path):
    out, parameters = tmp_path / "out", {"profile": "smoke"}
    executed, stage = out / "_build" / "executed", out / "_build" / "stage"
    write_chapter(tiny, "02_two", "glue('value', 2, display=False)")
    results = execution.execute(rendering.chapters(tiny), parameters, executed)
    assert [result.status for result in results] == ["passed"] * 3

    assert rendering.assemble(tiny, executed, stage, parameters) == []
    index = rendering.build(stage, out)
    assert index == out / "_build" / "html" / "index.html"
    rendered = index.stat().st_mtime_ns
    assert "42.000" in page(out, "01_one")
    rendering.assemble(tiny, executed, stage, parameters)
    rendering.build(stage, out)
    assert index.stat().st_mtime_ns == rendered, "nothing changed, yet the pages were rendered again"

    notebook = executed / "01_one.ipynb"
    notebook.write_text(notebook.read_text().replace("42.000", "43.000"))
    assert rendering.assemble(tiny, executed, stage, parameters) == []
    rendering.build(stage, out)
    assert "43.000" in page(out, "01_one")

    assert len(rendering.assemble(tiny, executed, stage, {"profile": "quick"})) == 3
    write_chapter(tiny, "03_three", "glue('value', 'edited', display=False)")
    assert rendering.assemble(tiny, executed, stage, parameters) == ["03_three"]


@needs_tools
@pytest.mark.slow
def test_warnings_fail_the_build_and_are_named(tiny, tmp_path):
    for name in ("01_one", "02_two", "03_three"):
        (tiny / "book" / "chapters" / f"{name}.ipynb").unlink()
    (tiny / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n  - file: book/chapters/01_one\n"
    )
    write_chapter(tiny, "01_one", "", "{glue:text}`missing` {cite}`nobody1999`")
    executed, stage = tmp_path / "executed", tmp_path / "stage"
    executed.mkdir()
    source = tiny / "book" / "chapters" / "01_one.ipynb"
    notebook = json.loads(source.read_text())
    notebook["metadata"]["papermill"] = {"parameters": {}}  # as if executed
    notebook["cells"][2]["outputs"] = [
        {
            "output_type": "display_data",
            "data": {"text/plain": "1"},
            "metadata": {"scrapbook": {"mime_prefix": "", "name": "value"}},
        }
    ]
    (executed / "01_one.ipynb").write_text(json.dumps(notebook))
    assert rendering.assemble(tiny, executed, stage, {}) == []
    with pytest.raises(rendering.BuildError) as refused:
        rendering.build(stage, tmp_path)
    assert "No key 'missing'" in str(refused.value) and "nobody1999" in str(refused.value)
    with pytest.raises(rendering.BuildError):  # a second build must not pass either
        rendering.build(stage, tmp_path)


@needs_tools
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"parameters": {"shfit": 1}}, r"unknown parameter 'shfit' of 01_one: choose from profile, shift"),
        ({"chapters": ["four"]}, r"unknown chapter 'four': choose from one, two, three"),
        ({"jobs": 0}, r"jobs must be at least 1"),
    ],
)
def test_a_bad_request_is_refused_before_anything_runs(tiny, tmp_path, request_, message):
    with pytest.raises(InputError, match=message) as refused:
        execution.make_book("smoke", out=tmp_path / "out", root=tiny, **request_)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@needs_tools
def test_pdfs_without_a_browser_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="no Chromium here to make PDFs with"):
        execution.make_book("smoke", out=tmp_path / "out", root=tiny, pdf=True)
    assert not (tmp_path / "out").exists()


def test_chapters_are_named_with_or_without_their_number(tiny):
    names = [path.stem for path in execution.select(tiny, ["three", "01_one", "one"])]
    assert names == ["01_one", "03_three"]
    assert execution.select(tiny, None) == rendering.chapters(tiny)


def test_without_the_tools_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['papermill', 'nbformat', 'jupyter_book']))\n"
        "from repro.book import execution\n"
        "assert 'torch' not in sys.modules\n"
        "try: execution.make_book('smoke')\n"
        "except execution.InputError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stdout == 'papermill, nbformat, jupyter_book not installed: pip install "repro[book]"\n'


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text())["cells"]
    return [cell | {"text": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(is_plain(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_source_has_no_outputs(path):
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert "widgets" not in json.loads(path.read_text())["metadata"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_has_one_parameters_cell_of_plain_values(path):
    tagged = [c for c in code_cells(path) if "parameters" in c["metadata"].get("tags", ())]
    assert len(tagged) == 1
    statements = ast.parse(tagged[0]["text"]).body
    assert 1 <= len(statements) <= 6
    for statement in statements:
        assert isinstance(statement, ast.Assign)
        assert is_plain(ast.literal_eval(statement.value))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_short_calls(path):
    banned = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While)
    for cell in code_cells(path):
        assert 1 <= len([line for line in cell["text"].splitlines() if line.strip()]) <= 6, cell["text"]
        assert not [n for n in ast.walk(ast.parse(cell["text"])) if isinstance(n, banned)], cell["text"]


def test_contents_list_exactly_the_chapters():
    listed = re.findall(r"file: book/chapters/(\S+)", (ROOT / "_toc.yml").read_text())
    assert sorted(listed) == [path.stem for path in CHAPTERS]


def test_every_citation_is_in_the_bibliography():
    keys = set(re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE))
    texts = [path.read_text() for path in (ROOT / "book").rglob("*.md")]
    texts += ["".join(c["source"]) for path in CHAPTERS for c in json.loads(path.read_text())["cells"]]
    cited = {
        key.strip()
        for text in texts
        for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
        for key in group.split(",")
    }
    assert cited
    assert cited <= keys
