"""The configuration of a run: frozen data classes, hashed to the run's id.

A run is one network's training in stages. What the paper compares is data, never
a branch in code: a fresh network has one stage, a warm start has two, and one whose
modules 4 to 6 are re-initialised has `reset=(4, 5, 6)` on the second stage.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

MODULES = (1, 2, 3, 4, 5, 6)  # 1 first convolution, 2-5 groups of blocks, 6 last linear layer
PROBES = ("gradient_noise", "sharpness", "noise", "curvature")  # see `repro.training.probes`
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bf16", "float64")


class InputError(ValueError):
    """A request that cannot be met; its message is one line that says what is allowed."""


def given(path: str | Path) -> Path:
    """A path given by the user, made absolute, with `~` expanded.

    Chapters are executed in another folder, where a relative path would mean another
    file. Raises `InputError` on a `~` of no known home folder and on a character 0.
    """
    if "\0" in str(path):
        raise InputError(f"no path has the character 0, as {str(path)!r} does")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise InputError(f"no home folder is known for the ~ of {path}: give the whole path") from None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def check_engine(device: str, precision: str) -> None:
    """Raise `InputError` if a name is unknown; `auto` is allowed for both."""
    _require_known("device", device, DEVICES)
    _require_known("precision", precision, ("auto", *PRECISIONS))


def _require_known(kind: str, name: str, known: tuple[str, ...]) -> None:
    _require(name in known, f"unknown {kind} {name!r}: choose from {', '.join(known)}")


def _require_least(owner: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(value >= least, f"{name} must be at least {least}, not {value}")


WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "True or False",
    "Code": "code(FUNCTION)",
}


@functools.cache
def _types(owner: type) -> list[tuple[str, bool, tuple[type, ...]]]:
    """Of each field the name, whether it is a tuple, and the types of its value or of the tuple's items."""
    hints = get_type_hints(owner).items()
    return [(name, get_origin(kind) is tuple, get_args(kind) or (kind,)) for name, kind in hints]


def _fit_types(owner: object) -> None:
    """Raise `InputError` unless each field has its type; a whole number of another type becomes an `int`."""
    for name, many, kinds in _types(type(owner)):
        value = getattr(owner, name)
        if many:
            _require(isinstance(value, Iterable), f"{name} takes a tuple, not {value!r}")
            object.__setattr__(owner, name, tuple(_fitted(name, kinds[0], item) for item in value))
        elif type(value) not in kinds:
            object.__setattr__(owner, name, _fitted(name, kinds[0], value))


def _fitted(name: str, kind: type, value: object) -> object:
    if kind in (int, float) and isinstance(value, Real) and (kind is float or value % 1 == 0):
        return kind(value)
    said = WORDS.get(kind.__name__, f"of class {kind.__name__}")
    _require(isinstance(value, kind), f"{name} must be {said}, not {value!r}")
    return value


@dataclass(frozen=True)
class Dataset:
    """Images to learn from: named in `repro.data.datasets`, or from an `.npz` file."""

    name: str
    train: int | None = None  # number of training images, None for all of them
    test: int | None = None
    noise: float = 0.0  # standard deviation of the pixel noise (digits only)
    fingerprint: str | None = None  # of an .npz file: hash of its arrays
    path: str | None = field(default=None, compare=False)  # of that file, not in ids
    sample: int = 0  # number of the random sample of `train` images
    held_out: bool = False  # test on training images that are not trained on
    split: int | None = None  # seed that splits off test images if there are none

    def __post_init__(self) -> None:
        _fit_types(self)
        for split in ("train", "test"):
            n = getattr(self, split)
            _require(n is None or n >= 2, f"{split} must be at least 2 images, not {n}")
        _require(0 <= self.noise < math.inf, f"noise must be finite and not negative, not {self.noise}")
        _require_least(self, 0, "sample", *["split"] * (self.split is not None))


@dataclass(frozen=True)
class Code:
    """A user-supplied function (`repro.data.own`); its place is not part of an id."""

    name: str
    source: str  # hash of the function and of what it uses in its file
    settings: tuple[tuple[str, object], ...] = ()  # arguments: text, number or bool
    path: str | None = field(default=None, compare=False)  # absolute; or a module


