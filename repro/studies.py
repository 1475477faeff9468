"""The paper's questions, each as the list of runs that answers it at a given profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from repro.config import ALL, HALF, InputError, Model, Run, Stage
from repro.profiles import Profile


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


def _run(profile: Profile, seed: int, *stages: Stage) -> Run:
    return Run(
        dataset=profile.data(),
        model=Model(profile.width, profile.depth),
        stages=stages,
        batch_size=profile.batch_size,
        split_seed=seed,
        init_seed=seed,
        order_seed=seed,
    )


def warm_start(profile: Profile) -> list[Case]:
    """Fresh networks on all of the data, against networks pretrained on half of it."""
    pretraining = profile.stage(profile.pretraining_epochs, HALF)
    tuning = profile.stage(profile.tuning_epochs, ALL)
    conditions = {"fresh": (tuning,), "warm start": (pretraining, tuning)}
    return [
        Case(condition, seed, _run(profile, seed, *stages))
        for seed in range(profile.seeds)
        for condition, stages in conditions.items()
    ]


STUDIES = {
    study.name: study
    for study in (
        Study(
            name="warm_start",
            question="Does pretraining on half of the data hurt generalisation?",
            figures="Figure 1",
            chapter="01_warm_start",
            cases=warm_start,
        ),
    )
}


def studies(names: Iterable[str] = ()) -> list[Study]:
    """The named studies, all where none is named; raises `InputError` on an unknown name."""
    names = list(names) or list(STUDIES)
    if unknown := [name for name in names if name not in STUDIES]:
        raise InputError(f"unknown study {unknown[0]!r}: choose from {', '.join(STUDIES)}")
    return [STUDIES[name] for name in dict.fromkeys(names)]
