"""Printing of text and tables to any terminal, file or pipe; text is never read as markup."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from typing import TextIO

from rich.console import Console

PLAIN = str.maketrans("−×–—·…│─α", "-x--..|-a")  # replacements where the encoding lacks a character
WIDTH = 200  # characters of a table that goes to a file or a pipe


def prepare() -> None:
    """Replace characters that the encoding of an output stream lacks, so that printing cannot fail."""
    codecs.register_error("repro", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="repro")


def _plain(error: UnicodeError) -> tuple[str, int]:
    signs = error.object[error.start : error.end].translate(PLAIN)
    return signs.encode("ascii", "replace").decode(), error.end


def console(stream: TextIO) -> Console:
    """A console for tables and progress bars that prints `[markup]` and `:emoji:` codes as they are."""
    width = None if stream.isatty() else WIDTH
    return Console(file=stream, markup=False, emoji=False, highlight=False, width=width)


def show(table: object) -> None:
    """Print a `rich` table to standard output."""
    console(sys.stdout).print(table)


def flush() -> None:
    """Flush standard output; if that fails, drop what is not written yet and raise `OSError`."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # else Python flushes again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
