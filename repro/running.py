"""Run a question of the paper, or read what is recorded of it: what a chapter calls."""

from __future__ import annotations

from collections.abc import Sequence

from repro.analysis.recorded import Results, results
from repro.config import InputError, check_engine
from repro.profiles import LARGEST_FIRST, PROFILES, PUBLISHED, scale
from repro.questions import studies
from repro.store.records import Store
from repro.study import LAST, Study
from repro.sweep import dispatch
from repro.sweep.plans import plan
from repro.sweep.progress import shown


def published(study: Study) -> Results:
    """What is recorded of a study at the largest scale that is whole, else at the one with most seeds.

    Whole is a scale without its runs of the last priority, which no claim waits for.
    """
    found = []
    for name in LARGEST_FIRST:
        cases = study.cases(PROFILES[name])
        first = [case for case in cases if case.priority < LAST] or cases
        if first and {case.run.id for case in first} <= Store.of(name).ids():
            return results(study, PROFILES[name])
        found.append(results(study, PROFILES[name]))
    return max(found, key=lambda r: r.table.seed.nunique())


def run_study(
    name: str,
    profile: str = PUBLISHED,
    seeds: int | None = None,
    device: str = "auto",
    settings: str | Sequence[str] | None = (),
) -> Results:
    """The results of a study, after training what of it is not recorded yet; not with the device `none`.

    The profile `published` is the largest at which all of the study is recorded; it trains nothing.
    """
    [study] = studies([name])
    if profile == PUBLISHED:
        if seeds or settings:
            raise InputError("seeds and settings need a profile: published records are as they are")
        return published(study)
    chosen = scale(profile, seeds, settings)
    if device == "none":
        return results(study, chosen)
    check_engine(device, "auto")
    with shown() as progress:
        cases = study.cases(chosen)
        made, store = plan(case.run for case in cases), Store.of(chosen.name)
        outcome = dispatch.execute(made, store, device=device, progress=progress)
    if outcome.failures:
        raise RuntimeError(outcome.failures[0])
    if not outcome.finished:
        raise KeyboardInterrupt("stopped with runs left; run again to go on")
    return results(study, chosen)
