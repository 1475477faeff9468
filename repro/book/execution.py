"""The book: chapters executed one by one, then rendered to pages (`repro.book.rendering`).

No source is executed in place: papermill writes executed copies to `_build/executed`.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from repro import terminal
from repro.book import rendering
from repro.config import InputError, given
from repro.store.records import ROOT, Store, results_folder

# JSON on the command line, not papermill's own: YAML reads 1e-05 as a string.
PAPERMILL = """
import json, logging, os, sys, papermill
logging.basicConfig(format="%(message)s")  # what the cells print on standard error, as it comes
# A kernel has nothing to say at its end: training is stopped safely by a kill, see repro/sweep/dispatch.py.
quick = dict(shutdown_kernel="immediate", request_save_on_cell_execute=False, autosave_cell_every=0)
papermill.execute_notebook(**json.loads(sys.argv[1]), log_output=True, **quick)
sys.stderr.flush()
os._exit(0)  # all is written: taking the interpreter down module by module is time for nothing
"""

# Ports for a kernel are chosen before it binds them: another process may be faster. No cell has run then.
NO_KERNEL, TRIES = "RuntimeError: Kernel died before replying to kernel_info", 3


@dataclass(frozen=True)
class ChapterResult:
    """How the execution of one chapter ended."""

    name: str
    seconds: float
    error: str | None = None  # first line of the exception
    kept: bool = False  # executed before: same source, parameters, package and records

    @property
    def status(self) -> str:
        return "failed" if self.error else "kept" if self.kept else "passed"


def project_root() -> Path:
    """The folder of the book's sources, the one that holds the package."""
    if not (ROOT / "_toc.yml").is_file():
        raise InputError("the book's sources are not here: run from a checkout, pip install -e .")
    return ROOT


def require_tools() -> None:
    missing = [m for m in ("papermill", "nbformat", "jupyter_book") if not importlib.util.find_spec(m)]
    if missing:
        raise InputError(f'{", ".join(missing)} not installed: pip install "repro[book]"')


def select(root: Path, names: Iterable[str] | None) -> list[Path]:
    """The chapters of these names, `01_warm_start` or `warm_start`, in the book's order; all for None."""
    paths = rendering.chapters(root)
    if names is None:
        return paths
    short = {re.sub(r"^\d+_", "", path.stem): path for path in paths}
    by_name = short | {path.stem: path for path in paths}
    names = set(names)
    if unknown := sorted(names - by_name.keys()):
        raise InputError(f"unknown chapter {unknown[0]!r}: choose from {', '.join(short)}")
    return sorted({by_name[name] for name in names})


def check_parameters(chapter: Path, parameters: dict) -> None:
    """Refuse names that the chapter's parameters cell does not define; papermill would only warn."""
    cells = rendering.read(chapter)["cells"]
    tagged = (rendering.source_of(c) for c in cells if "parameters" in c["metadata"].get("tags", ()))
    assigned = (node for node in ast.parse("\n".join(tagged)).body if isinstance(node, ast.Assign))
    allowed = [target.id for node in assigned for target in node.targets]
    for name in parameters:
        if name not in allowed:
            raise InputError(
                f"unknown parameter {name!r} of {chapter.stem}: choose from {', '.join(allowed) or 'none'}"
            )


