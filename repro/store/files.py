"""Files that are whole or not there, and what is done with those that are damaged.

Content is written beside its place, put on the disk and only then given its
name. What is stored in binary begins with a line that holds its name and its
hash, so that a file cut, edited, or put in the place of another is found out.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import secrets
import tempfile
from pathlib import Path

SEAL = b"repro-1"  # begins every sealed file; another number, another format
PARTIAL = ".partial"
ABANDONED = 600.0  # seconds after which a partial file has no writer any more


class Damaged(Exception):
    """A stored file that cannot be trusted; the message names it and says why."""


def create(path: Path, content: bytes) -> bool:
    """Create `path` whole or not at all; False, and nothing changed, where it exists already."""
    partial = _partial(path, content)
    try:
        os.link(partial, path)  # unlike a rename, fails where another worker was first
    except FileExistsError:
        return False
    except OSError:  # file systems without hard links say so in many ways: take the name, then fill it
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
    """Write `path`, its contents one after another; the file that was there stays until it is on the disk."""
    partial = _partial(path, *contents)
    try:
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def try_out(folder: Path) -> None:
    """Do in this folder all that storing takes; raises `OSError` where the file system refuses any of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".trial.{secrets.token_hex(4)}{PARTIAL}"
    try:
        create(path, b"")
        replace(path, b"")
    finally:
        path.unlink(missing_ok=True)


def _partial(path: Path, *contents: bytes | memoryview) -> Path:
    """A new file beside `path`, on the disk; nothing where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.writelines(contents)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk does not name the file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    return partial


def _flush_folder(folder: Path) -> None:
    """Put new names on the disk too; file systems that cannot do so keep them in their own way."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unsealed(path: Path) -> bytes:
    """The content that the name of its file seals; raises `Damaged`, or `FileNotFoundError`."""
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
    """The line before sealed content, which tells its name and its hash."""
    digest = hashlib.sha256(name.encode() + b"\n")
    digest.update(content)
    return b" ".join((SEAL, name.encode(), digest.hexdigest().encode())) + b"\n"


def set_aside(path: Path) -> str:
    """The name that a damaged file is given, none that is taken, so that its own is free again."""
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.damaged{number if number > 1 else ''}")
        if not os.path.lexists(aside):
            break
    with contextlib.suppress(FileNotFoundError):  # another process was first
        path.rename(aside)
    return aside.name


def sweep_partials(folder: Path) -> None:
    """Delete what writers that were killed have left half-written."""
    for partial in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):
            if time_here(folder) - partial.stat().st_mtime > ABANDONED:
                partial.unlink()


def time_here(folder: Path) -> float:
    """The time by the clock that stamps files of this folder, which may be another machine's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
