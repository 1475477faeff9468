"""Studies: the runs that answer a question at a profile (a scale), and their roles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from typing import Any

from repro.config import ALL, HALF, InputError, Model, Run, Stage
from repro.scales import Profile

FRESH, WARM = "fresh", "warm start"
CONTROL = "control"  # in place of the paper's figure, for what it does not have
LONGER, REPLACED = "fresh, as many steps", "with replacement"  # control conditions
LAST = 9  # priority of runs that a scale can lack and still be published
HELD_OUT_SEEDS = 3  # how many seeds an arm with `held_out` has at most


@dataclass(frozen=True)
class Case:
    """A run in its role within a study; the seed pairs it with runs of other arms."""

    condition: str
    seed: int
    run: Run
    factors: dict[str, object] = field(default_factory=dict)
    epochs: int | None = None  # how many of the last stage count, if not all
    priority: int = LAST  # lower numbers are trained first


@dataclass(frozen=True)
class Arm:
    """A condition that a study compares: what is common to its runs, one per seed."""

    condition: str
    stages: tuple[Stage, ...]
    factors: dict[str, object] = field(default_factory=dict)
    model: Model | None = None  # None for the profile's
    probes: tuple[str, ...] = ()
    held_out: bool = False  # tested on held-out training images, at few seeds
    priority: int = LAST


@dataclass(frozen=True)
class Explored:
    """A factor whose value readers choose in the book's explorer, by a control."""

    factor: str
    label: str  # of the control
    words: Callable[[str], str]  # turns a value into words
    control: str = "slider"  # or "menu", or "boxes": "456" ticks three
    boxes: Mapping[str, str] = field(default_factory=dict)  # label of each character
    start: str = ""  # value shown first, if it is recorded
    # Changes of the profile, with which the study has all values to offer.
    wider: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Runs that answer one question of the paper, or a user's own."""

    name: str
    question: str
    figures: str  # of the paper
    chapter: str
    cases: Callable[[Profile], list[Case]]
    pairs: tuple[str, ...] = ()  # factors, besides the seed, in which gaps pair runs
    explored: tuple[Explored, ...] = ()  # if empty, all factors, under their names
    # Whether `Results` answer the question. If None, they do with all runs for which a claim waits.
    answered: Callable[[Any], bool] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", cache(self.cases))  # hashing runs is slow


def crossed(arms: Callable[[Profile], Iterable[Arm]], first: bool = False) -> Callable[[Profile], list[Case]]:
    """A function that lists a study's cases: each arm at each of the profile's seeds.

    The `first` study has `seeds` of them, others `study_seeds`; `held_out` arms fewer.
    """

    @wraps(arms)
    def cases(profile: Profile) -> list[Case]:
        made, chosen = [], list(arms(profile))
        seeds = profile.seeds if first else profile.study_seeds
        for seed in range(profile.first_seed, profile.first_seed + seeds):
            few = seed < profile.first_seed + HELD_OUT_SEEDS
            made += [_case(profile, seed, arm) for arm in chosen if few or not arm.held_out]
        return made

    return cases


def _case(profile: Profile, seed: int, arm: Arm) -> Case:
    stages, epochs = arm.stages, None
    if not (arm.probes or arm.model or arm.held_out):
        stages, epochs = _as_recorded(profile, stages)
    run = Run(
        dataset=replace(profile.data(seed), held_out=arm.held_out),
        model=arm.model or profile.network,
        stages=stages,
        batch_size=profile.batch_size,
        split_seed=seed,
        init_seed=seed,
        order_seed=seed,
        probes=arm.probes,
        test_window=profile.window if profile.sparse_tests else None,
    )
    return Case(arm.condition, seed, run, dict(arm.factors), epochs, arm.priority)


def _as_recorded(profile: Profile, stages: tuple[Stage, ...]) -> tuple[tuple[Stage, ...], int | None]:
    """The stages to train, and how many epochs of the last one count (None for all).

    Fresh networks, warm starts and warm starts with modules 3 to 6 re-initialised are
    always tuned for `tuning_epochs`. If a study wants fewer, the beginning of that
    run serves: at a constant learning rate, it is what a shorter run would be.
    """
    tuned, wanted = tuning(profile, epochs=profile.tuning_epochs), stages[-1].epochs
    long = (
        (tuned,),
        (pretraining(profile), tuned),
        (pretraining(profile), replace(tuned, reset=(3, 4, 5, 6))),
    )
    longer = (*stages[:-1], replace(stages[-1], epochs=profile.tuning_epochs))
    if wanted < profile.tuning_epochs and profile.arms_tuned < profile.tuning_epochs and longer in long:
        return longer, wanted
    return stages, None


def pretraining(profile: Profile, **settings: object) -> Stage:
    return profile.stage(settings.pop("epochs", profile.pretraining_epochs), HALF, **settings)


def tuning(profile: Profile, **settings: object) -> Stage:
    return profile.stage(settings.pop("epochs", profile.arms_tuned), ALL, **settings)


def as_many_steps(profile: Profile, **settings: object) -> Stage:
    """A fresh network's only stage, with the steps of both stages of a warm start."""
    # An epoch of pretraining, on half of the data, has half as many steps.
    return tuning(profile, epochs=profile.arms_tuned + round(profile.pretraining_epochs / 2), **settings)


def pair(profile: Profile, factors: Mapping[str, object] | None = None, **settings: object) -> list[Arm]:
    """The arms of Figure 1; `settings` change both arms or all of their stages."""
    own = {name: settings.pop(name) for name in ("model", "priority", "held_out") if name in settings}
    half, tuned = pretraining(profile, **settings), tuning(profile, **settings)
    chosen = dict(factors or {})
    return [Arm(FRESH, (tuned,), chosen, **own), Arm(WARM, (half, tuned), chosen, **own)]


def own_rate_factors(profile: Profile) -> tuple[float, ...]:
    """Multiples of the base learning rate to try; `Arms.best_rate` chooses among them.

    Adam's base rate is the paper's, and fresh networks gain by a larger one; that of SGD
    was chosen for fresh networks, so that a smaller one is tried too.
    """
    return (1, 3, 10) if profile.base == "Adam" else (0.5, 1, 2, 4)


def reset_condition(modules: tuple[int, ...]) -> str:
    """Condition of a warm start with these modules, or none, reset: `reset 4 5 6`."""
    return " ".join(["reset", *map(str, modules)]) if modules else WARM


def factor_text(value: object) -> str:
    """A factor's value as text, as in commands and on pages: `0.5`, not `0.50`."""
    return value if isinstance(value, str) else f"{value:g}"


def only(study: Study, cases: Iterable[Case], chosen: Mapping[str, str]) -> list[Case]:
    """The cases with the chosen values of factors, and those they are compared with.

    The latter lack the factor, or are fresh networks of any value of it, unless the
    study pairs by that factor. Raises `InputError` on an unknown factor or value.
    """
    cases = list(cases)
    for name, value in chosen.items():
        known = dict.fromkeys(factor_text(case.factors[name]) for case in cases if name in case.factors)
        if not known:
            factors = dict.fromkeys(factor for case in cases for factor in case.factors)
            raise InputError(
                f"{study.name} has no factor {name!r}: choose from {', '.join(factors) or 'none'}"
            )
        if value not in known:
            raise InputError(
                f"{study.name} has no {name} {value!r}: choose from {', '.join(filter(None, known))}"
            )
        shared = name not in study.pairs
        cases = [
            case
            for case in cases
            if factor_text(case.factors.get(name, value)) == value or (shared and case.condition == FRESH)
        ]
    return cases
