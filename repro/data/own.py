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
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from repro.config import Code, InputError, given
from repro.data.npz import stamp
from repro.lazy import Lazy

if TYPE_CHECKING:
    from torch import nn

np, torch = Lazy("numpy"), Lazy("torch")  # needed here only for settings of code, and for networks

IMAGES = 4  # in the batch on which a network is tried if no run says how many


def code(what: str | Callable, **settings: object) -> Code:
    """Describe a function for the configuration of a run, without loading its module.

    `what` is `./file.py:function`, `package.module:function` or the function itself, `settings`
    are its keyword arguments: finite numbers (those of NumPy become Python's), strings, booleans
    or None. Raises `InputError` for any others, and if there is no such function.
    """
    where, _, name = place(what).rpartition(":")
    values = tuple((key, _setting(key, value)) for key, value in sorted(settings.items()))
    return Code(name, _source(_file(where), name), values, path=where)


def _setting(name: str, value: object) -> str | float | None:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    shown = " ".join(repr(value).split())[:80]
    raise InputError(f"the setting {name} takes a finite number, text, True, False or None, not {shown}")


def function(known: Code) -> Callable:
    """The function that `known` describes, with its settings bound.

    Raises `InputError` if its source has changed since, or its file is unknown, as in a run from a record.
    """
    if known.path is None or code(f"{known.path}:{known.name}").source != known.source:
        raise InputError(f"{known.name} is not what it was when its runs were planned: {known.path} changed")
    if not callable(made := getattr(module(known.path), known.name, None)):
        raise InputError(f"{known.path}: {known.name} is no function")
    return functools.partial(made, **dict(known.settings))


def module_of(network: nn.Module) -> dict[str, int]:
    """For the name of each tensor of a network's state, the number of its module (see `models.Own`).

    Raises `InputError` if `modules_to_reset` is no list of names that begin a module each.
    """
    names, listed = list(network.state_dict()), getattr(network, "modules_to_reset", None)
    if not isinstance(listed, list | tuple | None):
        raise InputError(f"modules_to_reset takes a list of names of modules, not {kind(listed)}")
    starts = list(dict.fromkeys(listed or [name.split(".")[0] for name in names]))
    found, current = {}, 0
    for name in names:
        begun = [i for i, start in enumerate(starts, 1) if f"{name}.".startswith(f"{start}.")]
        current = found[name] = begun[0] if begun else current
    if unknown := [start for i, start in enumerate(starts, 1) if i not in found.values()]:
        allowed = ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
        raise InputError(f"modules_to_reset has {unknown[0]!r}, which names no module: choose from {allowed}")
    return found


@functools.cache
def module_sizes(known: Code, channels: int, classes: int, side: int) -> Counter[int]:
    """How many values, parameters and buffers, each module of a user-supplied network has; it is `tried`."""
    network, found = tried(known, channels, classes, side), Counter()
    numbers = module_of(network)
    for name, tensor in network.state_dict().items():
        found[numbers[name]] += tensor.numel()
    return found


def modules(known: Code, channels: int, classes: int, side: int) -> tuple[int, ...]:
    """Numbers of the modules of a user-supplied network that can be re-initialised; it is `tried`."""
    return tuple(sorted(module_sizes(known, channels, classes, side).keys() - {0}))


def tried(known: Code, channels: int, classes: int, side: int, batch: int = IMAGES) -> nn.Module:
    """A new user-supplied network on the CPU, after trials of another one, drawn with the same seed.

    The trials are a forward and a backward pass in training mode, of `batch` images of `side` x `side`
    pixels, and a forward pass in evaluation mode, of one image. Raises `InputError` if anything fails.
    """
    make, drawn = function(known), []
    with refused(known.path, known.name), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        for _ in range(2):
            torch.random.default_generator.manual_seed(0)
            drawn.append(make(channels, classes, side))
        made, other = drawn
        if not isinstance(made, torch.nn.Module):
            raise InputError(f"it returns {kind(made)}, not a torch.nn.Module")
        state = made.state_dict()
        if any(name.endswith("_extra_state") for name in state):
            raise InputError("it has a get_extra_state, but only tensors of its state are kept")
        if any(map(torch.nn.parameter.is_lazy, state.values())):
            raise InputError("its size cannot be told: it has lazy layers")
        if any(tensor.is_complex() for tensor in state.values()):
            raise InputError("it has complex weights, but only real ones can be trained")
        if not any(parameter.requires_grad for parameter in made.parameters()):
            raise InputError("it has no weights to train")
        shared = {*made.parameters()} & {*other.parameters()}
        if shared or not all(map(torch.equal, state.values(), other.state_dict().values())):
            raise InputError("it must build a new network each time, with weights drawn by PyTorch alone")
        module_of(made)  # raises an error if the names of modules are wrong
        for n, training in ((batch, True), (1, False)):
            with torch.set_grad_enabled(training):
                logits = other.train(training)(torch.randn(n, channels, side, side))
            found = list(logits.shape) if isinstance(logits, torch.Tensor) else kind(logits)
            if found != [n, classes]:
                images = f"{n} images in training" if training else "one image in evaluation"
                raise InputError(f"it gives {found} for {images}, not logits [{n}, {classes}]")
            if training:
                torch.nn.functional.cross_entropy(logits, torch.arange(n) % classes).backward()
    return made


