"""A question's list of runs: which networks are trained at a profile, and in which role."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, wraps

from repro.config import ALL, HALF, InputError, Model, Run, Stage
from repro.scales import Profile

FRESH, WARM = "fresh", "warm start"
CONTROL = "control"  # in place of a figure, in what is not the paper's
LONGER, REPLACED = "fresh, as many steps", "with replacement"  # controls
LAST = 9  # priority of all that the other runs do not wait for
HELD_OUT_SEEDS = 3


@dataclass(frozen=True)
class Case:
    """A run in its role within a study: condition, seed that pairs it with others, plotted factors."""

    condition: str
    seed: int
    run: Run
    factors: dict[str, object] = field(default_factory=dict)
    epochs: int | None = None  # of the last stage, if not all count: the beginning of a longer run
    priority: int = LAST  # of all that there is to train, the lower comes first


@dataclass(frozen=True)
class Arm:
    """A condition of a study, and what a run of it is at every seed."""

    condition: str
    stages: tuple[Stage, ...]
    factors: dict[str, object] = field(default_factory=dict)
    model: Model | None = None  # None for the profile's
    probes: tuple[str, ...] = ()
    held_out: bool = False  # tested on held-out training images, at a few seeds
    priority: int = LAST


@dataclass(frozen=True)
class Explored:
    """A factor whose values readers choose in the book's explorer, and how they do."""

    factor: str
    label: str  # of the control
    words: Callable[[str], str]  # a value in words
    control: str = "slider"  # or "menu", or "boxes" to tick, of which a value such as "456" names three
    boxes: Mapping[str, str] = field(default_factory=dict)  # what each box is called, by its one character
    start: str = ""  # the value that is shown first, if it is recorded
    wider: Mapping[str, object] = field(default_factory=dict)  # profile settings under which all is offered


@dataclass(frozen=True)
class Study:
    """One question of the paper."""

    name: str
    question: str
    figures: str  # of the paper
    chapter: str
    cases: Callable[[Profile], list[Case]]
    pairs: tuple[str, ...] = ()  # factors that a pretrained run shares with its fresh one, besides the seed
    explored: tuple[Explored, ...] = ()  # if none, all factors are offered, under their names

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", cache(self.cases))  # the id of each run is a hash to compute


def crossed(arms: Callable[[Profile], Iterable[Arm]], first: bool = False) -> Callable[[Profile], list[Case]]:
    """The cases of a study: each of its arms at each seed that the profile has for it."""

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
    """Stages of a longer run of which these are the beginning, and how many epochs of its last one count.

    Fresh networks, warm starts and those with modules 3 to 6 re-initialised are
    tuned for all of `tuning_epochs`, also where other conditions are tuned for
    fewer: at a constant rate the beginning of a run is a run.
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
    """Tuning of a fresh network for as many steps as a warm start has in both stages, the first on half."""
    return tuning(profile, epochs=profile.arms_tuned + round(profile.pretraining_epochs / 2), **settings)


def pair(profile: Profile, factors: Mapping[str, object] | None = None, **settings: object) -> list[Arm]:
    """The fresh network and the warm start, as in Figure 1 but for settings of the arms or of all stages."""
    own = {name: settings.pop(name) for name in ("model", "priority", "held_out") if name in settings}
    half, tuned = pretraining(profile, **settings), tuning(profile, **settings)
    chosen = dict(factors or {})
    return [Arm(FRESH, (tuned,), chosen, **own), Arm(WARM, (half, tuned), chosen, **own)]


def own_rate_factors(profile: Profile) -> tuple[float, ...]:
    """Rates, times the base rate, among which each arm is given its own.

    Adam's base rate is the paper's, and fresh networks gain by a larger one; that of SGD
    was chosen for fresh networks.
    """
    return (1, 3, 10) if profile.base == "Adam" else (0.5, 1, 2, 4)


def reset_condition(modules: tuple[int, ...]) -> str:
    """A name for a warm start with these modules re-initialised: `reset 4 5 6`."""
    return " ".join(["reset", *map(str, modules)]) if modules else WARM


def factor_text(value: object) -> str:
    """A value of a factor as commands and pages write it."""
    return value if isinstance(value, str) else f"{value:g}"


def only(study: Study, cases: Iterable[Case], chosen: Mapping[str, str]) -> list[Case]:
    """The cases with these values of factors, and those with which they are compared.

    These lack the factor, or are fresh and paired without regard to it. Raises `InputError`
    on a factor or a value that the study does not have.
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
