"""The paper's questions, each as the list of runs that answers it at a given profile.

Studies share runs: a run in two of them has one id and is trained once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from repro.config import ALL, HALF, MODULES, InputError, Model, Optimizer, Run, Stage, Subset
from repro.profiles import Profile

FRESH, WARM = "fresh", "warm start"


@dataclass(frozen=True)
class Case:
    """A run in its role within a study: condition, seed that pairs it with others, plotted factors."""

    condition: str
    seed: int
    run: Run
    factors: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """One question of the paper."""

    name: str
    question: str
    figures: str  # of the paper
    chapter: str
    cases: Callable[[Profile], list[Case]]
    pairs: tuple[str, ...] = ()  # factors that a pretrained run shares with its fresh one, besides the seed

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", cache(self.cases))  # the id of each run is a hash to compute


def _run(profile: Profile, seed: int, *stages: Stage, **settings: object) -> Run:
    return Run(
        dataset=profile.data(),
        model=settings.pop("model", Model(profile.width, profile.depth)),
        stages=stages,
        batch_size=profile.batch_size,
        split_seed=seed,
        init_seed=seed,
        order_seed=seed,
        **settings,
    )


def _pretraining(profile: Profile, **settings: object) -> Stage:
    return profile.stage(settings.pop("epochs", profile.pretraining_epochs), HALF, **settings)


def _tuning(profile: Profile, **settings: object) -> Stage:
    return profile.stage(settings.pop("epochs", profile.tuning_epochs), ALL, **settings)


def warm_start(profile: Profile) -> list[Case]:
    """Fresh networks, against networks pretrained on half of the data."""
    half, tuning = _pretraining(profile), _tuning(profile)
    conditions = {FRESH: (tuning,), WARM: (half, tuning)}
    return [
        Case(condition, seed, _run(profile, seed, *stages))
        for seed in range(profile.seeds)
        for condition, stages in conditions.items()
    ]


def optimizer_settings(profile: Profile) -> dict[str, Optimizer]:
    """Four optimisers, rates tied to that of Adam, all that the paper gives."""
    rate = profile.learning_rate
    return {
        "Adam": Optimizer("adam", rate),
        "RMSprop": Optimizer("rmsprop", rate),
        "SGD": Optimizer("sgd", 100 * rate),
        "SGD with momentum": Optimizer("sgd", 10 * rate, momentum=0.9),
    }


def optimizers(profile: Profile) -> list[Case]:
    """Fresh and warm-started networks under each optimiser."""
    cases = []
    for seed, (name, optimizer) in itertools.product(
        range(profile.study_seeds), optimizer_settings(profile).items()
    ):
        half, tuning = (make(profile, optimizer=optimizer) for make in (_pretraining, _tuning))
        for condition, stages in {FRESH: (tuning,), WARM: (half, tuning)}.items():
            cases.append(Case(condition, seed, _run(profile, seed, *stages), {"optimizer": name}))
    return cases


def pretraining_lengths(profile: Profile) -> list[int]:
    """Epochs of pretraining to compare, the profile's own last."""
    grid = (1, 2, 5, 10, 20, 50, 100, 200) if profile.full_grids else (1, 5, 10)
    longest = profile.pretraining_epochs
    return [*(n for n in grid if n < longest), longest]


def pretraining_length(profile: Profile) -> list[Case]:
    """One pretraining per seed and optimiser, tuned from its snapshots at several epochs."""
    cases = []
    for seed, (name, optimizer) in itertools.product(
        range(profile.study_seeds), optimizer_settings(profile).items()
    ):
        tuning = _tuning(profile, optimizer=optimizer)
        cases.append(Case(FRESH, seed, _run(profile, seed, tuning), {"optimizer": name}))
        for epochs in pretraining_lengths(profile):
            half = _pretraining(profile, optimizer=optimizer, epochs=epochs)
            factors = {"optimizer": name, "pretraining_epochs": epochs}
            cases.append(Case(WARM, seed, _run(profile, seed, half, tuning), factors))
    return cases


def smooth_transition(profile: Profile) -> list[Case]:
    """One stage whose examples come from all of the data with a growing probability."""
    cases = [case for case in warm_start(profile) if case.seed < profile.study_seeds]
    gammas = (0.1, 0.3, 0.5, 0.7, 0.9) if profile.full_grids else (0.1, 0.5, 0.9)
    for seed, gamma in itertools.product(range(profile.study_seeds), gammas):
        stage = profile.stage(profile.tuning_epochs, replace(HALF, gamma=gamma))
        cases.append(Case("smooth", seed, _run(profile, seed, stage), {"gamma": gamma}))
    return cases


