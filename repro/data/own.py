"""Code of one's own: a function or a question in a file, or in an installed package.

A file is loaded by its absolute path, never by way of the search path, so that a
child process and a worker of a cluster find what the command line found. A run
knows a function by its name, its settings and the hash of its source: the file
may move, and what the function does not use may change.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from repro.config import Code, InputError, given
from repro.data.npz import stamp
from repro.lazy import Lazy

if TYPE_CHECKING:
    from torch import nn

torch = Lazy("torch")  # which only networks of one's own need here


def code(what: str | Callable, **settings: object) -> Code:
    """What a run knows of a function: `./file.py:function`, `package.module:function`, or the function.

    `settings` are keyword arguments of the function: numbers, texts, truth values.
    Raises `InputError` where there is no such function.
    """
    where, _, name = place(what).rpartition(":")
    path = _file(where)
    return Code(name, _source(path, name, stamp(path)), tuple(sorted(settings.items())), path=where)


def function(known: Code) -> Callable:
    """The function itself; raises `InputError` where its source is not the one that the run knows."""
    if known.path is None or code(f"{known.path}:{known.name}").source != known.source:
        raise InputError(f"{known.name} is not what it was when its runs were planned: {known.path} changed")
    if not callable(made := getattr(module(known.path), known.name)):
        raise InputError(f"{known.path}: {known.name} is no function")
    return functools.partial(made, **dict(known.settings))


def module_of(network: nn.Module) -> dict[str, int]:
    """The number of the module to which each tensor of a network's state belongs (`models.Own`)."""
    names = list(network.state_dict())
    starts = getattr(network, "modules_to_reset", None) or [name.split(".")[0] for name in names]
    starts, found, current = list(dict.fromkeys(starts)), {}, 0
    for name in names:
        begun = [i for i, start in enumerate(starts) if f"{name}.".startswith(f"{start}.")]
        current = begun[0] if begun else current
        found[name] = current + 1
    return found


@functools.cache
def modules(known: Code, channels: int, classes: int, side: int) -> tuple[int, ...]:
    """Numbers of the modules of a network of one's own, which is built to count them."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        network = function(known)(channels, classes, side)
    return tuple(sorted(set(module_of(network).values())))


def module(where: str) -> ModuleType:
    """The module in a file or of a name; one line of `InputError` where it is missing or raises an error."""
    path = _file(where)
    try:
        if where.endswith(".py"):
            return _loaded(path, stamp(path))
        return importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path}: {said(error)}") from error


@functools.lru_cache(maxsize=64)
def _loaded(path: Path, written: object) -> ModuleType:
    name = f"{path.stem}_{hashlib.sha256(f'{path}{written}'.encode()).hexdigest()[:16]}"
    made = sys.modules[name] = ModuleType(name)  # where data classes look it up
    made.__file__ = str(path)
    # Not by an import: what that keeps of a file may be of an edit within the same second.
    exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(made))
    return made


def said(error: Exception) -> str:
    """The error in one line, its kind first unless it was meant to be read."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:300]


def place(what: str | Callable) -> str:
    """The absolute path of a file, or the name of a module, a colon, and the name of the function in it."""
    if callable(what):
        found = sys.modules.get(what.__module__)
        try:
            where = found.__name__ if found and found.__package__ else inspect.getsourcefile(what)
        except TypeError as error:
            raise InputError(f"{what!r} is no function that a file defines") from error
        return f"{where}:{what.__qualname__}"
    where, _, name = what.rpartition(":")
    if not where or not name.isidentifier():
        raise InputError(f"{what!r} is no function: write ./file.py:function or package.module:function")
    return f"{given(where) if where.endswith('.py') else where}:{name}"


def _file(where: str) -> Path:
    if not where.endswith(".py"):
        try:
            spec = importlib.util.find_spec(where)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not (spec.origin or "").endswith(".py"):
            raise InputError(f"there is no module {where!r}: write ./file.py:function for a file")
        return Path(spec.origin)
    path = given(where)
    with contextlib.suppress(OSError):  # as of a name that is too long
        if path.is_file():
            return path
    raise InputError(f"there is no file {path}")


@functools.lru_cache(maxsize=64)
def _source(path: Path, name: str, written: object) -> str:
    """Sixteen hexadecimal digits: hash of the function and of all in its file that it needs.

    That is what it names, what that names, and so on, and statements that define nothing.
    """
    try:
        text = importlib.util.decode_source(path.read_bytes())
        body = ast.parse(text).body
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: {said(error)}") from error
    bound = [set(_bound(statement)) for statement in body]
    if not any(name in names for names in bound):
        functions = ", ".join(s.name for s in body if isinstance(s, ast.FunctionDef)) or "none"
        raise InputError(f"{path} has no {name!r}; its functions: {functions}")
    wanted, used = {name, "*"}, set()
    while found := [i for i, names in enumerate(bound) if i not in used and (not names or names & wanted)]:
        used.update(found)
        wanted |= {n.id for i in found for n in ast.walk(body[i]) if isinstance(n, ast.Name)}
    lines = text.splitlines()
    parts = ["\n".join(lines[_first(body[i]) - 1 : body[i].end_lineno]) for i in sorted(used)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _first(statement: ast.stmt) -> int:
    """The line on which a statement begins, decorators and all."""
    return min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement of a module defines; its docstring defines one that nothing uses."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        yield ""
    for node in ast.walk(statement):
        if isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
