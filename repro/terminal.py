"""What commands print, on whatever is there to print on: their text as it is, never as markup."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from typing import TextIO

from rich.console import Console

PLAIN = str.maketrans("−×–—·…│─α", "-x--..|-a")  # for terminals without the first ones
WIDTH = 200  # of tables that no terminal shows


def prepare() -> None:
    """Let every text be printed: a sign that a terminal lacks becomes another one."""
    codecs.register_error("repro", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="repro")


def _plain(error: UnicodeError) -> tuple[str, int]:
    signs = error.object[error.start : error.end].translate(PLAIN)
    return signs.encode("ascii", "replace").decode(), error.end


def console(stream: TextIO) -> Console:
    """For tables and bars on a stream, without markup and the names of signs that look like `:this:`."""
    width = None if stream.isatty() else WIDTH
    return Console(file=stream, markup=False, emoji=False, highlight=False, width=width)


def show(table: object) -> None:
    """Print a table of rich."""
    console(sys.stdout).print(table)


def flush() -> None:
    """Put on standard output what is not there yet; raises `OSError` where it cannot be, and drops it."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # or the interpreter tries again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
