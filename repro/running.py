"""Run a question of the paper, or read what is recorded of it: what a chapter calls."""

from __future__ import annotations

from repro import profiles
from repro.analysis.recorded import Results, results
from repro.profiles import Profile
from repro.questions import studies
from repro.store.records import Store
from repro.sweep import dispatch
from repro.sweep.plans import plan
from repro.sweep.progress import shown


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
        outcome = dispatch.execute(made, store, device=device, progress=progress)
    if outcome.failures:
        raise RuntimeError(outcome.failures[0])
    if not outcome.finished:
        raise KeyboardInterrupt("stopped with runs left; run again to go on")
    return results(study, chosen)
