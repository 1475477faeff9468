"""How networks of one shape train together on a GPU: by a table, or as it was measured for a store.

So a sweep goes on in the very populations it began with, on whatever machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from repro import data, files, plans
from repro.config import Run, as_json
from repro.plans import Plan
from repro.records import Store


@dataclass(frozen=True)
class Layout:
    """A population, as one grouped network or as networks side by side, and how fast it trained."""

    population: int
    grouped: bool
    rate: float = 0.0  # training images a second, of all members; 0 where nothing was measured
    evaluation: float = 0.0  # seconds to test one member on one image
    compiled: bool = False
    layout: str = "channels_last"  # of images and weights in memory, one of `fused.LAYOUTS`


# What is near the fastest up to a width, of batches of 128 images of 32 x 32 on an H200.
DEFAULTS = (
    (24, Layout(10, grouped=True)),
    (48, Layout(6, grouped=False)),
    (96, Layout(3, grouped=False)),
    (math.inf, Layout(1, grouped=True)),
)
COMPILING_PAYS = 10_000_000  # training images of a shape; of fewer, compiling takes longer than it saves


def default(run: Run) -> Layout:
    """How networks of this shape train on a GPU for which nothing was measured."""
    return next(layout for width, layout in DEFAULTS if run.model.width <= width)


def fitted(plan: Plan, store: Store) -> tuple[Plan, Callable[[Run], Layout]]:
    """The same runs in populations for a GPU, and how these train: as the store says, or the table."""
    images: Counter[tuple] = Counter()
    for trajectory in (t for batch in plan.batches for t in batch.trajectories):
        images[shape(trajectory.longest)] += trajectory.steps * trajectory.longest.batch_size
    shapes = {shape(run): run for batch in plan.batches for run in batch.runs}
    found = {key: read(store, run) or default(run) for key, run in shapes.items()}
    for key, layout in found.items():
        found[key] = replace(layout, compiled=layout.compiled and images[key] >= COMPILING_PAYS)
    return plans.plan(plan.wanted.values(), lambda run: found[shape(run)].population), lambda run: found[
        shape(run)
    ]


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
