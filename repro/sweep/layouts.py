"""The layout in which networks of one shape (image size, model and batch size) train together.

On a GPU, it is the one kept in the store, else one from a table. Neither depends on
the machine, so that an interrupted sweep goes on in the same populations anywhere.
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
    """One grouped network if batches are a multiple of 16 images, else networks side by side.

    Other batches go through PyTorch's convolutions (`repro.cpu`), which round differently in a group.
    """
    return Layout(plans.population_size(run), grouped=run.batch_size % 16 == 0)


# The fastest layouts on an H200, each up to a width, for batches of 128 images of 32 x 32
# (`benchmarks/results/gpu-h200.json`). At width 16 a compiled group of 20 was best, 1.14 times as fast as
# one of 10. At width 64, not compiled, three networks on streams were within 2 % of six; compiling cut three
# steps of the three from 24 ms to 18. Between these widths nothing was measured compiled, but at both much
# time goes to batch norm and additions, which compiling makes cheap. Above, nothing was measured.
DEFAULTS = (
    (24, Layout(20, grouped=True, compiled=True)),
    (48, Layout(6, grouped=False, compiled=True)),
    (96, Layout(3, grouped=False, compiled=True)),
    (math.inf, Layout(1, grouped=True)),
)
# Networks are compiled for at least this many training images; for fewer, compiling takes longer than it
# saves. At width 16 it took 35 s, then 1 / 224,000 s an image in a group of 20, instead of 1 / 152,000 s in
# one of 10 not compiled: it pays from 16 million images on. At width 64 it took 32 s, then 16 microseconds
# an image instead of 21: from 6 million on.
COMPILING_PAYS = 16_000_000


def default(run: Run) -> Layout:
    """The table's layout for this shape on a GPU; custom networks train alone."""
    if run.model.code is not None:
        return Layout(1, grouped=True)
    return next(layout for width, layout in DEFAULTS if run.model.width <= width)


def fitted(
    plan: Plan, store: Store, compiling_pays: int = COMPILING_PAYS
) -> tuple[Plan, Callable[[Run], Layout]]:
    """The plan of the same runs with populations for a GPU, and the layout of each run.

    Networks are compiled only if those that share a compilation train on `compiling_pays` images or more.
    """
    shapes = {shape(run): run for group in plan.groups for run in group.runs}
    found = {key: read(store, run) or default(run) for key, run in shapes.items()}
    made = plans.plan(plan.wanted.values(), lambda run: found[shape(run)].population)

    def compilation(group: Group) -> tuple:
        """A key, equal for groups that share a compilation; grouped networks of another size do not."""
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
    """What the time of a step depends on: size of the images, model and batch size."""
    return datasets.shape(run.dataset)[0], run.model, run.batch_size


def read(store: Store, run: Run) -> Layout | None:
    """The layout kept for networks of this shape; None if there is none, or a damaged one."""
    try:
        content = json.loads(_path(store, run).read_bytes())
        found = Layout(**{f.name: content[f.name] for f in fields(Layout) if f.name in content})
    except (OSError, ValueError, TypeError):  # missing or damaged
        return None
    return found if found.population >= 1 else None


def keep(store: Store, run: Run, layout: Layout) -> None:
    """Store a layout for all runs of one shape, unless there is one already."""
    if read(store, run) is None:
        files.replace(_path(store, run), json.dumps(asdict(layout)).encode())


def _path(store: Store, run: Run) -> Path:
    text = json.dumps(as_json(shape(run)), sort_keys=True)
    return store.folder / ".layouts" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