def staged(profile: Profile, parts: int, ratio: float) -> tuple[Stage, ...]:
    """Stages that bring the training set in `parts` portions (paper, appendix A.3).

    All but the last end once every training example is fitted, or at as many
    epochs as the profile pretrains for.
    """
    most = profile.pretraining_epochs
    portions = (Subset(part, parts, ratio) for part in range(1, parts))
    before = (profile.stage(most, portion, until=1.0) for portion in portions)
    return (*before, _tuning(profile))


def stages(profile: Profile) -> list[Case]:
    """The data in several portions, and in two portions of unlike classes."""
    splits = (2, 3, 5, 10) if profile.full_grids else (2, 3, 5)
    ratios = (0.0, 0.25, 0.5, 0.75, 1.0) if profile.full_grids else (0.0, 0.5, 1.0)
    cases = []
    for seed in range(profile.study_seeds):
        cases.append(Case(FRESH, seed, _run(profile, seed, _tuning(profile)), {"parts": 1, "ratio": 1.0}))
        for parts, ratio in dict.fromkeys([*((n, 1.0) for n in splits), *((2, r) for r in ratios)]):
            run = _run(profile, seed, *staged(profile, parts, ratio))
            cases.append(Case("stages", seed, run, {"parts": parts, "ratio": ratio}))
    return cases


