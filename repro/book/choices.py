"""What readers can look up in a study's records with an explorer: its controls and panels.

A choice is a value for each factor of a study, such as modules 456 to
re-initialise; the study says how they are offered (`repro.study.Explored`). A
panel is what is shown of a choice. An explorer's page (`repro.book.panels`) and
widgets (`repro.book.live`) are both made from this module.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from repro.analysis import recorded
from repro.analysis.curves import LEVELS, epochs_to_reach, in_last_stage
from repro.analysis.stats import Estimate, mean_estimate
from repro.profiles import changes
from repro.scales import Profile
from repro.study import FRESH, WARM, Case, Explored, Study, factor_text, only

Choice = tuple[str, ...]  # a value of each factor, as text
SIDES = ("last", "first")  # the end from which a chosen number of boxes is ticked


@dataclass(frozen=True)
class Panel:
    """What is recorded of one choice, with the fresh networks and warm starts that it is compared with."""

    condition: str
    curves: pd.DataFrame  # mean over seeds, a row per condition and epoch of the last stage, fractions
    gaps: pd.Series  # of each seed, in percentage points
    reached: dict[str, list[Estimate]]  # epochs to each of `LEVELS`, by condition; `n`: seeds that got there
    seeds: dict[str, int]  # number recorded, by condition
    missing: int  # number of runs not recorded, of the choice or of what it is compared with

    @property
    def gap(self) -> Estimate:
        return mean_estimate(self.gaps)

    @property
    def conditions(self) -> list[str]:
        return list(self.reached)


@dataclass(frozen=True)
class Control:
    """A control for one factor, from which both the page and the widgets are made."""

    label: str
    kind: str  # as `repro.study.Explored.control`
    options: Mapping[str, str]  # what can be chosen or ticked; for boxes with their names
    value: str  # the initial one

    @property
    def how_many(self) -> Control:
        """For boxes: a slider for how many of them to tick."""
        counts = {str(n): "" for n in range(len(self.options) + 1)}
        return Control("How many", "slider", counts, str(len(self.value)))


@dataclass(frozen=True)
class Choices:
    """The choices that one study offers at one profile, and what is recorded of each."""

    study: Study
    profile: Profile
    file: str = ""  # path of the user's own question, if the study is in one

    @cached_property
    def explored(self) -> tuple[Explored, ...]:
        """The factors that readers choose by: `Study.explored`, else those of the case with most."""
        if self.study.explored:
            return self.study.explored
        most = max((case.factors for case in self.study.cases(self.profile)), key=len, default={})
        plain = ((name, name.replace("_", " ")) for name in most)
        return tuple(Explored(name, words.capitalize(), f"{words} {{}}".format) for name, words in plain)

    @property
    def factors(self) -> list[str]:
        return [e.factor for e in self.explored]

    @property
    def _wider(self) -> Profile:
        return dataclasses.replace(self.profile, **ChainMap(*(dict(e.wider) for e in self.explored)))

    @property
    def cases(self) -> list[Case]:
        """All cases on offer, which can be more than those of the profile itself (`Explored.wider`)."""
        return self.study.cases(self._wider)

    @cached_property
    def choices(self) -> list[Choice]:
        """All choices, in the study's order."""
        return self._choices(self.cases)

    def _choices(self, cases: Iterable[Case]) -> list[Choice]:
        chosen = (c.factors for c in cases if c.condition != FRESH and c.factors.keys() >= set(self.factors))
        return list(dict.fromkeys(tuple(factor_text(f[name]) for name in self.factors) for f in chosen))

    def controls(self, start: Choice) -> list[Control]:
        """A control for each factor, set to these values."""
        offered = zip(self.explored, zip(*self.choices, strict=True), start, strict=True)
        return [
            Control(e.label, e.control, e.boxes or dict.fromkeys(values, ""), value)
            for e, values, value in offered
        ]

    def start(self, panels: Mapping[Choice, Panel | None]) -> Choice:
        """The choice to show first: the study's if that is recorded, else the last recorded one."""
        known = [choice for choice, panel in panels.items() if panel] or list(panels)
        wanted = tuple(e.start for e in self.explored)
        return wanted if wanted in known else known[-1]

    def title(self, choice: Choice) -> str:
        """The choice in words: `Modules 4, 5 and 6 re-initialised`."""
        words = ", ".join(e.words(value) for e, value in zip(self.explored, choice, strict=True))
        return words[0].upper() + words[1:] if words[0].isascii() else words  # γ must not become Γ

    def named(self, choice: Choice) -> dict[str, str]:
        return dict(zip(self.factors, choice, strict=True))

    def runs(self, choice: Choice) -> list[Case]:
        """The cases of a choice and those that it is compared with; none if there is no such choice."""
        return only(self.study, self.cases, self.named(choice)) if choice in self.choices else []

    def command(self, choice: Choice) -> str:
        """The shell command that records the runs of a choice, at a wider profile if this one lacks it."""
        profile = self.profile if choice in self._choices(self.study.cases(self.profile)) else self._wider
        name = f"{self.file}:{self.study.name}" if self.file else self.study.name
        words = ["repro", "run", name, "--profile", profile.name]
        for setting in changes(profile):
            words += ["--set", setting]
        for name, value in self.named(choice).items():
            words += ["--only", f"{name}={value}"]
        return shlex.join(words)

    def panels(self) -> dict[Choice, Panel | None]:
        """The panel of each choice; None if no seed has both its run and the fresh run recorded."""
        results = recorded.results(self.study, self.profile, self.cases)
        table, curves, gaps = map(self._with_text, (results.table, results.curves, results.gaps))
        alike = ["condition", *self.factors]
        run = [*alike, "seed"]
        means = curves[in_last_stage(curves, run)].groupby([*alike, "epoch"])
        means = means[["train_accuracy", "test_accuracy"]].mean().reset_index()
        reached = {level: epochs_to_reach(curves, level, self.factors) for level in LEVELS}
        epochs = pd.concat({level: frame.set_index(run).epochs for level, frame in reached.items()}, axis=1)
        runs, means, gaps, epochs = (
            dict(iter(frame.groupby(alike))) for frame in (table, means, gaps, epochs.reset_index())
        )
        ids = set(results.table.run_id)

        def panel(choice: Choice) -> Panel | None:
            own = next((key for key in gaps if key[1:] == choice), None)
            if own is None:
                return None
            shared = [v if name in self.study.pairs else "" for name, v in self.named(choice).items()]
            keys = {key[0]: key for key in ((FRESH, *shared), (WARM, *shared), own) if key in runs}
            return Panel(
                condition=own[0],
                curves=pd.concat([means[key] for key in keys.values()]),
                gaps=gaps[own].set_index("seed").gap,
                reached={
                    name: [mean_estimate(epochs[key][level].dropna()) for level in LEVELS]
                    for name, key in keys.items()
                },
                seeds={name: len(runs[key]) for name, key in keys.items()},
                missing=len({case.run.id for case in self.runs(choice)} - ids),
            )

        return {choice: panel(choice) for choice in self.choices}

    def _with_text(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with factors as text; "" if a run has none, or for a fresh run that all values share."""
        for name in self.factors:
            text = frame[name].map(lambda v: "" if v != v else factor_text(v))
            unpaired = (frame.condition == FRESH) & (name not in self.study.pairs)
            frame = frame.assign(**{name: text.mask(unpaired, "")})
        return frame
