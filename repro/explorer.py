"""What a reader can look up in a study's records, choice by choice.

A choice is a value for each factor of a study, such as modules 456 to
re-initialise. An `Explorer` shows itself as a page that needs no kernel
(`repro.panels`) and, where there is one, as widgets that also train what is not
recorded (`repro.live`). Both show the same panels, made here.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from repro import scorecard, studies, sweep
from repro.config import InputError
from repro.profiles import Profile, changes
from repro.stats import Estimate, generalisation_gap, mean_estimate
from repro.studies import FRESH, WARM, Case, Study, factor_text
from repro.sweep import Results

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
        return studies.only(self.study, self.cases, self.named(choice))

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

    def results(self) -> Results:
        """All that is recorded of the choices."""
        return sweep.results(dataclasses.replace(self.study, cases=lambda profile: self.cases), self.profile)

    def panels(self) -> dict[Choice, Panel | None]:
        """A panel for each choice, None where no seed of it, with its fresh run, is recorded."""
        results = self.results()
        return {choice: self._panel(results, choice) for choice in self.choices}

    def panel(self, choice: Choice) -> Panel | None:
        return self._panel(self.results(), choice)

    def _panel(self, results: Results, choice: Choice) -> Panel | None:
        table, curves, named = results.table, results.curves, self.named(choice)
        own = _matches(table, named) & (table.condition != FRESH)
        if not own.any():
            return None
        condition = table.condition[own].iloc[0]
        paired = {name: value for name, value in named.items() if name in self.study.pairs}
        none = paired | {name: "" for name in self.factors if name not in paired}

        def shown(frame: pd.DataFrame) -> pd.DataFrame:
            fresh = _matches(frame, paired) & (frame.condition == FRESH)
            warm = _matches(frame, none) & (frame.condition == WARM)
            return frame[_matches(frame, named) & (frame.condition != FRESH) | fresh | warm]

        table, curves = shown(table), shown(curves)
        order = [name for name in dict.fromkeys((FRESH, WARM, condition)) if name in set(table.condition)]
        last = curves[curves.stage == curves.groupby(["condition", "seed"]).stage.transform("max")]
        means = last.groupby(["condition", "epoch"])[["train_accuracy", "test_accuracy"]].mean()
        reached = {name: [] for name in order}
        for level in LEVELS:
            epochs = scorecard.epochs_to_reach(curves, level).groupby("condition").epochs
            for name in order:
                reached[name].append(mean_estimate(epochs.get_group(name).dropna()))
        gaps = generalisation_gap(table, self.study.pairs)
        gaps = gaps[gaps.condition == condition].set_index("seed").gap
        missing = {case.run.id for case in self.runs(choice)} - set(table.run_id)
        seeds = {name: int((table.condition == name).sum()) for name in order}
        means = means.reset_index()
        return Panel(condition, means, gaps, reached, seeds, len(missing)) if len(gaps) else None

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict:
        """Widgets where there is a kernel, and the page for where there is none."""
        from repro import live, panels

        return {**live.Live(self).box._repr_mimebundle_(), "text/html": panels.page(self)}


def _matches(frame: pd.DataFrame, named: Mapping[str, str]) -> pd.Series:
    """Rows with these values of factors; a missing value counts as empty text."""
    found = pd.Series(True, frame.index)
    for name, value in named.items():
        found &= frame[name].map(lambda v: "" if v != v else factor_text(v)) == value
    return found


def of(study: str, profile: Profile) -> Explorer:
    """The explorer of a study; raises `InputError` where the study has none."""
    if study not in FACTORS:
        raise InputError(f"no explorer of {study!r}: choose from {', '.join(FACTORS)}")
    return Explorer(studies.studies([study])[0], profile)


def live(study: str = "reset", profile: str = "quick", seeds: int | None = None, settings: str = ""):
    """The explorer of a study as widgets, to be shown in JupyterLab or Voila."""
    from repro.live import Live

    return Live(of(study, sweep.scale(profile, seeds, settings))).box
