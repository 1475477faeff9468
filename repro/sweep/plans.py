"""Which runs are missing, and how they train together.

Planning needs neither PyTorch nor the images of a named data set. It looks at all
runs asked for, recorded or not, so that an interrupted sweep goes on in the same
populations, and gives the results that it would have given without a break.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Set
from dataclasses import dataclass
from pathlib import Path

from repro.config import ALL, Run
from repro.data import datasets
from repro.data.datasets import steps_per_epoch
from repro.store.records import Store

CACHED = 2**20  # numbers in a layer's output for a population; with more, a core slows down


@dataclass(frozen=True)
class Trajectory:
    """Runs that one training serves: they differ only in the epochs of the last stage or in their probes."""

    runs: tuple[Run, ...]  # fewest epochs first

    @property
    def longest(self) -> Run:
        return self.runs[-1]

    @property
    def steps(self) -> int:
        """Optimiser steps from the parent's end to the end of the longest run."""
        return self.longest.stages[-1].epochs * steps_per_epoch(self.longest)


@dataclass(frozen=True)
class Group:
    """Trajectories that train together, as one population."""

    trajectories: tuple[Trajectory, ...]

    @functools.cached_property
    def id(self) -> str:
        """A hash of the ids of its runs."""
        names = ",".join(run.id for run in self.runs)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for t in self.trajectories for run in t.runs)

    @functools.cached_property
    def starts(self) -> frozenset[str]:
        """Ids of the runs from whose final networks its trajectories start."""
        parents = (t.longest.parent for t in self.trajectories)
        return frozenset(run.id for run in parents if run is not None)

    @property
    def steps(self) -> int:
        return sum(t.steps for t in self.trajectories)

    def part(self, mask: int) -> Part:
        """The trajectories whose bits are set in `mask`; the lowest bit stands for the first one."""
        return Part(tuple(t for i, t in enumerate(self.trajectories) if mask >> i & 1), self)


@dataclass(frozen=True)
class Part(Group):
    """Trajectories of a planned group that train without the others, in the group's order."""

    whole: Group

    @functools.cached_property
    def id(self) -> str:
        """The planned group's id and the mask of these trajectories in it; it names a checkpoint."""
        chosen = set(self.trajectories)
        mask = sum(1 << i for i, t in enumerate(self.whole.trajectories) if t in chosen)
        return f"{self.whole.id}-{mask:x}"

    def pieces(self, size: int) -> list[Part]:
        """Its trajectories in parts of at most `size`, all of the same planned group."""
        starts = range(0, len(self.trajectories), size)
        return [Part(self.trajectories[i : i + size], self.whole) for i in starts]


@dataclass(frozen=True)
class Layout:
    """The size of a population, and whether it is one grouped network or networks side by side."""

    population: int
    grouped: bool
    compiled: bool = False


@dataclass(frozen=True)
class Plan:
    """All training that a set of runs takes: groups in an order that trains parents first."""

    wanted: dict[str, Run]
    parents: frozenset[str]  # ids of runs whose final networks others start from
    groups: tuple[Group, ...]

    @property
    def epochs(self) -> int:
        """Epochs to train if shared stages are trained once."""
        return sum(t.longest.stages[-1].epochs for group in self.groups for t in group.trajectories)

    @property
    def epochs_alone(self) -> int:
        """Epochs to train if every run is trained by itself from its first stage on."""
        return sum(stage.epochs for run in self.wanted.values() for stage in run.stages)

    @property
    def steps(self) -> int:
        """Optimiser steps, added up over networks, if shared stages are trained once."""
        return sum(group.steps for group in self.groups)


