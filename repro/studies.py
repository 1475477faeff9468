"""The paper's questions, each as the list of runs that answers it at a given profile.

Studies share runs: a run in two of them has one id and is trained once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial, wraps

from repro.config import ALL, HALF, MODULES, InputError, Model, Optimizer, Run, Stage, Subset
from repro.profiles import Profile

FRESH, WARM = "fresh", "warm start"
LONGER, REPLACED = "fresh, as many steps", "with replacement"  # controls
LAST = 9  # priority of all that the other runs do not wait for
GAMMAS = (0.1, 0.5, 0.9)  # from the shortest to the longest smooth transition
LENGTHS = (1, 5, 10, 20)  # epochs of pretraining, along which the gap is said to grow
PARTS = (2, 3, 5, 10)  # portions of the data, with whose number the gap is said to grow


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


HELD_OUT_SEEDS = 3


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
        model=arm.model or Model(profile.width, profile.depth),
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
    tuned, wanted = _tuning(profile, epochs=profile.tuning_epochs), stages[-1].epochs
    long = (
        (tuned,),
        (_pretraining(profile), tuned),
        (_pretraining(profile), replace(tuned, reset=(3, 4, 5, 6))),
    )
    longer = (*stages[:-1], replace(stages[-1], epochs=profile.tuning_epochs))
    if wanted < profile.tuning_epochs and profile.arms_tuned < profile.tuning_epochs and longer in long:
        return longer, wanted
    return stages, None


def _pretraining(profile: Profile, **settings: object) -> Stage:
    return profile.stage(settings.pop("epochs", profile.pretraining_epochs), HALF, **settings)


def _tuning(profile: Profile, **settings: object) -> Stage:
    return profile.stage(settings.pop("epochs", profile.arms_tuned), ALL, **settings)


def _pair(profile: Profile, factors: Mapping[str, object] | None = None, **settings: object) -> list[Arm]:
    """The fresh network and the warm start, as in Figure 1 but for settings of the arms or of all stages."""
    own = {name: settings.pop(name) for name in ("model", "priority", "held_out") if name in settings}
    half, tuning = _pretraining(profile, **settings), _tuning(profile, **settings)
    chosen = dict(factors or {})
    return [Arm(FRESH, (tuning,), chosen, **own), Arm(WARM, (half, tuning), chosen, **own)]


@partial(crossed, first=True)
def warm_start(profile: Profile) -> Iterator[Arm]:
    """Fresh networks, against networks pretrained on half of the data."""
    half = _pretraining(profile)
    tuning = _tuning(profile, epochs=profile.tuning_epochs)
    yield Arm(FRESH, (tuning,), priority=0)
    yield Arm(WARM, (half, tuning), priority=0)


@crossed
def budget(profile: Profile) -> Iterator[Arm]:
    """Warm starts against fresh networks that are trained for as many steps in all."""
    yield from _pair(profile)
    if profile.controls:
        epochs = profile.arms_tuned + round(profile.pretraining_epochs / 2)  # half of the data
        yield Arm(LONGER, (_tuning(profile, epochs=epochs),), priority=1)


def optimizer_settings(profile: Profile) -> dict[str, Optimizer]:
    """Four optimisers, rates tied to that of Adam, all that the paper gives."""
    rate = profile.learning_rate
    return {
        "Adam": Optimizer("adam", rate),
        "RMSprop": Optimizer("rmsprop", rate),
        "SGD": Optimizer("sgd", 100 * rate),
        "SGD with momentum": Optimizer("sgd", 10 * rate, momentum=0.9),
    }


@crossed
def optimizers(profile: Profile) -> Iterator[Arm]:
    """Fresh and warm-started networks under each optimiser."""
    for name, optimizer in optimizer_settings(profile).items():
        yield from _pair(profile, {"optimizer": name}, optimizer=optimizer, priority=6)


def pretraining_lengths(profile: Profile) -> list[int]:
    """Epochs of pretraining to compare, the profile's own last."""
    grid = (1, 2, 5, 10, 20, 50, 100, 200) if profile.full_grids else (1, 5, 10)
    longest = profile.pretraining_epochs
    return [*(n for n in grid if n < longest), longest]


