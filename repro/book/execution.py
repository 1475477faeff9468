"""Make the book: execute its chapters, then render them to pages (`repro.book.rendering`).

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

# Parameters are passed as JSON, not by papermill's own command: its YAML reads 1e-05 as a string.
PAPERMILL = """
import json, logging, os, sys, papermill
logging.basicConfig(format="%(message)s")  # what the cells print on standard error, as it comes
# A kernel has nothing to say at its end: training is stopped safely by a kill, see repro/sweep/dispatch.py.
quick = dict(shutdown_kernel="immediate", request_save_on_cell_execute=False, autosave_cell_every=0)
papermill.execute_notebook(**json.loads(sys.argv[1]), log_output=True, **quick)
sys.stderr.flush()
os._exit(0)  # all is written: taking the interpreter down module by module is time for nothing
"""

# Another process may take a kernel's ports before it binds them. No cell has run then: try again.
NO_KERNEL, TRIES = "RuntimeError: Kernel died before replying to kernel_info", 3


@dataclass(frozen=True)
class ChapterResult:
    """How the execution of one chapter ended."""

    name: str
    seconds: float
    error: str | None = None  # first line of the exception
    kept: bool = False  # not executed again: same source, parameters, tools, package and records

    @property
    def status(self) -> str:
        return "failed" if self.error else "kept" if self.kept else "passed"


def project_root() -> Path:
    """The folder of the book's sources; raises `InputError` if the package is not run from a checkout."""
    if not (ROOT / "_toc.yml").is_file():
        raise InputError("the book's sources are not here: run from a checkout, pip install -e .")
    return ROOT


def require_tools() -> None:
    missing = [m for m in ("papermill", "nbformat", "jupyter_book") if not importlib.util.find_spec(m)]
    if missing:
        raise InputError(f'{", ".join(missing)} not installed: pip install "repro[book]"')


def select(root: Path, names: Iterable[str] | None) -> list[Path]:
    """The chapters of these names, `01_warm_start` or `warm_start`, in the book's order; all if None."""
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
    """Execute copies of the chapters in `folder`, `jobs` at a time, and return how each ended.

    A chapter that passed is left as `NAME.ipynb`, with `state` in `NAME.state`; one
    that raised is left as `NAME.failed.ipynb`. Older outcomes are deleted. One failure
    does not stop the others.
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
            pool.shutdown(cancel_futures=True)  # the running ones were interrupted too; start no others
            raise


def _execute_one(
    notebook: Path, parameters: dict, folder: Path, state: str, bars: Progress, task: TaskID
) -> ChapterResult:
    done, failed = folder / notebook.name, folder / f"{notebook.stem}.failed.ipynb"
    stamp = folder / f"{notebook.stem}.state"
    for path in (done, failed, stamp, *rendering.csv_files(folder, notebook.stem)):
        path.unlink(missing_ok=True)
    # Papermill fills parameters into paths, as in a format string: braces are doubled.
    source, target = (re.sub(r"[{}]", r"\g<0>\g<0>", str(path)) for path in (notebook, failed))
    call = {"input_path": source, "output_path": target, "cwd": str(folder), "parameters": parameters}
    # Chapters import this copy of the package, whatever is installed.
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
    """Environment with `other` as home, where Jupyter writes, if the user's is unknown or not writable."""
    with contextlib.suppress(RuntimeError):
        if os.access(Path.home(), os.W_OK):
            return {}
    other.mkdir(exist_ok=True)
    return {"HOME": str(other)}


def _papermill(call: dict, environment: dict[str, str], show: Callable[..., None]) -> tuple[int, list[str]]:
    """Execute a notebook in its own process; return its exit status and the lines of its standard error."""
    process = subprocess.Popen(
        # `-P`: import nothing from the current folder. Paths are passed as UTF-8, not as \u escapes.
        [sys.executable, "-P", "-c", PAPERMILL, json.dumps(call, ensure_ascii=False)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        # Prefer the kernel of this environment to one of the same name in the user's folder.
        env=os.environ | environment | {"JUPYTER_PREFER_ENV_PATH": "1"},
    )
    lines = []
    for line in filter(str.strip, process.stderr):
        if cells := re.search(r"^Executing:.* (\d+)/(\d+) \[", line):  # papermill's own progress bar
            show(completed=int(cells[1]), total=int(cells[2]), said="")
        else:
            lines.append(line.strip())
            show(said=lines[-1][:100])
    return process.wait(), lines


def _state() -> str:
    """A hash of what outcomes depend on besides source and parameters: package, tools and records.

    The records of all profiles count, as a chapter may compare its own with a larger one's.
    """
    tools = [(t, importlib.metadata.version(t)) for t in ("matplotlib", "pandas")]
    digest = hashlib.sha256(repr([tools, bool(os.environ.get("BOOK_URL"))]).encode())  # see `shown.Captioned`
    for path in sorted((ROOT / "repro").rglob("*.py")):
        digest.update(path.read_bytes())
    for folder in sorted(results_folder().glob("*/")):
        digest.update(repr((folder.name, Store(folder).stamp())).encode())
    return digest.hexdigest()


def _is_kept(source: Path, executed: Path, parameters: dict, state: str) -> bool:
    """Whether the chapter was executed from its present source, with these parameters, in this state."""
    stamp = executed / f"{source.stem}.state"
    same = stamp.exists() and stamp.read_text("utf-8") == state
    return same and rendering.executed_page(source, executed / source.name, parameters) is not None


def _first_error(notebook: Path) -> str | None:
    try:
        cells = rendering.read(notebook)["cells"]
    except (OSError, ValueError):  # not written, or only in part
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
    """The notebooks to execute; raises `InputError` if `make_book` could not run with these arguments."""
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
    """Raise `InputError` if a folder's path is not UTF-8, or it (or its nearest parent) is not writable."""
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
    """Execute the chapters that changed, render the book and return 1 if a chapter or a page failed, else 0.

    The pages are in `out/_build/html`; `out` is the project's root by default.
    Raises `InputError` before anything runs (see `check`).
    """
    # If no profile is named, each chapter keeps its own.
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
