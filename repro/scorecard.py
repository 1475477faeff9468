"""The paper's claims, each with the contrast it makes, and the verdict of the records on all."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from repro import questions
from repro.analysis import recorded
from repro.analysis.claims import DECIDED, Verdict, verdicts
from repro.analysis.recorded import Results
from repro.lazy import Lazy
from repro.profiles import PROFILES, Profile
from repro.questions import CLAIMS, STUDIES
from repro.store.records import Store

np, pd = Lazy("numpy"), Lazy("pandas")  # as in `repro.analysis.stats`

EARLY = (5, 10)  # epochs of pretraining after which, the paper says, a gap is there
UNEVEN = (2, 5, 10)  # portions that are also dealt by class, to one class in each
SPEED_AT = 0.9  # train accuracy whose epoch is compared where modules are kept
SPEED_LEVELS = (0.8, 0.9, 0.95)  # train accuracies at which the claim on speed is tested
RECOVERED = 0.8  # share of the gap that a reset has to close to count as recovery
LARGEST_FIRST = (
    "paper",
    "cifar10-wide",
    "cifar10",
    "cifar10-small",
    "laptop",
    "quick",
)  # a claim is told at the first that is whole


def scorecard(profile: Profile, question: str | None = None) -> dict[str, Verdict]:
    """The verdict on every claim by its id, from what is recorded at a profile; trains nothing.

    On the paper's claims, or on those of the question in a file, which are a family of their own.
    """
    if question is None:
        return _judged(*_place(profile))
    known, claims = questions.question(question)
    made = {name: recorded.results(known[name], profile) for name in dict.fromkeys(c.study for c in claims)}
    return {v.claim.id: v for v in verdicts((claim, made[claim.study]) for claim in claims)}


def _place(profile: Profile) -> tuple[Profile, Path, tuple]:
    """The profile, the folder of its records, and their stamp."""
    store = Store.of(profile.name)
    return profile, store.folder, store.stamp()


@lru_cache(maxsize=32)  # a chapter asks many times
def _judged(profile: Profile, folder: Path, stamp: tuple) -> dict[str, Verdict]:
    """The scorecard of the records that a folder holds, by its stamp."""
    results = _recorded(profile, folder, stamp)
    return {v.claim.id: v for v in verdicts((claim, results.get(claim.study)) for claim in CLAIMS)}


@lru_cache(maxsize=32)
def _recorded(profile: Profile, folder: Path, stamp: tuple) -> dict[str, Results]:
    """The results of all studies from the records that a folder holds, by its stamp; none from no record."""
    return {name: recorded.results(study, profile) for name, study in STUDIES.items() if stamp}


def at_each_scale() -> dict[str, dict[str, Verdict]]:
    """The scorecard of every named profile of which something is recorded, the largest first."""
    names = [*LARGEST_FIRST, *(name for name in PROFILES if name not in LARGEST_FIRST)]
    cards = {name: scorecard(PROFILES[name]) for name in names}
    return {name: card for name, card in cards.items() if any(v.effect.n for v in card.values())}


def best() -> dict[str, Verdict]:
    """The verdict on every claim at the largest scale of which all planned seeds are recorded.

    Which scale that is depends on what is recorded, never on what came out.
    """
    places = {name: _place(PROFILES[name]) for name in LARGEST_FIRST}
    cards = [_judged(*place) for place in places.values()]
    chosen = []
    for claim in CLAIMS:
        found = [card[claim.id] for card in cards]
        whole = [verdict for verdict in found if verdict.verdict in DECIDED]
        begun = [verdict for verdict in found if verdict.effect.n or verdict.verdict == "not tested"]
        profile = next(iter([*whole, *begun, *found])).profile
        chosen.append((claim, _recorded(*places[profile]).get(claim.study) if profile else None))
    return {v.claim.id: v for v in verdicts(chosen)}