def execute(
    notebooks: list[Path], parameters: dict, folder: Path, jobs: int = 2, state: str = ""
) -> list[ChapterResult]:
    """How each chapter ended, after executing copies of them in `folder`, `jobs` at a time.

    `NAME.ipynb` is there afterwards only if it passed, with `state` beside it in
    `NAME.state`; one that raised is kept as `NAME.failed.ipynb`. One failure does
    not stop the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = [TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[said]")]
    columns = (text[0], BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), text[1])
    console = terminal.console(sys.stderr)
    with Progress(*columns, console=console) as bars, ThreadPoolExecutor(jobs) as pool:
        tasks = [bars.add_task(notebook.stem, start=False, total=None, said="") for notebook in notebooks]
        started = [
            pool.submit(_execute_one, notebook, parameters, folder, state, bars, task)
            for notebook, task in zip(notebooks, tasks, strict=True)
        ]
        try:
            return [future.result() for future in started]
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # running ones were interrupted too; start no others
            raise


def _execute_one(
    notebook: Path, parameters: dict, folder: Path, state: str, bars: Progress, task: TaskID
) -> ChapterResult:
    done, failed = folder / notebook.name, folder / f"{notebook.stem}.failed.ipynb"
    stamp = folder / f"{notebook.stem}.state"
    for path in (done, failed, stamp, *rendering.tables(folder, notebook.stem)):
        path.unlink(missing_ok=True)
    # Papermill takes a path for a format, which parameters fill.
    source, target = (re.sub(r"[{}]", r"\g<0>\g<0>", str(path)) for path in (notebook, failed))
    call = {"input_path": source, "output_path": target, "cwd": str(folder), "parameters": parameters}
    # Chapters import this very package.
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = rendering.IN_UTF8 | _home(folder.parent / "home") | {"PYTHONPATH": paths}
    bars.start_task(task)
    start, error = time.monotonic(), None
    for _ in range(TRIES):
        status, lines = _papermill(call, environment, lambda **shown: bars.update(task, **shown))
        if status == 0 or NO_KERNEL not in lines[-1:]:
            break
    if status == 0:
        failed.rename(done)
        stamp.write_text(state, "utf-8")
    else:
        error = _first_error(failed) or (lines[-1] if lines else f"exit status {status}")
    return ChapterResult(notebook.stem, time.monotonic() - start, error)


def _home(other: Path) -> dict[str, str]:
    """Another home folder for Jupyter, which writes there, where that of the user cannot be had."""
    with contextlib.suppress(RuntimeError):
        if os.access(Path.home(), os.W_OK):
            return {}
    other.mkdir(exist_ok=True)
    return {"HOME": str(other)}


def _papermill(call: dict, environment: dict[str, str], show: Callable[..., None]) -> tuple[int, list[str]]:
    """Exit status of executing a notebook in a process of its own, and what it said besides its progress."""
    process = subprocess.Popen(
        # It imports nothing from where one stands, and reads as UTF-8 what paths are made of.
        [sys.executable, "-P", "-c", PAPERMILL, json.dumps(call, ensure_ascii=False)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        # The kernel of this environment, where the user's folder has another of the same name.
        env=os.environ | environment | {"JUPYTER_PREFER_ENV_PATH": "1"},
    )
    lines = []
    for line in filter(str.strip, process.stderr):
        lines.append(line.strip())
        if cells := re.search(r"^Executing:.* (\d+)/(\d+) \[", line):  # papermill's own progress bar
            show(completed=int(cells[1]), total=int(cells[2]), said="")
        else:
            show(said=lines[-1][:100])
    return process.wait(), lines


def _state() -> str:
    """A hash of all that a chapter's outcome depends on besides its source: package, tools and records.

    Records of every profile, as a chapter may set its own beside those of a larger one.
    """
    tools = [(t, importlib.metadata.version(t)) for t in ("matplotlib", "pandas")]
    digest = hashlib.sha256(repr([tools, bool(os.environ.get("BOOK_URL"))]).encode())  # see `figures.shown`
    for path in sorted((ROOT / "repro").rglob("*.py")):
        digest.update(path.read_bytes())
    for folder in sorted(results_folder().glob("*/")):
        digest.update(repr((folder.name, Store(folder).stamp())).encode())
    return digest.hexdigest()


def _is_kept(source: Path, executed: Path, parameters: dict, state: str) -> bool:
    """Whether the chapter was executed from this source, with these parameters, in this very state."""
    stamp = executed / f"{source.stem}.state"
    same = stamp.exists() and stamp.read_text("utf-8") == state
    return same and rendering.executed_page(source, executed / source.name, parameters) is not None


def _first_error(notebook: Path) -> str | None:
    try:
        cells = rendering.read(notebook)["cells"]
    except (OSError, ValueError):  # it was not written, or not to its end
        return None
    outputs = (o for cell in cells for o in cell.get("outputs", ()))
    errors = (f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error")
    return next(errors, "").strip().split("\n")[0] or None


def check(
    chapters: Iterable[str] | None,
    parameters: dict,
    out: Path | None = None,
    jobs: int = 2,
    root: Path | None = None,
    pdf: bool = False,
) -> list[Path]:
    """The notebooks to execute; raises `InputError` on anything that `make_book` would fail for want of."""
    require_tools()
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, not {jobs}")
    if pdf and not rendering.browser():
        raise InputError("no Chromium here to make PDFs with: install it, or leave out --pdf")
    notebooks = select(root or project_root(), chapters)
    for notebook in notebooks:
        check_parameters(notebook, parameters)
    for part in ("executed", "stage", "html"):
        _require_writable(_work(out, root) / part)
    return notebooks


def _work(out: Path | None, root: Path | None) -> Path:
    return given(out or root or project_root()) / "_build"


def _require_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made; it need not be there yet, and is not made."""
    try:
        os.fsencode(folder).decode()
    except UnicodeDecodeError:
        raise InputError(f"{folder} is no name in UTF-8, as notebooks need: --out names another") from None
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(f"cannot write in {folder}: {error.strerror}; --out names another folder") from None


def make_book(
    profile: str | None,
    chapters: Iterable[str] | None = None,
    parameters: dict | None = None,
    out: Path | None = None,
    jobs: int = 2,
    root: Path | None = None,
    pdf: bool = False,
) -> int:
    """Exit status of executing chapters and rendering the book: 1 where a chapter or a page failed.

    The pages are in `out/_build/html`, `out` being the project's root unless
    given. Raises `InputError` before anything runs.
    """
    # Where no profile is named, each chapter keeps its own.
    parameters = ({} if profile is None else {"profile": profile}) | (parameters or {})
    notebooks = check(chapters, parameters, out, jobs, root, pdf)
    work, root = _work(out, root), root or project_root()
    state = _state()
    stale = [path for path in notebooks if not _is_kept(path, work / "executed", parameters, state)]
    results = execute(stale, parameters, work / "executed", jobs, state)
    kept = [ChapterResult(path.stem, 0.0, kept=True) for path in notebooks if path not in stale]
    results = sorted([*kept, *results], key=lambda result: result.name)
    without = rendering.assemble(root, work / "executed", work / "stage", parameters, pdf)
    table = Table("chapter", "seconds", "status", Column("error", overflow="fold"))
    for result in results:
        table.add_row(result.name, f"{result.seconds:.1f}", result.status, result.error or "")
    terminal.show(table)
    if without:
        print(f"pages without results: {', '.join(without)}")
    try:
        print(rendering.build(work / "stage", work.parent))
        if pdf:
            rendering.print_pdfs(work / "html")
    except rendering.BuildError as error:
        print(f"the pages could not be rendered:\n{error}")
        return 1
    return int(any(result.error for result in results))
