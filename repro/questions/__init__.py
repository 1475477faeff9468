"""The paper's questions, in its order: one file for each chapter of the book.

A file has the studies that answer its question (`STUDIES`), what the paper claims
of them (`CLAIMS`), and figures of its own. Every file of this folder is a question:
to add one is to add a file here and a notebook to the book.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from repro.analysis.claims import Claim
from repro.config import InputError, Run
from repro.profiles import Profile
from repro.study import Study

QUESTIONS = sorted(
    (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)),
    key=lambda question: question.STUDIES[0].chapter,
)
STUDIES: dict[str, Study] = {study.name: study for question in QUESTIONS for study in question.STUDIES}
CLAIMS: tuple[Claim, ...] = tuple(claim for question in QUESTIONS for claim in question.CLAIMS)


def studies(names: Iterable[str] = ()) -> list[Study]:
    """The named studies, all where none is named; raises `InputError` on an unknown name."""
    names = list(names) or list(STUDIES)
    if unknown := [name for name in names if name not in list(STUDIES)]:
        raise InputError(f"unknown study {unknown[0]!r}: choose from {', '.join(STUDIES)}")
    return [STUDIES[name] for name in dict.fromkeys(names)]


def claims_of(study: str) -> list[Claim]:
    """The claims that a study decides."""
    return [claim for claim in CLAIMS if claim.study == study]


def by_value(profile: Profile) -> list[Run]:
    """The runs of all studies, those that say most first, so that a sweep cut short is worth most."""
    cases = [case for study in STUDIES.values() for case in study.cases(profile)]
    first: dict[Run, int] = {}
    for case in cases:
        first[case.run] = min(case.priority, first.get(case.run, case.priority))
    return sorted(first, key=first.__getitem__)
