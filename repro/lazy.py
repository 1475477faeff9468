"""Delayed import of slow libraries that not every command needs."""

from __future__ import annotations

import importlib


class Lazy:
    """Stands for a module, which is imported when one of its names is first used.

    Each name is looked up once and then kept. Unlike with `importlib.util.LazyLoader`,
    two threads may use the module for the first time at once.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> object:
        found = getattr(importlib.import_module(self._module), name)
        setattr(self, name, found)
        return found
