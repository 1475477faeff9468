"""The results of a study: the tables made of its recorded runs. Nothing is trained here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from repro.analysis import tables
from repro.analysis.stats import generalisation_gap
from repro.lazy import Lazy
from repro.scales import LARGEST_FIRST, PROFILES, Profile
from repro.store.records import Store
from repro.study import FRESH, LAST, Case, Study

pd = Lazy("pandas")


@dataclass(frozen=True)
class Results:
    """The tables of a study's recorded runs at one profile, of which figures and statistics are made."""

    study: Study
    profile: Profile
    table: pd.DataFrame  # a row per run, see `tables.table`
    curves: pd.DataFrame  # a row per epoch, see `tables.curves`
    missing: int  # runs not recorded

    @property
    def factors(self) -> list[str]:
        """Names of the factors that tell the arms of the study apart, besides the condition."""
        return list(dict.fromkeys(f for case in self.study.cases(self.profile) for f in case.factors))

    @property
    def planned_seeds(self) -> int:
        """How many seeds the study has at this profile, recorded or not."""
        return len({case.seed for case in self.study.cases(self.profile)})

    @property
    def complete(self) -> pd.DataFrame:
        """Rows of `table` at seeds of which all planned runs are recorded."""
        planned = Counter(case.seed for case in self.study.cases(self.profile))
        lacking = [seed for seed, n in Counter(self.table.seed).items() if n < planned[seed]]
        return self.table[~self.table.seed.isin(lacking)]

    @property
    def answered(self) -> bool:
        """Whether enough is recorded to publish the study at this profile.

        By default, all but the runs of the last priority, for which no claim waits.
        """
        if self.study.answered:
            return self.study.answered(self)
        cases = self.study.cases(self.profile)
        first = [case for case in cases if case.priority < LAST] or cases
        return bool(first) and {case.run.id for case in first} <= set(self.table.run_id)

    def gaps_to(self, condition: str) -> pd.DataFrame:
        """All other runs with their `gap` to this condition at the same seed, in percentage points."""
        return generalisation_gap(self.table, self.study.pairs, condition)

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """The pretrained runs with their `gap` to the fresh run of the same seed, in percentage points."""
        return self.gaps_to(FRESH)


def results(
    study: Study, profile: Profile, cases: list[Case] | None = None, store: Store | None = None
) -> Results:
    """Results of a study, or of some of its cases, from the records of `store` (by default the profile's)."""
    cases, store = study.cases(profile) if cases is None else cases, store or Store.of(profile.name)
    table = tables.table(cases, store, profile.window, profile.median)
    return Results(study, profile, table, tables.curves(cases, store), len(cases) - len(table))


def published(study: Study) -> Results:
    """Results of a study at the largest scale that answers it, or else with the most seeds recorded.

    Exploratory scales, which decide nothing, come after all others.
    """
    partial = []
    for name in sorted(LARGEST_FIRST, key=lambda name: PROFILES[name].exploratory):
        found = results(study, PROFILES[name])
        if found.answered:
            return found
        partial.append(found)
    return max(partial, key=lambda found: found.table.seed.nunique())
