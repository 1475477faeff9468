"""The pages of the book, rendered from executed chapters and the other sources.

Jupyter Book renders the stage, `_build/stage`: a copy of the sources in which
executed chapters replace the originals. A chapter has results only if its present
source was executed with the present parameters. An unchanged stage is not rendered
again.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from repro import scorecard
from repro.analysis import recorded
from repro.figures.shown import MARK
from repro.lazy import Lazy
from repro.profiles import scale
from repro.questions import studies
from repro.scales import PUBLISHED

pd = Lazy("pandas")  # half a second to import, needed only for the CSV of a newly executed chapter
SCORECARD = "10_scorecard"  # the chapter whose tables cover all studies
# All files are written when `main` returns: `_exit` saves the time of taking the interpreter down.
JUPYTER_BOOK = "import os; from jupyter_book.cli.main import main; main(standalone_mode=False); os._exit(0)"
IN_UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}  # for tools' files and output in any locale
RENDERERS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "sphinxcontrib-bibtex")

LAUNCH = {  # where readers can run a chapter of a public repository
    "notebook_interface": "jupyterlab",
    "binderhub_url": "https://mybinder.org",
    "colab_url": "https://colab.research.google.com",
}

NOT_RUN = """
```{warning}
This chapter has no results in this build: it was not among the chapters to execute, or its execution failed.
```
"""


class BuildError(RuntimeError):
    """Rendering or printing failed; the message holds Jupyter Book's first warnings or Chromium's error."""


def chapters(root: Path) -> list[Path]:
    """The notebooks of all chapters, in the order of their numbers."""
    return sorted((root / "book" / "chapters").glob("*.ipynb"))


def read(path: Path) -> dict:
    """A notebook as JSON, without nbformat, which takes longer to import than all chapters to read."""
    return json.loads(path.read_bytes())


def source_of(cell: dict) -> str:
    return "".join(cell["source"])  # stored as a string or as a list of lines


def executed_page(source: Path, executed: Path, parameters: dict) -> dict | None:
    """The executed notebook to render, without traces of machine and time.

    None if there is none, or if it was executed from another source or with other parameters.
    """
    if not executed.exists():
        return None
    page, now = read(executed), read(source)
    own = [cell for cell in page["cells"] if "injected-parameters" not in cell["metadata"].get("tags", ())]
    used = page["metadata"].get("papermill", {}).get("parameters")
    sources, known = ([source_of(cell) for cell in cells] for cells in (own, now["cells"]))
    if sources != known or used != json.loads(json.dumps(parameters)):
        return None
    page["metadata"].pop("papermill", None)
    page["metadata"].pop("widgets", None)  # an explorer has its own HTML; these would load a widget manager
    for cell in page["cells"]:
        for volatile in ("papermill", "execution"):
            cell["metadata"].pop(volatile, None)
        _number_figures(cell, source.stem)
    return page


def _number_figures(cell: dict, chapter: str) -> None:
    """Let Jupyter Book number the figure of a cell: the caption moves to the cell's metadata."""
    outputs = cell.get("outputs", [])
    told = [output.get("metadata", {}).get(MARK) for output in outputs]
    for figure in filter(None, told):
        shown = {"name": f"{figure['name']}-{chapter}", "caption": figure["caption"]}
        cell["metadata"]["mystnb"] = {"figure": shown, "image": {"alt": figure["alt"]}}
    cell["outputs"] = [output for output, mark in zip(outputs, told, strict=True) if mark != {}]


def assemble(root: Path, executed: Path, stage: Path, parameters: dict, pdf: bool = False) -> list[str]:
    """Replace `stage` by the sources to render; return the names of the chapters without results.

    A chapter has results if its present source was executed with `parameters`.
    Its tables are added as CSV, and its first PNG figure, if any, as a file.
    """
    import yaml  # installed only with the tools for the book

    config = with_addresses(yaml.safe_load((root / "_config.yml").read_bytes()))
    config.setdefault("execute", {})["execute_notebooks"] = "off"
    config["sphinx"]["config"]["book_pdf"] = pdf
    files = {"_config.yml": yaml.safe_dump(config).encode(), "_toc.yml": (root / "_toc.yml").read_bytes()}
    sources = chapters(root)
    shown = [p for p in (root / "book").rglob("*") if p.is_file() and p not in sources]
    for path in [*shown, *(root / "repro").rglob("*.py")]:  # the package, for literalinclude
        files[path.relative_to(root).as_posix()] = path.read_bytes()
    without = []
    for source in sources:
        name = f"book/chapters/{source.stem}"
        page = executed_page(source, executed / source.name, parameters)
        if page:
            text = json.dumps(page, ensure_ascii=False, indent=1, sort_keys=True)  # as Jupyter stores it
            files[f"{name}.ipynb"] = text.encode()
            files |= _downloads(source.stem, page, executed, parameters)
        else:
            without.append(source.stem)
            files[f"{name}.ipynb"] = json.dumps(_without_results(read(source))).encode()
    shutil.rmtree(stage, ignore_errors=True)
    for name, content in files.items():
        path = stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return without