@dataclass(frozen=True)
class Model:
    """A ResNet (base width, blocks per module; appendix A.4), or a custom network."""

    width: int = 64
    depth: int = 2
    code: Code | None = None  # (channels, classes, image side) -> network

    def __post_init__(self) -> None:
        _fit_types(self)
        _require_least(self, 1, "width", "depth")


@dataclass(frozen=True)
class Optimizer:
    """An optimiser, whose state is new at the start of every stage.

    The learning rate is constant, as everywhere in the paper, or (`cosine`) falls
    from epoch to epoch along half a cosine that is zero at the end of the stage.
    """

    name: str = "adam"
    learning_rate: float = 0.001
    momentum: float = 0.0
    schedule: str = "constant"
    weight_decay: float = 0.0  # decoupled: a step scales weights by 1 - rate * this

    def __post_init__(self) -> None:
        _fit_types(self)
        rate, decay = self.learning_rate, self.weight_decay
        _require_known("optimizer", self.name, ("adam", "rmsprop", "sgd"))
        _require(0 < rate < math.inf, f"learning_rate must be positive, not {rate}")
        _require_known("schedule", self.schedule, ("constant", "cosine"))
        _require(0 <= decay < math.inf, f"weight_decay must not be negative, not {decay}")
        _require(0 <= self.momentum < 1, f"momentum must lie in [0, 1), not {self.momentum}")
        _require(self.name == "sgd" or not self.momentum, f"momentum is for sgd, not for {self.name}")


@dataclass(frozen=True)
class Subset:
    """The part of the training set that a stage draws from (paper, appendix A.3).

    The training set arrives in `parts` portions and the stage sees the first
    `part` of them. A fraction `ratio` of the images is dealt out uniformly at
    random, the others class by class: 1 makes every portion an unbiased sample,
    0 gives each portion classes that no other has. With `gamma`, each example is
    drawn by itself: from the whole training set with a probability that grows during
    the stage, otherwise from this subset (paper, Figure 3).
    """

    part: int = 1
    parts: int = 1
    ratio: float = 1.0
    gamma: float | None = None

    def __post_init__(self) -> None:
        _fit_types(self)
        _require_least(self, 1, "part", "parts")
        _require(1 <= self.part <= self.parts, f"part must lie in 1..{self.parts}, not {self.part}")
        _require(0 <= self.ratio <= 1, f"ratio must lie in [0, 1], not {self.ratio}")
        _require(self.gamma is None or 0 < self.gamma < 1, f"gamma must lie in (0, 1), not {self.gamma}")


ALL = Subset()
HALF = Subset(part=1, parts=2)


@dataclass(frozen=True)
class Stage:
    """Some epochs on one subset with one optimiser, after changes to the network.

    The changes, in this order: every parameter becomes `shrink` times itself plus
    `perturb` times that of a new network (Ash and Adams, 2020), the modules in `reset`
    are re-initialised, and a custom `hook`, `(network, generator) -> None`, is called.
    """

    epochs: int
    data: Subset = ALL
    optimizer: Optimizer = Optimizer()
    reset: tuple[int, ...] = ()
    until: float | None = None  # train accuracy at which the stage ends early
    shrink: float = 1.0
    perturb: float = 0.0
    hook: Code | None = None
    shift: int = 0  # most pixels that training images move at random; edges repeat
    flip: bool = False  # mirror training images at random

    def __post_init__(self) -> None:
        _fit_types(self)
        _require_least(self, 1, "epochs")
        _require_least(self, 0, "shift")
        _require(self.until is None or 0 < self.until <= 1, f"until must lie in (0, 1], not {self.until}")
        _require(all(m >= 1 for m in self.reset), f"reset takes modules from 1 on, not {sorted(self.reset)}")
        _require(0 <= self.shrink <= 1, f"shrink must lie in [0, 1], not {self.shrink}")
        _require(0 <= self.perturb < math.inf, f"perturb must not be negative, not {self.perturb}")
        object.__setattr__(self, "reset", tuple(sorted(set(self.reset))))

    @property
    def prefixed(self) -> bool:
        """Whether a shorter version of this stage is the same as its first epochs."""
        return self.data.gamma is None and self.until is None and self.optimizer.schedule == "constant"


