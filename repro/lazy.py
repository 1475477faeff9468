"""Libraries that take long to import, where a command may do without them."""

from __future__ import annotations

import importlib


class Lazy:
    """Stands for a module, which is imported when one of its names is asked for.

    Every name is looked up once. Unlike `importlib.util.LazyLoader`, two threads
    may be the first to ask.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> object:
        found = getattr(importlib.import_module(self._module), name)
        setattr(self, name, found)
        return found
