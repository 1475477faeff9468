"""The paper's questions, in its order: one or two files for each chapter of the book.

A file has the studies that answer its question (`STUDIES`), what the paper claims
about them (`CLAIMS`), and its own figures. To add a question, add a file here and a
notebook to the book, or name a file of the same form elsewhere by its path.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from numbers import Real

from repro.analysis.claims import Arms, Claim, NotFitted, in_words
from repro.analysis.recorded import Results
from repro.config import InputError, Run
from repro.data import own
from repro.lazy import Lazy
from repro.scales import PROFILES, Profile
from repro.study import FRESH, Case, Study

pd = Lazy("pandas")

QUESTIONS = sorted(
    (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)),
    key=lambda question: question.STUDIES[0].chapter,
)
STUDIES: dict[str, Study] = {study.name: study for question in QUESTIONS for study in question.STUDIES}
CLAIMS: tuple[Claim, ...] = tuple(claim for question in QUESTIONS for claim in question.CLAIMS)


def studies(names: Iterable[str] = ()) -> list[Study]:
    """The named studies, or all if there are no names; `InputError` if one is unknown.

    `question.py` names all studies of a user's file, `question.py:study` one of them.
    """
    return [study for name in dict.fromkeys(map(str, names)) or STUDIES for study in _named(name)]


def _named(name: str) -> list[Study]:
    path, ending, one = name.rpartition(".py")
    known = question(path + ending)[0] if ending else STUDIES
    chosen = one.lstrip(":") if ending else name
    if ending and not chosen:
        return list(known.values())
    if chosen not in known:
        raise InputError(f"unknown study {chosen!r}: choose from {', '.join(known)}, or the path of a file")
    return [known[chosen]]


def question(path: str) -> tuple[dict[str, Study], tuple[Claim, ...]]:
    """Studies by name, and claims, of a user's file; `InputError` if it is not valid.

    Claims of the file are corrected for multiple testing apart from the paper's.
    """
    found = own.module(path)
    made, judged = getattr(found, "STUDIES", ()), getattr(found, "CLAIMS", ())
    for name, kind, values in (("STUDIES", Study, made), ("CLAIMS", Claim, judged)):
        if not isinstance(values, list | tuple) or not all(isinstance(value, kind) for value in values):
            raise InputError(f"{path}: {name} is no list of them, as a file of repro.questions has")
    if not made:
        raise InputError(f"{path} has no STUDIES, as a file of repro.questions has")
    named = Counter([f"studies {study.name!r}" for study in made] + [f"claims {c.id!r}" for c in judged])
    if twice := [name for name, times in named.items() if times > 1]:
        raise InputError(f"{path}: two {twice[0]}")
    known = {study.name: dataclasses.replace(study, cases=_checked(path, study)) for study in made}
    if astray := [c.id for c in judged if c.study not in known]:
        raise InputError(f"{path}: the claim {astray[0]!r} is of no study of this file")
    return known, tuple(_checked_claim(path, claim) for claim in judged)


def _checked(path: str, study: Study) -> Callable[[Profile], list[Case]]:
    """The study's `cases`; errors in them raise `InputError`, as do cases that cannot be compared."""

    def cases(profile: Profile) -> list[Case]:
        with own.refused(path, study.name):
            made = study.cases(profile)
            if not isinstance(made, list) or not all(isinstance(case, Case) for case in made):
                raise InputError("it gives no list of cases: decorate its function with @crossed")
            if odd := [v for case in made for v in case.factors.values() if not isinstance(v, str | Real)]:
                raise InputError(f"a factor is text or a number, not {odd[0]!r}")
            arms = Counter((case.condition, case.seed, *sorted(case.factors.items())) for case in made)
            if len(arms) < len(made):
                condition, _, *factors = arms.most_common(1)[0][0]
                said = in_words(condition, dict(factors))
                raise InputError(f"two arms are called {said}: tell them apart by condition or factors")
            if made and not any(case.condition == FRESH for case in made):
                raise InputError("it has no fresh runs, with which others could be compared")
            if not made and not any(map(study.cases, PROFILES.values())):
                raise InputError("it has no runs at any profile")
        return made

    return cases


def _checked_claim(path: str, claim: Claim) -> Claim:
    """The claim; errors in its function raise `InputError`, as do arms or columns that never come."""
    kind = "effect" if claim.contrast is None else "contrast"
    measure = getattr(claim, kind)

    def checked(recorded: Arms | Results) -> pd.DataFrame:
        try:
            found = measure(recorded)
            if not isinstance(found, pd.Series | pd.DataFrame | Mapping):
                raise InputError(f"its {kind} must be a number for each seed (pandas.Series), not {found!r}")
            return pd.DataFrame(found).astype(float)
        except Exception as error:
            if isinstance(error, NotFitted) or (type(error) is KeyError and recorded.missing):
                raise
            raise InputError(f"{path}: claim {claim.id}: {own.said(error)}") from error

    return dataclasses.replace(claim, **{kind: checked})


def by_priority(cases: Iterable[Case]) -> list[Run]:
    """Distinct runs of these cases, by priority: a sweep may be cut short."""
    first: dict[Run, int] = {}
    for case in cases:
        first[case.run] = min(case.priority, first.get(case.run, case.priority))
    return sorted(first, key=first.__getitem__)