def population_size(run: Run) -> int:
    """How many networks of this shape train together on a core, as measured in `benchmarks/NOTES.md`.

    Too few small ones leave the core idle, too many large ones overflow its cache; custom ones train alone.
    """
    if run.model.code is not None:
        return 1
    activations = run.batch_size * run.model.width * datasets.shape(run.dataset)[0] ** 2  # of a layer
    return max(1, min(64 // run.model.width, CACHED // activations))


def plan(runs: Iterable[Run], size: Callable[[Run], int] = population_size) -> Plan:
    """Collect runs in trajectories, and those in groups of at most `size`; shared stages appear once.

    Groups that the first runs need come first.
    """
    wanted = {run.id: run for run in runs}
    rank: dict[str, int] = {}  # the position of the first wanted run that needs a run
    needed: dict[str, Run] = {}
    parents = set()
    for position, run in enumerate(wanted.values()):
        ancestor: Run | None = run
        while ancestor is not None:
            needed[ancestor.id] = ancestor
            rank.setdefault(ancestor.id, position)
            ancestor = ancestor.parent
            if ancestor is not None:
                parents.add(ancestor.id)

    families = defaultdict(list)
    for run in needed.values():
        *before, last = run.stages
        last = dataclasses.replace(last, epochs=1) if last.prefixed else last
        # Probes take longer than training and are worth less: runs with probes have their own trajectories.
        begun = dataclasses.replace(run, stages=(*before, last), probes=())
        families[begun, bool(run.probes)].append(run)
    shapes = defaultdict(list)
    for family in families.values():
        trajectory = Trajectory(tuple(sorted(family, key=lambda r: r.stages[-1].epochs)))
        shapes[_shape(trajectory, parents)].append(trajectory)

    groups = []
    for alike in shapes.values():
        alike.sort(key=lambda t: min(rank[r.id] for r in t.runs))
        chunks = -(-len(alike) // size(alike[0].longest))
        for i in range(chunks):  # their sizes differ by one at most
            groups.append(Group(tuple(alike[len(alike) * i // chunks : len(alike) * (i + 1) // chunks])))
    groups.sort(key=lambda group: min(rank[run.id] for run in group.runs))
    return Plan(wanted, frozenset(parents), tuple(_parents_first(groups)))


def _parents_first(groups: list[Group]) -> list[Group]:
    """The groups in the order given, each preceded by those that train its members' parents."""
    home = {run.id: group for group in groups for run in group.runs}
    ordered: dict[Group, None] = {}

    def place(group: Group) -> None:
        if group in ordered:
            return
        for trajectory in group.trajectories:
            if (parent := trajectory.longest.parent) is not None:
                place(home[parent.id])
        ordered[group] = None

    for group in groups:
        place(group)
    return list(ordered)


def _shape(trajectory: Trajectory, parents: set[str]) -> tuple:
    """A key that is equal for trajectories that may train in one population.

    Parents are grouped by their number of stages, so that no two groups can wait for each other.
    Trajectories from which nothing starts may mix fresh and pretrained networks: no group waits for them.
    """
    run = trajectory.longest
    stage = run.stages[-1]
    is_parent = any(r.id in parents for r in trajectory.runs)
    level = len(run.stages) if is_parent else sys.maxsize
    subset = ALL if stage.data.gamma or stage.data.part == stage.data.parts else stage.data
    spec = stage.epochs, stage.optimizer, stage.until, stage.shift, stage.flip, subset
    return (level, run.dataset, run.model, run.batch_size, *spec)


def missing(plan: Plan, store: Store) -> set[str]:
    """Ids of wanted runs whose record is missing or damaged."""
    return {name for name in plan.wanted if not store.recorded(name)}


def unfinished(plan: Plan, store: Store, absent: set[str]) -> list[tuple[Part, frozenset[str]]]:
    """What is left to train so that the absent runs are recorded, in the order of the wanted runs.

    Returns parts of planned groups, each with the ids of its runs that are needed: the
    absent ones, and those whose final network is missing although a needed run starts
    from it.
    """
    needed = {name: place for place, name in enumerate(plan.wanted) if name in absent}
    parts = []
    for group in reversed(plan.groups):
        if part := remaining(group, store, needed.keys()):
            own = frozenset(run.id for run in part.runs if run.id in needed)
            place = min(needed[name] for name in own)
            parts.append((place, part, own))
            for name in part.starts:
                if not store.snapshot(name).exists():
                    needed[name] = min(place, needed.get(name, place))
    parts.reverse()  # parents come before their branches again, and stay there: sorting is stable
    return [(part, own) for _, part, own in sorted(parts, key=lambda found: found[0])]


def remaining(group: Group, store: Store, needed: Set[str]) -> Part | None:
    """The part of a planned group to train for the needed runs, or None if it has none of them.

    It has only their trajectories, or all those of the smallest checkpoint that contains these.
    """
    pending = sum(1 << i for i, t in enumerate(group.trajectories) if any(r.id in needed for r in t.runs))
    begun = [mask for mask in _checkpoints(group, store) if mask & pending == pending]
    return group.part(min(begun, key=int.bit_count, default=pending)) if pending else None


def discard_checkpoints(
    groups: Iterable[Group], store: Store, wanted: Container[str], parents: Container[str]
) -> None:
    """Delete checkpoints all of whose wanted runs have records, and all of whose parents have snapshots."""
    for group in groups:
        for mask, path in _checkpoints(group, store).items():
            names = [run.id for run in group.part(mask).runs]
            recorded = all(store.path(name).exists() for name in names if name in wanted)
            if recorded and all(store.snapshot(name).exists() for name in names if name in parents):
                path.unlink(missing_ok=True)


def _checkpoints(group: Group, store: Store) -> dict[int, Path]:
    """The existing checkpoints of parts of this group, by the mask of `Group.part`."""
    found = {}
    for path in store.checkpoint(group.id).parent.glob("*.pt"):  # a constant pattern, so compiled only once
        name, _, mask = path.stem.partition("-")
        with contextlib.suppress(ValueError):
            if name == group.id:
                found[int(mask, 16)] = path
    return found
