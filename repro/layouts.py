"""How networks of one shape train together on a GPU: measured once there, and kept in the store.

So a sweep goes on in the very populations it began with, on whatever machine.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from repro import data, files
from repro.config import Run, as_json
from repro.records import Store


@dataclass(frozen=True)
class Layout:
    """A population, as one grouped network or as networks side by side, and how fast it trained."""

    population: int
    grouped: bool
    rate: float  # training images a second, of all members
    evaluation: float  # seconds to test one member on one image


def shape(run: Run) -> tuple:
    """What the time of a step depends on."""
    return data.side(run.dataset), run.model, run.batch_size


def read(store: Store, run: Run) -> Layout | None:
    """What was measured for networks of this shape, if anything was."""
    try:
        found = Layout(**json.loads(_path(store, run).read_bytes()))
    except (OSError, ValueError, TypeError):  # not there, or damaged: it can be measured again
        return None
    return found if found.population >= 1 else None


def keep(store: Store, run: Run, layout: Layout) -> Layout:
    """What is kept for this shape from now on: this, unless another process was first."""
    path, content = _path(store, run), json.dumps(asdict(layout)).encode()
    if not files.create(path, content):
        if (first := read(store, run)) is not None:
            return first
        files.replace(path, content)
    return layout


def _path(store: Store, run: Run) -> Path:
    text = json.dumps(as_json(shape(run)), sort_keys=True)
    return store.folder / ".layouts" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
