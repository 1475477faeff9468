"""Checks of recorded results before, and after, they are published.

`Store.read` checks that a file is a sound record of the run it is named after.
Published records must also agree with each other and with the repository.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from repro.config import Dataset, InputError, run_from_json
from repro.data import datasets, downloads
from repro.store.files import Damaged
from repro.store.records import Store, git, results_folder

REWRITTEN = "rewritten.json"  # in the folder of results: commits that records name -> what they became


class Made(NamedTuple):
    """Records that were made alike, or one record: their number, first and last day, and training time."""

    device: str
    precision: str
    torch: str
    commit: str
    data: str  # fingerprint of the images, or "N samples" if there are several
    records: int
    first: str
    last: str
    hours: float


def folders(names: list[str]) -> list[Path]:
    """Folders of records of the named profiles, or all if none is named; `InputError` if one is missing."""
    there = sorted(path for path in results_folder().glob("*") if path.is_dir())
    if unknown := [name for name in names if name not in {path.name for path in there}]:
        found = ", ".join(path.name for path in there) or "none"
        raise InputError(f"no results of {unknown[0]!r} in {results_folder()}: there are {found}")
    return [path for path in there if not names or path.name in names]


def verify(folder: Path) -> tuple[list[Made], list[str]]:
    """A row for each sound record of a folder, and a line for each problem found.

    A record must be complete and belong to the run it is named after, else it has no row.
    Its numbers must be plausible, its commit one of this repository (or one that was
    rewritten, see `REWRITTEN`; unchecked without the full history), and its images those
    on this machine or, if there are none, those of the data set's other records.
    """
    store, rows, problems = Store(folder), [], []
    known = _commits()
    images: dict[Dataset, str] = {}
    landed = _rewritten(folder.parent)
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        if path.suffix != ".json":
            problems.append(f"{path}: no record")
            continue
        try:
            record = store.read(path.stem)
            dataset = run_from_json(record["run"]).dataset
            if dataset not in images:
                images[dataset] = _fingerprint(dataset) or record["data"]
            found = _implausible(record)
            if record["data"] != images[dataset]:
                found.append(f"made from images {record['data']}, not {images[dataset]}")
            made_by = landed.get(record["commit"], record["commit"])
            if known is not None and made_by not in known:
                found.append(f"made by {record['commit']}, which is no commit here")
            kind = record["device"], record["precision"], record["versions"]["torch"], str(made_by)[:10]
        except Damaged as damage:
            problems.append(str(damage))
            continue
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
            continue
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{path}: malformed ({type(error).__name__}: {error})")
            continue
        problems += [f"{path}: {reason}" for reason in found]
        day = record["finished"][:10]
        rows.append(Made(*kind, record["data"], 1, day, day, record["seconds"] / 3600))
    return rows, problems


def summary(rows: Iterable[Made]) -> list[Made]:
    """Combine rows of one record each that share device, precision, version of PyTorch and commit."""
    kinds: dict[tuple[str, ...], list[Made]] = {}
    for row in rows:
        kinds.setdefault(row[:4], []).append(row)
    made = []
    for kind, alike in kinds.items():
        images = {row.data for row in alike}
        data = min(images) if len(images) == 1 else f"{len(images)} samples"
        first, last = min(row.first for row in alike), max(row.last for row in alike)
        hours = round(math.fsum(row.hours for row in alike), 1)
        made.append(Made(*kind, data, len(alike), first, last, hours))
    return made


def _implausible(record: dict) -> list[str]:
    losses = [v for curve in record["curves"] for v in curve["train_loss"] if v is not None]
    tests = {
        "a negative loss": any(v < 0 for v in losses),
        "no seconds": not record["seconds"] > 0,
        "no population": not record["population"] >= 1,
        "finished in the future": datetime.fromisoformat(record["finished"]) > datetime.now().astimezone(),
    }
    return [words for words, wrong in tests.items() if wrong]


def _fingerprint(dataset: Dataset) -> str | None:
    """Fingerprint of a data set's images; None if they are user-supplied or have to be downloaded."""
    if dataset.fingerprint or (
        dataset.name in downloads.SOURCES and not downloads.cache(dataset.name).exists()
    ):
        return None
    return datasets.images(dataset).fingerprint


def _rewritten(results: Path) -> dict[str, str]:
    """What rewritten commits became in this repository, by their names in records; empty without a file."""
    path = results / REWRITTEN
    return json.loads(path.read_bytes()) if path.exists() else {}


def _commits() -> set[str] | None:
    """Names of all commits up to HEAD; None if there is no repository or its history is cut off (shallow)."""
    listed = git("rev-list", "HEAD")
    return set(listed.split()) if listed and git("rev-parse", "--is-shallow-repository") == "false" else None
