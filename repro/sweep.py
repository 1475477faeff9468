"""The results of a study: what is recorded of it, after training what is not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from repro import profiles, tables, workers
from repro.plans import plan
from repro.profiles import Profile
from repro.progress import shown
from repro.records import Store
from repro.stats import generalisation_gap
from repro.studies import Study, studies

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """What is recorded of a study: the tables that figures and statistics are made of."""

    study: Study
    profile: Profile
    table: pd.DataFrame  # a row per run, see `tables.table`
    curves: pd.DataFrame  # a row per epoch, see `tables.curves`
    missing: int  # runs not recorded

    @property
    def factors(self) -> list[str]:
        """What tells the arms of the study apart besides their conditions."""
        return list(dict.fromkeys(f for case in self.study.cases(self.profile) for f in case.factors))

    @property
    def planned_seeds(self) -> int:
        """How many seeds the study has at this profile."""
        return len({case.seed for case in self.study.cases(self.profile)})

    def gaps_to(self, condition: str) -> pd.DataFrame:
        """All other runs with their `gap` to this condition at the same seed, in percentage points."""
        return generalisation_gap(self.table, self.study.pairs, condition)

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """The pretrained runs with their `gap` to the fresh run of the same seed, in percentage points."""
        return generalisation_gap(self.table, self.study.pairs)


def results(study: Study, profile: Profile) -> Results:
    """The recorded part of a study; trains nothing."""
    cases, store = study.cases(profile), Store.of(profile.name)
    table = tables.table(cases, store, profile.window, profile.median)
    return Results(study, profile, table, tables.curves(cases, store), len(cases) - len(table))


def scale(profile: str, seeds: int | None = None, settings: str = "") -> Profile:
    """The profile that a chapter's parameters name; `settings` changes fields: "width=16, train=500"."""
    return profiles.profile(profile, filter(None, settings.split(",")), seeds or None)


def run_study(
    name: str,
    profile: str = "quick",
    seeds: int | None = None,
    device: str = "auto",
    settings: str = "",
) -> Results:
    """The results of a study, after training what of it is not recorded yet; not with the device `none`."""
    [study], chosen = studies([name]), scale(profile, seeds, settings)
    if device == "none":
        return results(study, chosen)
    with shown() as progress:
        cases = study.cases(chosen)
        made, store = plan(case.run for case in cases), Store.of(chosen.name)
        outcome = workers.execute(made, store, device=device, progress=progress)
    if outcome.failures:
        raise RuntimeError(outcome.failures[0])
    if not outcome.finished:
        raise KeyboardInterrupt("stopped with runs left; run again to go on")
    return results(study, chosen)