def module(where: str) -> ModuleType:
    """Load the module `where`, a `.py` file or a name; a one-line `InputError` if it is missing or fails."""
    path = _file(where)
    with refused(path):
        return _loaded(path, stamp(path)) if where.endswith(".py") else importlib.import_module(where)


@functools.cache
def _loaded(path: Path, written: object) -> ModuleType:
    name = f"{path.stem}_{hashlib.sha256(f'{path}{written}'.encode()).hexdigest()[:16]}"
    if name in sys.modules:  # it asks for itself while it is loaded
        main = 'put that under `if __name__ == "__main__":`'
        raise InputError(f"{path} trains when it is imported: {main}")
    made = sys.modules[name] = ModuleType(name)  # data classes look it up there
    made.__file__ = str(path)
    try:  # not imported: Python's cached bytecode can miss an edit within the same second
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(made))
    except BaseException:
        del sys.modules[name]
        raise
    return made


@contextlib.contextmanager
def refused(path: str | Path, name: str = "") -> Iterator[None]:
    """Turn whatever a user's code raises into an `InputError` of one line that names its file and function.

    An `InputError` that begins with the file is raised as it is.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, InputError) and str(error).startswith(str(path)):
            raise
        raise InputError(f"{path}: {name}{': ' * bool(name)}{said(error)}") from error


def kind(value: object) -> str:
    """The type of a value in words: None, or for example "a tuple"."""
    return "None" if value is None else f"a {type(value).__name__}"


def said(error: BaseException) -> str:
    """The error in one line of at most 300 characters; its type comes first, except for an `InputError`."""
    name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())[:300]


def place(what: str | Callable) -> str:
    """Where a function is: the absolute path of its file or the name of its module, a colon, and its name.

    Raises `InputError` for all but a name of this form, and a function or a class that a file defines.
    """
    if isinstance(what, str):
        where, _, name = what.rpartition(":")
        if not where or not name.isidentifier():
            raise InputError(f"{what!r} is no function: write ./file.py:function or package.module:function")
        return f"{given(where) if where.endswith('.py') else where}:{name}"
    made = inspect.unwrap(what) if callable(what) else what  # without its decorators
    if not (inspect.isfunction(made) or inspect.isclass(made)):
        raise InputError(
            f"{kind(made)} is no function that a file defines: give the function, or ./file.py:function"
        )
    found = sys.modules.get(made.__module__)
    if found and found.__package__:
        return f"{found.__name__}:{made.__qualname__}"
    with contextlib.suppress(TypeError, OSError):  # for example for a class that was typed in
        if (file := inspect.getsourcefile(made)) and Path(file).is_file():
            return f"{given(file)}:{made.__qualname__}"
    raise InputError(
        f"{made.__qualname__} is in no file: put it in one, as a notebook's %%writefile my_model.py does"
    )


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


def _source(path: Path, name: str) -> str:
    """Hash, sixteen hexadecimal digits, of the source of a function and of what it needs of its file.

    It needs the statements that define the names in it or may change them, those of the names
    in these statements, and so on, and all statements that may change anything (see `_bound`).
    """
    try:
        text = importlib.util.decode_source(path.read_bytes())
        body = ast.parse(text).body
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: {said(error)}") from error
    bound = [_bound(statement) for statement in body]
    if not any(name in names for names in bound):
        functions = ", ".join(s.name for s in body if isinstance(s, ast.FunctionDef)) or "none"
        raise InputError(f"{path} has no {name!r}; its functions: {functions}")
    wanted, used = {name, "*"}, set()
    while found := [i for i, names in enumerate(bound) if i not in used and names & wanted]:
        used.update(found)
        wanted |= {n.id for i in found for n in ast.walk(body[i]) if isinstance(n, ast.Name)}
    lines = text.split("\n")  # as `ast` counts them; splitlines would also break at form feeds
    parts = ["\n".join(lines[_first(body[i]) - 1 : body[i].end_lineno]) for i in sorted(used)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _first(statement: ast.stmt) -> int:
    """Number of the first line of a statement, its decorators included."""
    return min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])


def _bound(statement: ast.stmt) -> set[str]:
    """Names that a top-level statement defines or may change, among them "*" if it may change anything.

    An assignment that calls something may change all names in it. A docstring, and what runs only
    if the file is executed as a script, change nothing.
    """
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {statement.name}
        case ast.Expr(ast.Constant()):
            return set()
        case ast.If(ast.Compare(ast.Name("__name__"), [ast.Eq()], [ast.Constant("__main__")]), orelse=[]):
            return set()
    nodes, found = list(ast.walk(statement)), set()
    for node in nodes:
        if isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) and found:
        calls = any(isinstance(node, ast.Call) for node in nodes)
        return found | {node.id for node in nodes if calls and isinstance(node, ast.Name)}
    return found if isinstance(statement, ast.Import | ast.ImportFrom) else found | {"*"}
