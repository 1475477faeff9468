"""Every chapter runs by itself, and the book is built of them without a warning."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from repro import book, cli

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = book.chapters(ROOT)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(autouse=True)
def one_store(own_folders, results, monkeypatch):
    """What the first test trains, the second one reads."""
    monkeypatch.setenv("REPRO_RESULTS", str(results))


@pytest.mark.slow
def test_every_chapter_runs_alone_under_nbmake_at_smoke(tmp_path):
    for chapter in CHAPTERS:
        notebook = parameterize_notebook(load_notebook_node(str(chapter)), {"profile": "smoke"})
        nbformat.write(notebook, tmp_path / chapter.name)
    command = ["pytest", "--nbmake", "--nbmake-timeout=300", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(CHAPTERS)} passed" in done.stdout


@pytest.mark.slow
def test_the_book_is_built_at_smoke_without_a_warning(tmp_path, capfd):
    with pytest.raises(SystemExit) as end:
        cli.main(["book", "--profile", "smoke", "--out", str(tmp_path)])
    assert end.value.code == 0, capfd.readouterr().out
    pages = tmp_path / "_build" / "html"
    assert (pages / "index.html").exists()
    for chapter in CHAPTERS:
        page = (pages / "book" / "chapters" / f"{chapter.stem}.html").read_text()
        assert page.count("<figure") >= 1 and 'alt=""' not in page
        assert str(tmp_path) not in page and "Traceback" not in page