def capacity(profile: Profile) -> list[Case]:
    """Fresh and warm networks of several widths and depths (appendix A.4)."""
    base = profile.width
    widths = sorted({max(1, base // 2), base, 2 * base})
    depths = (1, 2, 3) if profile.full_grids else (1, 2)
    seeds, cases = range(profile.study_seeds), []
    half, tuning = _pretraining(profile), _tuning(profile)
    conditions = {FRESH: (tuning,), WARM: (half, tuning)}
    for seed, width, depth in itertools.product(seeds, widths, depths):
        for condition, stages in conditions.items():
            run = _run(profile, seed, *stages, model=Model(width, depth))
            factors = {"width": width, "depth": depth}
            cases.append(Case(condition, seed, run, factors))
    return cases


def subsets_to_reset(profile: Profile) -> list[tuple[int, ...]]:
    """Sets of modules to re-initialise: all 64, or the first k, the last k and each alone."""
    if profile.full_grids:
        return [s for k in range(7) for s in itertools.combinations(MODULES, k)]
    ends = [s for k in range(7) for s in (MODULES[:k], MODULES[6 - k :])]
    return list(dict.fromkeys([*ends, *((m,) for m in MODULES)]))


def reset_condition(modules: tuple[int, ...]) -> str:
    """A name for a warm start with these modules re-initialised: `reset 4 5 6`."""
    return " ".join(["reset", *map(str, modules)]) if modules else WARM


def reset(profile: Profile) -> list[Case]:
    """Warm starts with some modules re-initialised before tuning."""
    cases = []
    for seed in range(profile.study_seeds):
        cases.append(Case(FRESH, seed, _run(profile, seed, _tuning(profile))))
        for modules in subsets_to_reset(profile):
            stages = _pretraining(profile), _tuning(profile, reset=modules)
            run = _run(profile, seed, *stages)
            factors = {"modules": "".join(map(str, modules))}
            cases.append(Case(reset_condition(modules), seed, run, factors))
    return cases


def two_phases(profile: Profile) -> list[Case]:
    """A larger learning rate in tuning, alone or before the base rate."""
    base, epochs = profile.learning_rate, profile.tuning_epochs
    rates = {k: Optimizer(learning_rate=k * base) for k in (3, 10, 30)}
    fast = {k: _tuning(profile, optimizer=rate) for k, rate in rates.items()}
    half = _pretraining(profile)
    first = max(1, epochs // 2)
    there_and_back = (
        _tuning(profile, epochs=first, optimizer=rates[10]),
        _tuning(profile, epochs=max(1, epochs - first)),
    )
    conditions = {
        FRESH: (_tuning(profile),),
        WARM: (half, _tuning(profile)),
        **{f"warm start, {k}x": (half, stage) for k, stage in fast.items()},
        "warm start, 10x then 1x": (half, *there_and_back),
        "fresh, 10x": (fast[10],),
        "fresh, 10x then 1x": there_and_back,
    }
    return [
        Case(condition, seed, _run(profile, seed, *stages))
        for seed in range(profile.study_seeds)
        for condition, stages in conditions.items()
    ]


def noise_epochs(profile: Profile) -> list[int]:
    """Epochs of tuning after which gradient noise is measured."""
    return [n for n in (1, 2, 3, 5, 10) if n < profile.tuning_epochs]


def probes(profile: Profile) -> list[Case]:
    """Gradient noise in the first epochs of tuning, sharpness at its end."""
    conditions = {FRESH: (), WARM: (_pretraining(profile),)}
    measured = dict.fromkeys(noise_epochs(profile), ("gradient_noise",))
    measured[profile.tuning_epochs] = ("gradient_noise", "sharpness")
    return [
        Case(
            condition,
            seed,
            _run(profile, seed, *before, _tuning(profile, epochs=n), probes=names),
            {"tuning_epochs": n},
        )
        for seed in range(profile.study_seeds)
        for condition, before in conditions.items()
        for n, names in measured.items()
    ]


def beyond(profile: Profile) -> list[Case]:
    """Remedies that the paper does not try, beside its own."""
    half, rate = _pretraining(profile), 10 * profile.learning_rate
    larger = Optimizer(learning_rate=rate)
    falling = Optimizer(learning_rate=rate, schedule="cosine")
    conditions = {
        FRESH: (_tuning(profile),),
        WARM: (half, _tuning(profile)),
        "shrink and perturb": (half, _tuning(profile, shrink=0.4, perturb=0.1)),
        "rate restart": (half, _tuning(profile, optimizer=falling)),
        "fresh, falling rate": (_tuning(profile, optimizer=falling),),
        "reset 6": (half, _tuning(profile, reset=(6,))),
        "reset 3 4 5 6": (half, _tuning(profile, reset=(3, 4, 5, 6))),
        "warm start, 10x": (half, _tuning(profile, optimizer=larger)),
    }
    return [
        Case(condition, seed, _run(profile, seed, *stages))
        for seed in range(profile.study_seeds)
        for condition, stages in conditions.items()
    ]


_OPTIMIZER_FIGURES = "Figures 2, 8, 9, 10"
_ALL = (
    Study(
        "warm_start", "Does pretraining on half of the data hurt?", "Figure 1", "01_warm_start", warm_start
    ),
    Study(
        "optimizers",
        "Does the optimiser affect the gap?",
        _OPTIMIZER_FIGURES,
        "02_optimizers",
        optimizers,
        ("optimizer",),
    ),
    Study(
        "pretraining_length",
        "How much pretraining makes a gap?",
        _OPTIMIZER_FIGURES,
        "03_pretraining_length",
        pretraining_length,
        ("optimizer",),
    ),
    Study(
        "smooth_transition",
        "Does a smooth transition avoid the gap?",
        "Figure 3",
        "04_smooth_transition",
        smooth_transition,
    ),
    Study("stages", "Do more stages, or uneven classes, widen the gap?", "Figure 4", "05_stages", stages),
    Study(
        "capacity",
        "Do wider or deeper networks escape the gap?",
        "Figure 5",
        "06_capacity",
        capacity,
        ("width", "depth"),
    ),
    Study("reset", "Which modules must be re-initialised?", "Figures 6, 11", "07_reset", reset),
    Study(
        "two_phases", "Does a larger learning rate close the gap?", "Figure 7", "08_two_phases", two_phases
    ),
    Study(
        "probes",
        "Do warm starts skip a noisy phase of learning?",
        "its discussion",
        "08_two_phases",
        probes,
        ("tuning_epochs",),
    ),
    Study("beyond", "Which remedy costs least?", "none", "09_beyond", beyond),
)
STUDIES = {study.name: study for study in _ALL}


def studies(names: Iterable[str] = ()) -> list[Study]:
    """The named studies, all where none is named; raises `InputError` on an unknown name."""
    names = list(names) or list(STUDIES)
    if unknown := [name for name in names if name not in STUDIES]:
        raise InputError(f"unknown study {unknown[0]!r}: choose from {', '.join(STUDIES)}")
    return [STUDIES[name] for name in dict.fromkeys(names)]


def factor_text(value: object) -> str:
    """A value of a factor as commands and pages write it."""
    return value if isinstance(value, str) else f"{value:g}"


def only(study: Study, cases: Iterable[Case], chosen: Mapping[str, str]) -> list[Case]:
    """The cases with these values of factors, and those without the factor, with which they are compared.

    Raises `InputError` on a factor or a value that the study does not have.
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
        cases = [case for case in cases if factor_text(case.factors.get(name, value)) == value]
    return cases


def by_value(profile: Profile) -> list[Run]:
    """The runs of all studies, those that say most first, so that a sweep cut short is worth most.

    On the grids of the paper two seeds of everything come before the other seeds.
    """
    first = [warm_start(profile), optimizers(profile)]
    if profile.full_grids:
        few = replace(profile, study_seeds=min(2, profile.study_seeds))
        figure_1 = warm_start(replace(profile, width=64, seeds=min(3, profile.seeds)))
        order = (reset, pretraining_length, two_phases, probes, smooth_transition, stages, capacity, beyond)
        first += [*(cases(few) for cases in order), figure_1]
    else:
        last = [MODULES[k:] for k in range(len(MODULES) + 1)]
        last_reset = [c for c in reset(profile) if c.run.stages[-1].reset in last]
        first += [last_reset, two_phases(profile), pretraining_length(profile)]
    rest = (study.cases(profile) for study in STUDIES.values())
    return list(dict.fromkeys(case.run for cases in [*first, *rest] for case in cases))
