"""The result store: one JSON file per finished run, written once, read without torch and pandas.

A file is named by its run's id and holds the whole configuration, so it can be
checked against its name. A damaged or foreign file is never used: a message names it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import stat
import subprocess
import warnings
from collections.abc import Iterable
from pathlib import Path

import repro
from repro.config import InputError, Run, as_json, given, run_from_json
from repro.store.files import Damaged, create, set_aside

SCHEMA = 1
NOT_THERE = (FileNotFoundError, NotADirectoryError)
CURVES = ("train_loss", "train_accuracy", "test_accuracy")
COPIED = ("seconds", "device", "precision", "data")  # `repro.analysis.tables` copies these into its rows
TRIES = 3  # attempts to write a record whose name a damaged file has
ROOT = Path(repro.__file__).resolve().parent.parent


def results_folder() -> Path:
    """Folder of results: `REPRO_RESULTS`, or `results/` of the checkout, else of the working directory."""
    if named := os.environ.get("REPRO_RESULTS"):
        return given(named)
    return (ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()) / "results"


def commit() -> str | None:
    """The commit that records name: `REPRO_COMMIT` if set, else `head()`."""
    return os.environ.get("REPRO_COMMIT") or head()


@functools.cache
def head() -> str | None:
    """Commit of the code at the first call, `+` appended if `repro/` differs from it.

    None if the code is in no repository, or installed within another project's.
    """
    found = git("rev-parse", "HEAD")
    return found and found + ("+" if git("status", "--porcelain", "repro") else "")


def git(*command: str) -> str | None:
    """Output of a git command in the repository that tracks this code; None without one, or on an error."""
    # In a hook, git sets GIT_* variables, which may name another repository. This code may also lie
    # in the folder of another project, whose repository does not track it.
    own = {name: v for name, v in os.environ.items() if not name.startswith("GIT_")}

    def said(*words: str) -> str:
        call = ["git", "-C", str(ROOT), *words]
        done = subprocess.run(call, capture_output=True, env=own, check=True)
        return os.fsdecode(done.stdout).strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        said("cat-file", "-e", "HEAD:repro/store/records.py")
        if Path(said("rev-parse", "--show-toplevel")).samefile(ROOT):
            return said(*command)
    return None


def _checksum(record: dict) -> str:
    content = {k: v for k, v in record.items() if k != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _text(record: dict) -> str:
    """The record as JSON, one value per line, but each list of numbers on one line."""
    text = json.dumps(record, indent=1, allow_nan=False)
    return re.sub(r"\[[-\d\s.,eEnul+]+\]", lambda m: re.sub(r"\n\s*", " ", m[0]), text) + "\n"


@functools.cache
def names_of(fingerprint: str, folder: Path) -> tuple[str, ...]:
    """Names that user-supplied images with this fingerprint have in the records of a folder.

    Newer records all have the same name; in older ones it is the file's, and part of the run's id.
    """
    written, names = f'"fingerprint": "{fingerprint}"'.encode(), set()
    for path in Store(folder).files():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if written in (content := path.read_bytes()):
                names.add(json.loads(content)["run"]["dataset"]["name"])
    return tuple(sorted(names))


class Store:
    """The records of one profile: a folder of `<run id>.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, profile: str) -> Store:
        return cls(results_folder() / profile)

    def path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.json"

    def snapshot(self, run_id: str) -> Path:
        """Path of the network at the end of a run, from which other runs start."""
        return self.folder / ".snapshots" / f"{run_id}.pt"

    def checkpoint(self, part_id: str) -> Path:
        """Path of the state of a population in training, from which an interrupted training resumes."""
        return self.folder / ".checkpoints" / f"{part_id}.pt"

    @property
    def leases(self) -> Path:
        """Folder of the leases: files by which processes claim what they train."""
        return self.folder / ".leases"

    def ids(self) -> set[str]:
        """Ids of runs that have a record file, sound or not; a dangling link, for example, does not count."""
        return {path.stem for path in self.files()}

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Name, time of change (ns) and size (bytes) of each record, to tell whether any has changed."""
        found = ((path.name, path.stat()) for path in sorted(self.files()))
        return tuple((name, status.st_mtime_ns, status.st_size) for name, status in found)

    def files(self) -> list[Path]:
        """The files of records, sound or not."""
        return [path for path in self.folder.glob("[0-9a-f]*.json") if path.is_file()]

    def write(self, run: Run, **content: object) -> bool:
        """Record a finished run; return False, and keep the old record, if it is already `recorded`.

        A damaged record is set aside with a warning. Raises `OSError` if the new one cannot be written.
        """
        record = {"schema": SCHEMA, "id": run.id, "run": as_json(run), **content}
        record["checksum"] = _checksum(record)
        text, path = _text(record).encode(), self.path(record["id"])
        for _ in range(TRIES):
            if create(path, text):
                return True
            if self.recorded(record["id"]):
                return False
            self.set_damaged_aside([record["id"]])
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    def difference(self, run: Run, diverged: int | None, curves: list[dict]) -> str | None:
        """A line on where the results of a second training first differ from the run's record, or None."""
        first = self.read(run.id)
        if (first["diverged"], first["curves"]) == (diverged, curves):
            return None
        places = (
            f"{name.replace('_', ' ')} from epoch {epoch} of stage {stage} on"
            for stage, (a, b) in enumerate(zip(first["curves"], curves, strict=False), start=1)
            for name in CURVES
            for epoch, (x, y) in enumerate(zip(a[name], b[name], strict=False), start=1)
            if x != y
        )
        differs = next(places, "the number of epochs")
        return f"run {run.id} was trained twice and its curves differ: {differs}; the first record stands"

    def trouble(self, run_id: str) -> Damaged | OSError | None:
        """The error on reading a run's record, one of `NOT_THERE` if there is none; None if it is sound."""
        try:
            self.read(run_id)
        except (Damaged, OSError) as error:
            return error
        return None

    def recorded(self, run_id: str) -> bool:
        """Whether a run has a record that is sound, or that this user cannot read, as it may be sound."""
        return not isinstance(self.trouble(run_id), (Damaged, *NOT_THERE))

    def unreadable(self, run_ids: Iterable[str]) -> list[str]:
        """A line for each of these runs whose record exists but cannot be read by this user."""
        found = ((name, self.trouble(name)) for name in run_ids if self.recorded(name))
        return [f"run {name}: {self.path(name)}: {error.strerror}" for name, error in found if error]

    def set_damaged_aside(self, run_ids: Iterable[str]) -> None:
        """Rename the damaged records among those of these runs, with a warning for each."""
        for name in run_ids:
            if isinstance(damage := self.trouble(name), Damaged):
                warnings.warn(f"{damage}; set aside as {set_aside(self.path(name))}", stacklevel=2)

    def read(self, run_id: str) -> dict:
        """The record of a run; it is cached and shared, so callers must not change it.

        Raises `Damaged` if it is unsound, one of `NOT_THERE` if there is none, and another `OSError`
        if this user cannot read it.
        """
        path = self.path(run_id)
        try:
            found = path.stat()
        except OSError:
            if path.is_symlink() and not path.exists():
                raise Damaged(f"{path}: a link to nowhere") from None
            raise
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{path}: not a file")
        return _read(path, (found.st_mtime_ns, found.st_size, found.st_ino))

    def load(self, run_ids: Iterable[str]) -> dict[str, dict]:
        """Sound records of these runs, by id; warns of damaged or unreadable ones, and omits missing ones."""
        found = {}
        for name in dict.fromkeys(run_ids):
            try:
                found[name] = self.read(name)
            except NOT_THERE:
                continue
            except (Damaged, OSError) as error:
                reason = error if isinstance(error, Damaged) else f"{self.path(name)}: {error.strerror}"
                warnings.warn(f"skipped {reason}", stacklevel=2)
        return found


@functools.lru_cache(maxsize=1024)
def _read(path: Path, stamp: object) -> dict:
    """The checked record in a file, cached, as a chapter asks for the same ones many times.

    `stamp` is only a part of the cache's key, so that a changed file is read again.
    """
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise Damaged(f"{path}: not JSON") from None
    if reason := defect(record, path.stem):
        raise Damaged(f"{path}: {reason}")
    return record


def defect(record: object, name: str) -> str | None:
    """What is wrong with a record that should be that of the run with id `name`; None if it is sound."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return f"not a record of schema {SCHEMA}"
    if record.get("checksum") != _checksum(record):
        return "checksum differs: the file was edited or cut"
    try:
        run = run_from_json(record["run"])
        if not name == record["id"] == run.id:
            return f"it holds run {run.id}"
        curves = record["curves"]
        whole = record["diverged"] is None
        if missing := [name for name in COPIED if name not in record]:
            return f"no {missing[0]}"
        if not 1 <= len(curves) <= len(run.stages) or (whole and len(curves) < len(run.stages)):
            return f"{len(curves)} stages of curves for {len(run.stages)} stages"
        for stage, curve in zip(run.stages, curves, strict=False):
            lengths = {len(curve[name]) for name in CURVES}
            full = not whole or stage.until is not None or lengths == {stage.epochs}
            if len(lengths) != 1 or not full or not 1 <= max(lengths) <= stage.epochs:
                return "curves and epochs differ in length"
            if not all(isinstance(v, int | float) for name in CURVES for v in curve[name] if v is not None):
                return "a value that is no number"
            if not all(0 <= v <= 1 for name in CURVES[1:] for v in curve[name] if v is not None):
                return "an accuracy outside [0, 1]"
    except (KeyError, TypeError, AttributeError, InputError) as error:
        return f"malformed ({type(error).__name__}: {error})"
    return None
