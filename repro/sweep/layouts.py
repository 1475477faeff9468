"""How networks of one shape train together; on a GPU by a table, or as it was measured for a store.

So a sweep goes on in the very populations it began with, on whatever machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

from repro.config import Run, as_json
from repro.data import datasets
from repro.store import files
from repro.store.records import Store
from repro.sweep import plans
from repro.sweep.plans import Group, Layout, Plan


def on_cpu(run: Run) -> Layout:
    """One grouped network, or networks side by side where those of a group would not be rounded as alone.

    That is where PyTorch's convolutions train, for batches that are no multiple of 16 (`repro.cpu`).
    """
    return Layout(plans.population_size(run), grouped=run.batch_size % 16 == 0)


# Up to a width, what was fastest on an H200, batches of 128 images of 32 x 32
# (`benchmarks/results/gpu-h200.json`). At width 16 a compiled group of 20 led, 1.14 times as fast as one of
# 10. At width 64 three networks on streams were within 2 % of six, not compiled; compiled, three steps of
# the three took 18 ms instead of 24. Between the two nothing was measured compiled, but batch norm and
# additions, which a compiler makes cheap, weigh in both. Above, nothing was measured.
DEFAULTS = (
    (24, Layout(20, grouped=True, compiled=True)),
    (48, Layout(6, grouped=False, compiled=True)),
    (96, Layout(3, grouped=False, compiled=True)),
    (math.inf, Layout(1, grouped=True)),
)
# Training images of what is compiled once; of fewer, compiling takes longer than it saves. At width 16 it
# took 35 s, then 1 / 224,000 s an image in a group of 20, where one of 10 had taken 1 / 152,000 s without:
# 16 million images. At width 64 it took 32 s, then 16 microseconds an image instead of 21: 6 million.
COMPILING_PAYS = 16_000_000


def default(run: Run) -> Layout:
    """How networks of this shape train on a GPU for which nothing was measured; one's own, alone."""
    if run.model.code is not None:
        return Layout(1, grouped=True)
    return next(layout for width, layout in DEFAULTS if run.model.width <= width)


def fitted(
    plan: Plan, store: Store, compiling_pays: int = COMPILING_PAYS
) -> tuple[Plan, Callable[[Run], Layout]]:
    """The same runs in populations for a GPU, and how these train: as the store says, or the table.

    Compiled is only what has so many training images.
    """
    shapes = {shape(run): run for group in plan.groups for run in group.runs}
    found = {key: read(store, run) or default(run) for key, run in shapes.items()}
    made = plans.plan(plan.wanted.values(), lambda run: found[shape(run)].population)

    def compilation(group: Group) -> tuple:
        """Equal for groups that share what is compiled; one of another size is another network."""
        key = shape(group.trajectories[0].longest)
        return key, len(group.trajectories) if found[key].grouped else 1

    images: Counter[tuple] = Counter()
    for group in made.groups:
        images[compilation(group)] += group.steps * group.trajectories[0].longest.batch_size
    long = {run.id: images[compilation(g)] >= compiling_pays for g in made.groups for run in g.runs}

    def layout(run: Run) -> Layout:
        chosen = found[shape(run)]
        return replace(chosen, compiled=chosen.compiled and long[run.id])

    return made, layout


def shape(run: Run) -> tuple:
    """What the time of a step depends on."""
    return datasets.side(run.dataset), run.model, run.batch_size


def read(store: Store, run: Run) -> Layout | None:
    """What was measured for networks of this shape, if anything was."""
    try:
        content = json.loads(_path(store, run).read_bytes())
        found = Layout(**{f.name: content[f.name] for f in fields(Layout) if f.name in content})
    except (OSError, ValueError, TypeError):  # not there, or damaged: it can be measured again
        return None
    return found if found.population >= 1 else None


def keep(store: Store, run: Run, layout: Layout) -> None:
    """Store a layout for all runs of one shape, unless there is one already."""
    if read(store, run) is None:
        files.replace(_path(store, run), json.dumps(asdict(layout)).encode())


def _path(store: Store, run: Run) -> Path:
    text = json.dumps(as_json(shape(run)), sort_keys=True)
    return store.folder / ".layouts" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
