"""What a reader can look up in a study's records, choice by choice.

A choice is a value for each factor of a study, such as modules 456 to
re-initialise. An `Explorer` shows itself as a page that needs no kernel
(`repro.book.panels`) and, where there is one, as widgets that also train what is not
recorded (`repro.book.live`). Both show the same panels, made here.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from repro.analysis import recorded
from repro.analysis.curves import epochs_to_reach, in_last_stage
from repro.analysis.stats import Estimate, mean_estimate
from repro.config import InputError
from repro.profiles import Profile, changes, scale
from repro.questions import studies
from repro.study import FRESH, WARM, Case, Study, factor_text, only

FACTORS = {  # of each study that can be explored
    "reset": ("modules",),
    "pretraining_length": ("optimizer", "pretraining_epochs"),
    "smooth_transition": ("gamma",),
    "capacity": ("width", "depth"),
}
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)  # train accuracies, as the paper's Figure 11 has them
Choice = tuple[str, ...]  # a value of each factor, as text


@dataclass(frozen=True)
class Panel:
    """What is recorded of one choice, beside fresh networks and, where that is another, the warm start."""

    condition: str
    curves: pd.DataFrame  # mean over seeds, a row per condition and epoch of the last stage, fractions
    gaps: pd.Series  # of each seed, in percentage points
    reached: dict[str, list[Estimate]]  # epochs to each of `LEVELS`, by condition; n seeds got there
    seeds: dict[str, int]  # recorded, by condition
    missing: int  # runs of it, or of those it is compared with, that are not recorded

    @property
    def gap(self) -> Estimate:
        return mean_estimate(self.gaps)

    @property
    def conditions(self) -> list[str]:
        return list(self.reached)


@dataclass(frozen=True)
class _Recorded:
    """What is recorded, by condition and values of factors: rows of each table."""

    runs: dict[Choice, pd.DataFrame]
    curves: dict[Choice, pd.DataFrame]  # as a panel has them
    gaps: dict[Choice, pd.DataFrame]  # of pretrained runs
    epochs: dict[Choice, pd.DataFrame]  # to each of `LEVELS`, a row per run

    @cached_property
    def ids(self) -> set[str]:
        return {run_id for frame in self.runs.values() for run_id in frame.run_id}


@dataclass(frozen=True)
class Explorer:
    """The choices of one study at one profile."""

    study: Study
    profile: Profile

    @property
    def factors(self) -> tuple[str, ...]:
        return FACTORS[self.study.name]

    @cached_property
    def cases(self) -> list[Case]:
        """All that can be chosen: of the reset study every subset of modules, whatever the profile's grid."""
        return self.study.cases(self._whole if self.study.name == "reset" else self.profile)

    @cached_property
    def _own(self) -> set[str]:
        """Ids of the runs of the profile's own grid."""
        return {case.run.id for case in self.study.cases(self.profile)}

    @property
    def _whole(self) -> Profile:
        return dataclasses.replace(self.profile, full_grids=True)

    @property
    def values(self) -> dict[str, list[str]]:
        """The values of each factor, in the study's order."""
        chosen = [case for case in self.cases if all(name in case.factors for name in self.factors)]
        return {
            name: list(dict.fromkeys(factor_text(c.factors[name]) for c in chosen)) for name in self.factors
        }

    @property
    def choices(self) -> list[Choice]:
        return list(itertools.product(*self.values.values()))

    def runs(self, choice: Choice) -> list[Case]:
        """The cases that a panel needs: those of the choice and those that it is compared with."""
        return only(self.study, self.cases, self.named(choice))

    def named(self, choice: Choice) -> dict[str, str]:
        return dict(zip(self.factors, choice, strict=True))

    def command(self, choice: Choice) -> str:
        """The command that records a choice."""
        beyond = not {case.run.id for case in self.runs(choice)} <= self._own
        settings = changes(self._whole if beyond else self.profile)
        words = ["repro", "run", self.study.name, "--profile", self.profile.name]
        words += [word for setting in settings for word in ("--set", setting)]
        words += [
            word for name, value in self.named(choice).items() for word in ("--only", f"{name}={value}")
        ]
        return shlex.join(words)

    def panels(self) -> dict[Choice, Panel | None]:
        """A panel for each choice, None where no seed of it, with its fresh run, is recorded."""
        return self._panels(self.choices, self.cases)

    def panel(self, choice: Choice) -> Panel | None:
        runs = {case.run.id for case in self.runs(choice)}
        cases = [case for case in self.cases if case.run.id in runs or case.condition == WARM]
        return self._panels([choice], cases)[choice]

    def _panels(self, choices: Iterable[Choice], cases: list[Case]) -> dict[Choice, Panel | None]:
        study = dataclasses.replace(self.study, cases=lambda profile: cases)
        results = recorded.results(study, self.profile)
        tables = (results.table, results.curves, results.gaps)
        table, curves, gaps = (self._with_text(frame) for frame in tables)
        alike = ["condition", *self.factors]
        run = [*alike, "seed"]
        reached = {level: epochs_to_reach(curves, level, self.factors) for level in LEVELS}
        epochs = {level: frame.set_index(run).epochs for level, frame in reached.items()}
        last = curves[in_last_stage(curves, run)]
        means = last.groupby([*alike, "epoch"])[["train_accuracy", "test_accuracy"]].mean()
        frames = (table, means.reset_index(), gaps, pd.concat(epochs, axis=1).reset_index())
        found = _Recorded(*(dict(iter(frame.groupby(alike))) for frame in frames))
        return {choice: self._panel(found, choice) for choice in choices}

    def _with_text(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with values of factors as text, empty where they are missing."""
        text = {name: frame[name].map(lambda v: "" if v != v else factor_text(v)) for name in self.factors}
        return frame.assign(**text)

    def _panel(self, found: _Recorded, choice: Choice) -> Panel | None:
        condition = next((name for name, *values in found.gaps if tuple(values) == choice), None)
        if condition is None:
            return None
        shared = [v if name in self.study.pairs else "" for name, v in self.named(choice).items()]
        own = (condition, *choice)
        keys = [k for k in dict.fromkeys(((FRESH, *shared), (WARM, *shared), own)) if k in found.runs]
        return Panel(
            condition,
            pd.concat([found.curves[key] for key in keys]),
            found.gaps[own].set_index("seed").gap,
            {key[0]: [mean_estimate(found.epochs[key][level].dropna()) for level in LEVELS] for key in keys},
            {key[0]: len(found.runs[key]) for key in keys},
            len({case.run.id for case in self.runs(choice)} - found.ids),
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict:
        """Widgets where there is a kernel, and the page for where there is none."""
        from repro.book import live, panels

        found = self.panels()
        return {
            **live.Live(self, found=found).box._repr_mimebundle_(),
            "text/html": panels.page(self, found),
        }


def of(study: str, profile: Profile) -> Explorer:
    """The explorer of a study; raises `InputError` where the study has none."""
    if study not in FACTORS:
        raise InputError(f"no explorer of {study!r}: choose from {', '.join(FACTORS)}")
    return Explorer(studies([study])[0], profile)


def live(study: str = "reset", profile: str = "quick", seeds: int | None = None, settings: str = ""):
    """The explorer of a study as widgets, to be shown in JupyterLab or Voila."""
    from repro.book.live import Live

    return Live(of(study, scale(profile, seeds, settings))).box
