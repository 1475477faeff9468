"""Writing of files that are either complete or absent, and handling of damaged ones.

Content is written to a *partial* file beside its destination, flushed to the disk and
only then given its name. A binary file is *sealed*: it begins with a line that holds
its name and hash, which reveals that it was cut, edited or put in another's place.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import secrets
import tempfile
from pathlib import Path

SEAL = b"repro-1"  # begins every sealed file; the number is the version of the format
PARTIAL = ".partial"
ABANDONED = 600.0  # age in seconds from which a partial file is taken to have lost its writer


class Damaged(Exception):
    """A stored file that cannot be trusted; the message names it and says why."""


def create(path: Path, content: bytes) -> bool:
    """Create `path` whole or not at all; return False, and change nothing, if it exists already."""
    partial = _partial(path, content)
    try:
        os.link(partial, path)  # unlike a rename, fails if another worker was first
    except FileExistsError:
        return False
    except OSError:  # without hard links (errors vary): take the name, empty at first, then fill it
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            return False
        try:
            partial.replace(path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    finally:
        partial.unlink(missing_ok=True)
    _flush_folder(path.parent)
    return True


def replace(path: Path, *contents: bytes | memoryview) -> None:
    """Write the contents, one after another, to `path`; an old file stays until they are on the disk."""
    partial = _partial(path, *contents)
    try:
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def try_out(folder: Path) -> None:
    """Make the folder and try there what storing needs; raises `OSError` if the file system refuses."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".trial.{secrets.token_hex(4)}{PARTIAL}"
    try:
        create(path, b"")
        replace(path, b"")
    finally:
        path.unlink(missing_ok=True)


def _partial(path: Path, *contents: bytes | memoryview) -> Path:
    """Write a new partial file beside `path` and flush it to the disk; on an error, nothing is left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.writelines(contents)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):  # the error of a full disk does not name the file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    return partial


def _flush_folder(folder: Path) -> None:
    """Flush the names of new files to the disk too, on file systems that can do so; others are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unsealed(path: Path) -> bytes:
    """The content of a sealed file; raises `Damaged` if its seal is wrong, `OSError` if it is unreadable."""
    head, newline, content = path.read_bytes().partition(b"\n")
    if head + newline == seal(path.stem, content):
        return content
    kind, *names = head.split(b" ")
    if kind != SEAL:
        raise Damaged(f"{path}: not a file of this format")
    if names[:1] != [path.stem.encode()]:
        raise Damaged(f"{path}: it holds {b' '.join(names[:1]).decode(errors='replace')[:40]!r}")
    raise Damaged(f"{path}: checksum differs: the file was edited or cut")


def seal(name: str, content: bytes | memoryview) -> bytes:
    """The line before sealed content: the format, the name, and the hash of name and content."""
    digest = hashlib.sha256(name.encode() + b"\n")
    digest.update(content)
    return b" ".join((SEAL, name.encode(), digest.hexdigest().encode())) + b"\n"


def set_aside(path: Path) -> str:
    """Rename a damaged file to a free name, `NAME.damaged`, `NAME.damaged2`, ..., and return that name."""
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.damaged{number if number > 1 else ''}")
        if not os.path.lexists(aside):
            break
    with contextlib.suppress(FileNotFoundError):  # another process was first
        path.rename(aside)
    return aside.name


def sweep_partials(folder: Path) -> None:
    """Delete partial files that are older than `ABANDONED`, which killed writers have left behind."""
    for partial in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):
            if time_here(folder) - partial.stat().st_mtime > ABANDONED:
                partial.unlink()


def time_here(folder: Path) -> float:
    """The time now, in seconds, by the clock that stamps this folder's files: it may be another machine's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
