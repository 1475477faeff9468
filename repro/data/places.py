"""The paths that a user gives, in a command or in the environment: absolute from the first moment on.

Chapters are executed in a folder of their own, where a relative path would name something else.
"""

from __future__ import annotations

import os
from pathlib import Path

from repro.config import InputError

is_folder = os.path.isdir  # that of pathlib raises an error at a name that no file could have
OF_PATHS = ("REPRO_RESULTS", "REPRO_DATA", "PYTHONPATH")  # variables of the environment


def given(path: str | Path) -> Path:
    """The path, absolute; raises `InputError` where it begins with a `~` that stands for no folder."""
    if "\0" in str(path):
        raise InputError(f"no path has the character 0, as {str(path)!r} does")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise InputError(f"no home folder is known for the ~ of {path}: give the whole path") from None


def fix_environment() -> None:
    """Make the paths in the environment absolute, for this process and those that it starts."""
    for name in OF_PATHS:
        if paths := os.environ.get(name):
            parts = paths.split(os.pathsep) if name == "PYTHONPATH" else [paths]
            os.environ[name] = os.pathsep.join(str(given(part)) for part in parts)