@crossed
def pretraining_length(profile: Profile) -> Iterator[Arm]:
    """One pretraining per seed and optimiser, tuned from its snapshots at several epochs."""
    for name, optimizer in optimizer_settings(profile).items():
        tuning = _tuning(profile, optimizer=optimizer)
        yield Arm(FRESH, (tuning,), {"optimizer": name})
        for epochs in pretraining_lengths(profile):
            half = _pretraining(profile, optimizer=optimizer, epochs=epochs)
            factors = {"optimizer": name, "pretraining_epochs": epochs}
            early = name == "Adam" and epochs in LENGTHS
            yield Arm(WARM, (half, tuning), factors, priority=7 if early else LAST)


@crossed
def smooth_transition(profile: Profile) -> Iterator[Arm]:
    """One stage whose examples come from all of the data with a growing probability.

    The control draws every example from all of the data: like the transition, and
    unlike an epoch, it draws with replacement.
    """
    yield from _pair(profile)
    gammas = (0.1, 0.3, 0.5, 0.7, 0.9) if profile.full_grids else GAMMAS
    for gamma in gammas:
        stage = profile.stage(profile.arms_tuned, replace(HALF, gamma=gamma))
        priority = 3 if gamma in GAMMAS else LAST
        yield Arm("smooth", (stage,), {"gamma": gamma}, priority=priority)
    if profile.controls:  # both sets to draw from are all of the data: gamma plays no part
        stage = profile.stage(profile.arms_tuned, replace(ALL, gamma=0.5))
        yield Arm(REPLACED, (stage,), priority=3)


def staged(profile: Profile, parts: int, ratio: float) -> tuple[Stage, ...]:
    """Stages that bring the training set in `parts` portions (paper, appendix A.3).

    All but the last end once the training examples are fitted, or at as many
    epochs as the profile pretrains for.
    """
    most = profile.pretraining_epochs
    portions = (Subset(part, parts, ratio) for part in range(1, parts))
    before = (profile.stage(most, portion, until=profile.until) for portion in portions)
    return (*before, _tuning(profile))


@crossed
def stages(profile: Profile) -> Iterator[Arm]:
    """The data in several portions, dealt at random or by class, to one class in each."""
    splits = PARTS if profile.full_grids or profile.controls else PARTS[:3]
    ratios = (0.0, 0.25, 0.5, 0.75, 1.0) if profile.full_grids else (0.0, 0.5, 1.0)
    by_class = (5, 10) if profile.controls else ()
    yield Arm(FRESH, (_tuning(profile),), {"parts": 1, "ratio": 1.0})
    pairs = [*((n, 1.0) for n in splits), *((2, r) for r in ratios), *((n, 0.0) for n in by_class)]
    for parts, ratio in dict.fromkeys(pairs):
        factors, first = {"parts": parts, "ratio": ratio}, ratio in (0.0, 1.0)
        yield Arm("stages", staged(profile, parts, ratio), factors, priority=4 if first else LAST)


