"""Leases: files in the store that say which runs are in training, so that no other process trains them.

A lease is a file that is created only if it does not exist. Its holder keeps it
locked and touches it every few seconds. If the holder ran on this machine, a free
lock shows at once that it is gone; otherwise the age of the file does. Ages are
differences of times that one file system gave, so the machines' clocks need not
agree. After a machine slept, a lease can have two holders. That costs time but no
result: a record is written once, and a second one is only compared with it.

filelock's SoftFileLease (4.2) is no substitute: it never takes over a lease on
file systems such as NFS, which cannot exchange two names in one step, nor an empty
one, as a kill or a power failure can leave it. That run would never be trained.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from repro.config import InputError
from repro.store.files import time_here

try:
    import fcntl
except ImportError:  # Windows: there records can be read, but no run can be trained
    fcntl = None

BEAT = 15.0  # seconds between touches
EXPIRY = 180.0  # seconds without a touch after which a holder on another machine is taken for dead


class Busy(Exception):
    """Another process holds one of the leases; the message names that process."""


def machine() -> str:
    """A name of this machine, new after each boot; containers that share a kernel differ by host name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text('utf-8').strip() if boot.exists() else '-'}"


def check() -> None:
    """Raise `InputError` if this system cannot train because it has no file locks."""
    if fcntl is None:
        raise InputError(
            "training needs locks of files (fcntl), as Linux, macOS and WSL have them; here only what "
            "is recorded can be read"
        )


@contextlib.contextmanager
def held(folder: Path, names: Iterable[str], beat: float = BEAT) -> Iterator[None]:
    """Hold the leases of all these names for the length of the block, or raise `Busy` and hold none.

    A thread touches the lease files every `beat` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handles: dict[Path, int] = {}
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(handles, done, beat), daemon=True)
    try:
        for name in sorted(set(names)):  # the same order everywhere: one of two competitors gets all
            handles[folder / name] = _take(folder / name)
        beating.start()
        yield
    finally:
        done.set()
        if beating.is_alive():
            beating.join()
        for path, handle in handles.items():
            if _is(path, handle):
                path.unlink(missing_ok=True)
            os.close(handle)


def _beat(handles: dict[Path, int], done: threading.Event, beat: float) -> None:
    while not done.wait(beat):
        for handle in handles.values():
            with contextlib.suppress(OSError):
                os.utime(handle)


def _take(path: Path) -> int:
    for _ in range(3):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            _clear(path)
            continue
        with contextlib.suppress(OSError):  # no locks, or no disk space: its age must do
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(handle, f"{machine()} {os.getpid()}".encode())
        return handle
    raise Busy("several processes")


def _clear(path: Path) -> None:
    """Remove the lease of a dead holder; raises `Busy` if the holder may be alive."""
    try:
        handle = _open(path)
    except FileNotFoundError:  # it was released just now
        if path.is_symlink():  # or it is a link to nowhere, which nobody would release
            path.unlink(missing_ok=True)
        return
    try:
        holder, gone = "", False
        with contextlib.suppress(OSError):  # locked, or unreadable: its age must do
            holder = os.read(handle, 200).decode(errors="replace")
            # Before it expires, only the one process that gets this lock may remove an abandoned lease.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = holder.startswith(machine() + " ")
        if not gone and time_here(path.parent) - os.fstat(handle).st_mtime <= EXPIRY:
            host, _, process = (holder or "- - -").partition(" ")
            raise Busy(f"process {process.rpartition(' ')[2]} on {host}")
        if _is(path, handle):
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    """Open a lease with the most access this user has: to write, to read, or only to look at its age."""
    for flags in (os.O_RDWR, os.O_RDONLY):
        with contextlib.suppress(PermissionError):
            return os.open(path, flags)
    return os.open(path, getattr(os, "O_PATH", os.O_RDONLY))


def _is(path: Path, handle: int) -> bool:
    """Whether the path still names the file of this handle."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(handle))
    return False
