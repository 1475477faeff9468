"""User-supplied code: a function, or a question as in `repro.questions`, in a file or an installed package.

A file is loaded by its absolute path, never through Python's search path, so that
child processes and workers of a cluster find the same code as the command line. A run
identifies a function by its name, its settings and the hash of its source: the file
may be moved, and code that the function does not use may change.
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

torch = Lazy("torch")  # needed here only for user-supplied networks


def code(what: str | Callable, **settings: object) -> Code:
    """Describe a function for the configuration of a run, without loading its module.

    `what` is `./file.py:function`, `package.module:function` or the function itself, `settings`
    are its keyword arguments: numbers, strings, booleans. Raises `InputError` if there is no such function.
    """
    where, _, name = place(what).rpartition(":")
    path = _file(where)
    return Code(name, _source(path, name, stamp(path)), tuple(sorted(settings.items())), path=where)


def function(known: Code) -> Callable:
    """The function that `known` describes, with its settings bound.

    Raises `InputError` if its source has changed since, or its file is unknown, as in a run from a record.
    """
    if known.path is None or code(f"{known.path}:{known.name}").source != known.source:
        raise InputError(f"{known.name} is not what it was when its runs were planned: {known.path} changed")
    if not callable(made := getattr(module(known.path), known.name)):
        raise InputError(f"{known.path}: {known.name} is no function")
    return functools.partial(made, **dict(known.settings))


def module_of(network: nn.Module) -> dict[str, int]:
    """For the name of each tensor of a network's state, the number of its module (see `models.Own`)."""
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
    """Numbers of the modules of a user-supplied network, which is built on the CPU to count them."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        network = function(known)(channels, classes, side)
    return tuple(sorted(set(module_of(network).values())))


def module(where: str) -> ModuleType:
    """Load the module `where`, a `.py` file or a name; a one-line `InputError` if it is missing or fails."""
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
    made = sys.modules[name] = ModuleType(name)  # data classes look it up there
    made.__file__ = str(path)
    # Not imported: Python's cached bytecode can miss an edit within the same second.
    exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(made))
    return made


def said(error: Exception) -> str:
    """The error in one line of at most 300 characters; its type comes first, except for an `InputError`."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:300]


def place(what: str | Callable) -> str:
    """Where a function is: the absolute path of its file or the name of its module, a colon, and its name."""
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
    with contextlib.suppress(OSError):  # for example for a name that is too long
        if path.is_file():
            return path
    raise InputError(f"there is no file {path}")


@functools.lru_cache(maxsize=64)
def _source(path: Path, name: str, written: object) -> str:
    """Hash, sixteen hexadecimal digits, of the source of a function and of what it needs of its file.

    It needs the definitions of the names in it, of the names in those, and so on, and all statements
    that define no name. `written`, the file's `stamp`, is only a part of the cache's key.
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
    lines = text.split("\n")  # as `ast` counts them; splitlines would also break at form feeds
    parts = ["\n".join(lines[_first(body[i]) - 1 : body[i].end_lineno]) for i in sorted(used)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _first(statement: ast.stmt) -> int:
    """Number of the first line of a statement, its decorators included."""
    return min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Names that a top-level statement defines; for a docstring "", which nothing uses: it is not hashed."""
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