@crossed
def capacity(profile: Profile) -> Iterator[Arm]:
    """Fresh and warm networks of several widths and depths (appendix A.4)."""
    base = profile.width
    widths = sorted({max(1, base // 2), base, 2 * base})
    depths = (1, 2, 3) if profile.full_grids else (1, 2)
    for width, depth in itertools.product(widths, depths):
        own = (width, depth) == (profile.width, profile.depth)
        model = None if own else Model(width, depth)
        factors = {"width": width, "depth": depth}
        yield from _pair(profile, factors, model=model, priority=8)


def subsets_to_reset(profile: Profile) -> list[tuple[int, ...]]:
    """Sets of modules to re-initialise: all 64, or the first k, the last k and each alone."""
    if profile.full_grids:
        return [s for k in range(7) for s in itertools.combinations(MODULES, k)]
    ends = [s for k in range(7) for s in (MODULES[:k], MODULES[6 - k :])]
    return list(dict.fromkeys([*ends, *((m,) for m in MODULES)]))


def reset_condition(modules: tuple[int, ...]) -> str:
    """A name for a warm start with these modules re-initialised: `reset 4 5 6`."""
    return " ".join(["reset", *map(str, modules)]) if modules else WARM


@crossed
def reset(profile: Profile) -> Iterator[Arm]:
    """Warm starts with some modules re-initialised before tuning."""
    yield Arm(FRESH, (_tuning(profile),))
    last = [MODULES[6 - k :] for k in (1, 2, 3, 4, 5)]
    for modules in subsets_to_reset(profile):
        stages = _pretraining(profile), _tuning(profile, reset=modules)
        factors = {"modules": "".join(map(str, modules))}
        priority = 2 if modules in last else LAST
        yield Arm(reset_condition(modules), stages, factors, priority=priority)


@crossed
def two_phases(profile: Profile) -> Iterator[Arm]:
    """A larger learning rate in tuning, alone or before the base rate."""
    base, epochs = profile.learning_rate, profile.arms_tuned
    rates = {k: Optimizer(learning_rate=k * base) for k in (3, 10, 30)}
    fast = {k: _tuning(profile, optimizer=rate) for k, rate in rates.items()}
    half = _pretraining(profile)
    first = max(1, epochs // 2)
    there_and_back = (
        _tuning(profile, epochs=first, optimizer=rates[10]),
        _tuning(profile, epochs=max(1, epochs - first)),
    )
    yield from _pair(profile)
    for k, stage in fast.items():
        yield Arm(f"warm start, {k}x", (half, stage), priority=1 if k == 10 else LAST)
    yield Arm("warm start, 10x then 1x", (half, *there_and_back), priority=1)
    yield Arm("fresh, 10x", (fast[10],), priority=1)
    yield Arm("fresh, 10x then 1x", there_and_back, priority=1)


@crossed
def rates(profile: Profile) -> Iterator[Arm]:
    """Fresh and warm networks at several rates, also tested on held-out training images."""
    for k in (1, 3, 10) if profile.controls else ():
        rate = Optimizer(learning_rate=k * profile.learning_rate)
        for held_out in (False, True):
            factors = {"rate": k, "held_out": held_out}
            settings = {"optimizer": rate, "held_out": held_out}
            yield from _pair(profile, factors, **settings, priority=5)


def probe_epochs(profile: Profile) -> list[int]:
    """Epochs of tuning after which networks are probed, the last one included."""
    last = profile.arms_tuned
    later = (last,) if profile.exploratory else (3 * last // 4, last)
    return sorted({*(n for n in (1, 2, 3, 5, 10) if n < last), *later} - {0})


def noise_epochs(profile: Profile) -> list[int]:
    """Epochs of tuning after which gradient noise is measured, the last one left out."""
    return [n for n in (1, 2, 3, 5, 10) if n < profile.arms_tuned]


@crossed
def probes(profile: Profile) -> Iterator[Arm]:
    """Gradient noise in the first epochs of tuning, sharpness and training loss along it."""
    for condition, before in {FRESH: (), WARM: (_pretraining(profile),)}.items():
        for n in probe_epochs(profile):
            if not profile.exploratory:
                names = ("noise", "curvature")
            else:
                last = ["sharpness"] if n == profile.arms_tuned else []
                names = ("gradient_noise", *last)
            stages = (*before, _tuning(profile, epochs=n))
            yield Arm(condition, stages, {"tuning_epochs": n}, probes=names, priority=7)


@crossed
def beyond(profile: Profile) -> Iterator[Arm]:
    """Remedies that the paper does not try, beside its own."""
    half, rate = _pretraining(profile), 10 * profile.learning_rate
    larger = Optimizer(learning_rate=rate)
    falling = Optimizer(learning_rate=rate, schedule="cosine")
    yield from _pair(profile)
    yield Arm("shrink and perturb", (half, _tuning(profile, shrink=0.4, perturb=0.1)))
    yield Arm("rate restart", (half, _tuning(profile, optimizer=falling)))
    yield Arm("fresh, falling rate", (_tuning(profile, optimizer=falling),))
    yield Arm("reset 6", (half, _tuning(profile, reset=(6,))))
    yield Arm("reset 3 4 5 6", (half, _tuning(profile, reset=(3, 4, 5, 6))))
    yield Arm("warm start, 10x", (half, _tuning(profile, optimizer=larger)))


_OPTIMIZER_FIGURES = "Figures 2, 8, 9, 10"
_ALL = (
    Study(
        "warm_start", "Does pretraining on half of the data hurt?", "Figure 1", "01_warm_start", warm_start
    ),
    Study("budget", "Is it the warm start's longer training?", "control", "01_warm_start", budget),
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
        "rates",
        "Is the gap there where each arm has its own best rate?",
        "control",
        "08_two_phases",
        rates,
        ("rate", "held_out"),
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
    """The runs of all studies, those that say most first, so that a sweep cut short is worth most."""
    cases = [case for study in STUDIES.values() for case in study.cases(profile)]
    first: dict[Run, int] = {}
    for case in cases:
        first[case.run] = min(case.priority, first.get(case.run, case.priority))
    return sorted(first, key=first.__getitem__)
