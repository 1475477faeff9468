"""Scales at which the same studies run, from seconds on a laptop to the paper itself."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_type_hints

from repro.config import MODULES, Dataset, InputError, Model, Optimizer, Stage, Subset
from repro.data import own
from repro.data.downloads import SOURCES
from repro.data.places import given, is_folder

MOST, MOST_SEEDS = 1_000_000_000, 1000  # whose plan takes a minute to make

OWN = "own"  # name of all data of one's own


@dataclass(frozen=True)
class Profile:
    """Data set, network, budget and seeds of every study, the paper's by default."""

    name: str
    dataset: str = "cifar10"  # a name known to `repro.data.datasets`, or the path of an .npz file or a folder
    train: int | None = None  # images, None for all
    test: int | None = None
    noise: float = 0.0  # standard deviation of the pixel noise, digits only
    width: int = 64
    depth: int = 2
    batch_size: int = 128
    learning_rate: float = 0.001  # of Adam; those of the other optimisers are tied to it (`optimizers`)
    pretraining_epochs: int = 350
    tuning_epochs: int = 500
    window: int = 100  # last epochs of the tuning stage that make the test accuracy
    seeds: int = 5  # of the first study
    study_seeds: int = 5  # of each other study
    full_grids: bool = True  # the grids of the paper, and all 64 subsets of modules, or smaller ones
    controls: bool = True  # the arms that the protocol added to the paper's, and the new probes
    least: bool = False  # the smallest grids of all, for a book in minutes
    base: str = "Adam"  # the optimiser of every study but those that compare optimisers
    first_seed: int = 0
    arm_epochs: int | None = None  # epochs of tuning in all but the first study, None for `tuning_epochs`
    until: float = 0.99  # train accuracy at which a stage before the last ends (paper, appendix A.3)
    own_samples: bool = False  # each seed has training images of its own, where not all are used
    sparse_tests: bool = False  # test early epochs seldom (`config.Run.tested`)
    median: bool = False  # test accuracy is the median over the window, not the mean
    exploratory: bool = False  # its records were seen before the present rules were made
    size: int = 32  # side in pixels to which the images of a folder are scaled
    split: int = 0  # seed by which test images are set apart, where one's own data have none
    model: str = ""  # of one's own: ./file.py:function or package.module:function; else the paper's ResNet
    model_settings: tuple[tuple[str, object], ...] = ()  # of that function

    def __post_init__(self) -> None:
        if self._own:
            object.__setattr__(self, "dataset", str(given(self.dataset)))
        if ".py:" in self.model:
            object.__setattr__(self, "model", str(given(self.model)))
        # The configuration's own checks, before anything is trained.
        _ = self.network, self.optimizers
        if self.base not in self.optimizers:
            raise InputError(f"base takes one of {', '.join(self.optimizers)}, not {self.base!r}")
        Dataset(self.dataset, self.train, self.test, self.noise), Stage(1, until=self.until)
        for field in (name for name, kind in FIELDS.items() if kind in (int, int | None)):
            value, least = getattr(self, field), field not in ("first_seed", "split")
            most = MOST_SEEDS if field in ("seeds", "study_seeds") else MOST
            if value is not None and value < least:
                raise InputError(f"{field} must be at least {least:d}, not {value}")
            if value is not None and value > most:
                raise InputError(f"{field} must be at most {most}, not {value}")
        if self.window > self.arms_tuned:
            name = "tuning_epochs" if self.arms_tuned == self.tuning_epochs else "arm_epochs"
            raise InputError(f"window ({self.window}) is longer than {name} ({self.arms_tuned})")

    @property
    def _own(self) -> bool:
        """Whether the data are of one's own, in a file or a folder."""
        named = self.dataset in ("digits", *SOURCES)
        found = (
            Path(self.dataset).suffix or os.sep in self.dataset or (self.dataset and is_folder(self.dataset))
        )
        return bool(found) and not named

    @property
    def arms_tuned(self) -> int:
        """Epochs of tuning in all but the first study."""
        return min(self.tuning_epochs, self.arm_epochs or self.tuning_epochs)

    @property
    def network(self) -> Model:
        """What is trained, unless an arm of a study says otherwise."""
        if not self.model:
            if self.model_settings:
                raise InputError(
                    "model.NAME=VALUE is a setting of a model of one's own: name it by model=..."
                )
            return Model(self.width, self.depth)
        return Model(code=own.code(self.model, **dict(self.model_settings)))

    @property
    def modules(self) -> tuple[int, ...]:
        """Numbers of the modules of the network; one of one's own is built, so as to count them."""
        if not self.model:
            return MODULES
        from repro.data import datasets
        from repro.training import models

        side, channels, classes = datasets.shape(self.data())
        return models.modules(self.network, channels, classes, side)

    def data(self, seed: int = 0) -> Dataset:
        """The data set of this profile and seed; a file is read, so that its content is in the id.

        Not its name, unless the store has records from before that was so.
        """
        if self._own:
            from repro.data import datasets, folders
            from repro.store import records

            path = Path(self.dataset)
            path = folders.of_folder(path, self.size) if is_folder(path) else path
            found = datasets.npz_dataset(path, self.train, self.test, self.split)
            named = records.names_of(found.fingerprint, records.Store.of(self.name).folder)
            name = found.name if found.name in named else min(named, default=OWN)
            found = replace(found, name=name)
        else:
            noise = self.noise if self.dataset == "digits" else 0.0
            found = Dataset(self.dataset, self.train, self.test, noise)
        return replace(found, sample=seed) if self.own_samples else found

    def stage(self, epochs: int, data: Subset, **settings: object) -> Stage:
        """A stage with this profile's base optimiser, unless `settings` name another one."""
        return Stage(epochs, data, **{"optimizer": self.optimizer, **settings})

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Four optimisers, rates tied to that of Adam, all that the paper gives."""
        rate = self.learning_rate
        return {
            "Adam": Optimizer("adam", rate),
            "RMSprop": Optimizer("rmsprop", rate),
            "SGD": Optimizer("sgd", 100 * rate),
            "SGD with momentum": Optimizer("sgd", 10 * rate, momentum=0.9),
        }

    @property
    def optimizer(self) -> Optimizer:
        """The base optimiser."""
        return self.optimizers[self.base]

    def at_rate(self, factor: float, **changes: object) -> Optimizer:
        """The base optimiser at so many times its rate."""
        rate = factor * self.optimizer.learning_rate
        return replace(self.optimizer, learning_rate=rate, **changes)


FIELDS = get_type_hints(Profile)
_DIGITS = Profile(
    name="quick",
    dataset="digits",
    train=1000,
    test=1000,
    noise=0.3,
    width=12,
    depth=1,
    batch_size=32,
    learning_rate=0.002,  # SGD at 0.2: see the protocol for how it was chosen
    base="SGD",
    pretraining_epochs=20,
    tuning_epochs=20,
    window=5,
    seeds=8,
    study_seeds=3,
    full_grids=False,
    controls=False,
    least=True,
    first_seed=100,
)
_SMALL = Profile(
    name="cifar10-small",
    train=3000,
    width=16,
    depth=1,
    batch_size=64,
    pretraining_epochs=20,
    tuning_epochs=20,
    window=5,
    full_grids=False,
)
PROFILES = {
    profile.name: profile
    for profile in (
        replace(
            _DIGITS,
            name="smoke",
            noise=0.2,
            learning_rate=0.001,
            base="Adam",
            first_seed=0,
            until=1.0,
            train=160,
            test=128,
            width=4,
            batch_size=16,
            pretraining_epochs=2,
            tuning_epochs=3,
            window=2,
            seeds=3,
            controls=True,
            least=False,
        ),
        replace(_DIGITS, name="minutes", seeds=5),
        _DIGITS,
        replace(_DIGITS, name="digits", study_seeds=8, controls=True, least=False),
        replace(_SMALL, name="laptop", test=2000, controls=False, until=1.0, exploratory=True),
        replace(_SMALL, seeds=8, first_seed=100, own_samples=True, sparse_tests=True, median=True),
        Profile("cifar10", width=16, pretraining_epochs=50, tuning_epochs=75, arm_epochs=45, window=10),
        Profile("cifar10-wide", pretraining_epochs=25, tuning_epochs=35, window=5, full_grids=False),
        Profile("paper"),
    )
}
# A claim is told at the first that is whole.
LARGEST_FIRST = ("paper", "cifar10-wide", "cifar10", "cifar10-small", "laptop", "digits", "quick")
PUBLISHED = "published"  # for a chapter: what is recorded of a study, at the largest scale that is whole


def profile(name: str, settings: Iterable[str] = (), seeds: int | None = None) -> Profile:
    """The named profile with `field=value` settings applied; raises `InputError` on any mistake."""
    if not isinstance(name, str) or name not in PROFILES:
        raise InputError(f"unknown profile {name!r}: choose from {', '.join(PROFILES)}")
    settings = list(settings)
    owned = [text for text in settings if str(text).lstrip().startswith("model.")]
    changes = dict(_setting(text) for text in settings if text not in owned)
    if owned:
        changes["model_settings"] = tuple(map(_own_setting, owned))
    if seeds is not None:
        changes |= {"seeds": seeds, "study_seeds": seeds}
    found = replace(PROFILES[name], **changes)
    if {"dataset", "train", "test"} & changes.keys():
        from repro.data import datasets

        datasets.counts(found.data())  # refuses images that there are not
    return found


def scale(name: str, seeds: int | str | None = None, settings: str | Sequence[str] | None = ()) -> Profile:
    """The named profile, changed as a chapter's parameters say.

    Papermill may pass numbers as text or with a point ("3", 3.0), and lists as one text: all
    are taken. `seeds` is how many, None for the profile's own number; `settings` change
    fields: ["width=16", "train=500"], or "width=16, train=500".
    """
    if seeds is not None and not re.fullmatch(r"\d{1,9}(\.0)?", str(seeds)):
        raise InputError(
            f"seeds takes a whole number from 1, or None for those of the profile, not {seeds!r}"
        )
    if isinstance(settings, str):
        settings = filter(
            None, re.split(r",\s*(?=[\w.]+\s*=|$)", settings)
        )  # not within a path that has a comma
    chosen = settings if isinstance(settings, Iterable) else filter(None, [settings])
    return profile(name, chosen, None if seeds is None else int(float(seeds)))


def _setting(text: str) -> tuple[str, object]:
    field, equals, value = (part.strip() for part in str(text).partition("="))
    allowed = [name for name in FIELDS if name not in ("name", "model_settings")]
    if not equals or field not in allowed:
        raise InputError(
            f"unknown setting {text!r}: write field=value with a field from {', '.join(allowed)}, model.NAME"
        )
    kind = FIELDS[field]
    if kind is str:
        return field, value
    if kind is bool:
        if value not in ("true", "false"):
            raise InputError(f"{field} takes true or false, not {value!r}")
        return field, value == "true"
    optional = kind == int | None
    if optional and value == "all":
        return field, None
    number = float if kind is float else int
    try:
        return field, number(value)
    except ValueError:
        allowed = ("a number" if kind is float else "a whole number") + (" or all" if optional else "")
        raise InputError(f"{field} takes {allowed}, not {value!r}") from None


def _own_setting(text: str) -> tuple[str, object]:
    """Name and value of `model.name=value`: a whole number, a number, true or false, or a text."""
    name, equals, value = (part.strip() for part in text.partition("model.")[2].partition("="))
    if not (equals and name.isidentifier()):
        raise InputError(f"{text!r} sets nothing: write model.name=value")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, {"true": True, "false": False}.get(value, value)


def changes(profile: Profile) -> list[str]:
    """The `field=value` settings that make this profile of the named one."""
    base = asdict(PROFILES[profile.name])
    values = {name: v for name, v in asdict(profile).items() if v != base[name]}
    values |= {f"model.{name}": v for name, v in values.pop("model_settings", ())}
    words = {None: "all", True: "true", False: "false"}
    return [f"{name}={words[v] if v is None or isinstance(v, bool) else v}" for name, v in values.items()]