@dataclass(frozen=True)
class Run:
    """One network's training in one or more stages, its seeds and its measurements."""

    dataset: Dataset
    model: Model
    stages: tuple[Stage, ...]
    batch_size: int = 128
    split_seed: int = 0  # chooses the images of a subset
    init_seed: int = 0  # first weights, and those of re-initialised modules
    order_seed: int = 0  # order of the examples
    probes: tuple[str, ...] = ()  # names from `PROBES`: what to measure at the end
    test_window: int | None = None  # None: test after each epoch; else see `tested`

    def __post_init__(self) -> None:
        _fit_types(self)
        _require(bool(self.stages), "a run needs at least one stage")
        first = self.stages[0]
        _require(
            (first.reset, first.shrink, first.perturb, first.hook) == ((), 1.0, 0.0, None),
            "the first stage starts from new weights: nothing to reset, shrink, perturb or hook into",
        )
        reset = sorted(set().union(*(stage.reset for stage in self.stages)))
        _require(
            self.model.code is not None or set(reset) <= set(MODULES),
            f"reset takes modules from 1 to 6, not {reset}",
        )
        _require_least(self, 2, "batch_size")
        _require_least(self, 0, "split_seed", "init_seed", "order_seed")
        _require(set(self.probes) <= set(PROBES), f"probes are {', '.join(PROBES)}, not {self.probes}")
        _require(self.test_window is None or self.test_window >= 1, "test_window must be at least 1")
        object.__setattr__(self, "probes", tuple(sorted(set(self.probes))))

    @functools.cached_property
    def parent(self) -> Run | None:
        """The run that the last stage continues; None if that is the only stage."""
        before = self.stages[:-1]
        return dataclasses.replace(self, stages=before, probes=()) if before else None

    def tested(self, epoch: int) -> bool:
        """Whether the network is tested after this epoch of the last stage; the first one is 1.

        It is after all epochs, or with a `test_window` of n after the Fibonacci numbers 1, 2,
        3, 5, 8, ... and the last n. (An epoch that ends the stage early is tested too.)
        """
        epochs = self.stages[-1].epochs
        if self.test_window is None or epoch > epochs - self.test_window:
            return epoch <= epochs
        number, following = 1, 2
        while number < epoch:
            number, following = following, number + following
        return number == epoch

    @functools.cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits that name the run: the hash of its configuration.

        Fields at their default are left out, so that a field added later changes no id.
        """
        text = json.dumps(as_json(self, defaults=False), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _fields(kind: type) -> list[tuple[str, object]]:
    """Names and defaults of the fields that are part of an id."""
    return [(f.name, f.default) for f in dataclasses.fields(kind) if f.compare]


def as_json(value: object, *, defaults: bool = True) -> object:
    """The configuration as JSON data, without paths, and with or without defaults."""
    if dataclasses.is_dataclass(value):
        named = ((name, default, getattr(value, name)) for name, default in _fields(type(value)))
        return {name: as_json(v, defaults=defaults) for name, default, v in named if defaults or v != default}
    if isinstance(value, tuple):
        return [as_json(v, defaults=defaults) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1.0 and 1 are one setting and must give one id
    return value


def run_from_json(data: dict) -> Run:
    """Inverse of `as_json`; bad data raise `InputError`, `TypeError` or `KeyError`."""
    stages = tuple(
        Stage(
            **{
                **stage,
                "data": Subset(**stage.get("data", {})),
                "optimizer": Optimizer(**stage.get("optimizer", {})),
                "reset": tuple(stage.get("reset", ())),
                "hook": _code(stage.get("hook")),
            }
        )
        for stage in data["stages"]
    )
    model = Model(**{**data["model"], "code": _code(data["model"].get("code"))})
    return Run(**{**data, "dataset": Dataset(**data["dataset"]), "model": model, "stages": stages})


def _code(data: dict | None) -> Code | None:
    settings = tuple((name, value) for name, value in (data or {}).get("settings", ()))
    return data and Code(**{**data, "settings": settings})