def _without_results(page: dict) -> dict:
    """The chapter's title, and a warning that it was not executed."""
    title = re.match(r"# .+", source_of(page["cells"][0]))
    text = f"{title[0] if title else '# A chapter'}\n{NOT_RUN}"
    return page | {"cells": [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": text}]}


def with_addresses(config: dict) -> dict:
    """The configuration, changed in place to name where the book is published.

    The environment variable `BOOK_URL` is the address of its pages, for the sitemap and
    for previews of links; `BOOK_REPOSITORY` is that of a public repository, for the
    buttons that open a chapter from there.
    """
    sphinx = config["sphinx"]["config"]
    if url := os.environ.get("BOOK_URL"):
        sphinx["html_baseurl"] = f"{url.rstrip('/')}/"
    if repository := os.environ.get("BOOK_REPOSITORY"):
        theme = {"repository_url": repository.rstrip("/"), "repository_branch": "main"}
        sphinx["html_theme_options"] |= theme | {"launch_buttons": LAUNCH}
    return config


def _downloads(chapter: str, page: dict, executed: Path, parameters: dict) -> dict[str, bytes]:
    """CSV tables of a chapter, made in `executed` if missing, and its first PNG, by path in the stage."""
    files, kept = {}, csv_files(executed, chapter)
    if not kept:  # executing the chapter deleted them
        for name, table in _recorded_tables(chapter, parameters).items():
            (executed / name).write_bytes(table.to_csv(index=False).encode())
        kept = csv_files(executed, chapter)
    for csv in kept:
        files[f"book/_static/records/{csv.name}"] = csv.read_bytes()
    outputs = (output.get("data", {}) for cell in page["cells"] for output in cell.get("outputs", ()))
    pictures = (data[kind] for data in outputs for kind in data if kind.endswith("image/png"))
    if figure := next(pictures, None):
        files[f"book/_static/cards/{chapter}.png"] = base64.b64decode("".join(figure))
    return files


def csv_files(executed: Path, chapter: str) -> list[Path]:
    """The CSV files of a chapter that was executed in this folder."""
    return sorted(executed.glob(f"{chapter}.*.csv"))


def _recorded_tables(chapter: str, parameters: dict) -> dict[str, pd.DataFrame]:
    """Tables by file name: recorded runs of the chapter's studies; for the scorecard of all, with effects."""
    profile, seeds, settings = (parameters.get(name) for name in ("profile", "seeds", "settings"))
    chosen = None if profile in (None, PUBLISHED) else scale(profile, seeds, settings)
    asked = [study for study in studies() if chapter in (study.chapter, SCORECARD)]
    if not asked:
        return {}
    found = [recorded.results(study, chosen) if chosen else recorded.published(study) for study in asked]
    runs = pd.concat(r.table.assign(study=r.study.name, profile=r.profile.name) for r in found)
    effects = {f"{chapter}.effects.csv": scorecard.effects()} if chapter == SCORECARD else {}
    return {f"{chapter}.runs.csv": runs} | effects


def build(stage: Path, out: Path) -> Path:
    """Render `stage` and return the first page, `out/_build/html/index.html`.

    Renders nothing if neither the stage nor the tools changed, otherwise everything: with its
    cache Sphinx keeps old sidebars on pages that it takes for unchanged, and pages and
    figures that no longer exist. Raises `BuildError`; warnings count as errors.
    """
    stage, out = stage.resolve(), out.resolve()
    index, stamp = out / "_build" / "html" / "index.html", out / "_build" / "stage.sha256"
    digest = hashlib.sha256(repr([(tool, importlib.metadata.version(tool)) for tool in RENDERERS]).encode())
    for path in sorted(p for p in stage.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(stage).as_posix()} {len(content)}\n".encode() + content)
    if index.exists() and stamp.exists() and stamp.read_text("utf-8") == digest.hexdigest():
        return index
    stamp.unlink(missing_ok=True)
    for old in ("html", ".doctrees", "jupyter_execute"):
        shutil.rmtree(out / "_build" / old, ignore_errors=True)
    options = ["--path-output", str(out), "--warningiserror", "--nitpick", "--keep-going", "-q"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", JUPYTER_BOOK, "build", str(stage), *options],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | IN_UTF8 | {"NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if done.returncode:
        text = re.sub(r"\x1b\[[\d;]*m", "", done.stderr).replace(f"{stage}{os.sep}", "")
        lines = text.split("Traceback (most recent call last)")[0].splitlines()
        warnings = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL", line)]
        raise BuildError("\n".join((warnings or lines or text.splitlines()[-10:])[:10]))
    stamp.write_text(digest.hexdigest(), "utf-8")
    return index


def browser() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def print_pdfs(html: Path) -> None:
    """Print the page of each chapter to a PDF beside it, by Chromium; raises `BuildError` if that fails."""
    for page in sorted((html / "book" / "chapters").glob("*.html")):
        pdf = page.with_suffix(".pdf")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
        done = subprocess.run(
            [browser(), *options, f"--print-to-pdf={pdf}", page.as_uri()],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode or not pdf.exists():
            raise BuildError(
                f"{pdf.name}: Chromium ended with status {done.returncode}: {done.stderr[-300:]}"
            )
