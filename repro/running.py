"""Run a question of the paper, or read what is recorded of it: what a chapter calls."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from repro import profiles
from repro.analysis.recorded import Results, results
from repro.config import InputError, check_engine
from repro.profiles import Profile
from repro.questions import studies
from repro.store.records import Store
from repro.sweep import dispatch
from repro.sweep.plans import plan
from repro.sweep.progress import shown


def scale(profile: str, seeds: int | None = None, settings: str | Sequence[str] | None = ()) -> Profile:
    """The profile that a chapter's parameters name, in what forms papermill passes them.

    `settings` change fields: ["width=16", "train=500"], or in one string "width=16, train=500".
    """
    if seeds is not None and not re.fullmatch(r"\d{1,9}(\.0)?", str(seeds)):
        raise InputError(
            f"seeds takes a whole number from 1, or None for those of the profile, not {seeds!r}"
        )
    if isinstance(settings, str):
        settings = filter(None, re.split(r",\s*(?=\w+\s*=|$)", settings))  # a path may have a comma
    chosen = settings if isinstance(settings, Iterable) else filter(None, [settings])
    return profiles.profile(profile, chosen, None if seeds is None else int(float(seeds)))


def run_study(
    name: str,
    profile: str = "quick",
    seeds: int | None = None,
    device: str = "auto",
    settings: str | Sequence[str] | None = (),
) -> Results:
    """The results of a study, after training what of it is not recorded yet; not with the device `none`."""
    [study], chosen = studies([name]), scale(profile, seeds, settings)
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
