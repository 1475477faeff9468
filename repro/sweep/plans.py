"""Which runs are missing, and how they train together.

Planning needs neither torch nor data. It looks at all runs asked for, recorded
or not, so that an interrupted sweep goes on in the very populations it began
with, and gives the results it would have given.
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

CACHED = 2**20  # numbers in a layer of a population; with more of them a core slows down


@dataclass(frozen=True)
class Trajectory:
    """Runs that are one training: they differ in the epochs of the last stage, or in what is probed."""

    runs: tuple[Run, ...]  # by epochs

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
        """The hash of its runs."""
        names = ",".join(run.id for run in self.runs)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for t in self.trajectories for run in t.runs)

    @functools.cached_property
    def starts(self) -> frozenset[str]:
        """Ids of the runs whose last network is where a trajectory starts."""
        parents = (t.longest.parent for t in self.trajectories)
        return frozenset(run.id for run in parents if run is not None)

    @property
    def steps(self) -> int:
        return sum(t.steps for t in self.trajectories)

    def part(self, mask: int) -> Part:
        """The trajectories at the places where the mask has a bit, the first place being the lowest bit."""
        return Part(tuple(t for i, t in enumerate(self.trajectories) if mask >> i & 1), self)


@dataclass(frozen=True)
class Part(Group):
    """Trajectories of a planned group that train without the others, in the group's order."""

    whole: Group

    @functools.cached_property
    def id(self) -> str:
        """The id of the planned group, and which of its trajectories these are; it names a checkpoint."""
        chosen = set(self.trajectories)
        mask = sum(1 << i for i, t in enumerate(self.whole.trajectories) if t in chosen)
        return f"{self.whole.id}-{mask:x}"

    def pieces(self, size: int) -> list[Part]:
        """Parts of the same planned group, of so many trajectories each."""
        starts = range(0, len(self.trajectories), size)
        return [Part(self.trajectories[i : i + size], self.whole) for i in starts]


@dataclass(frozen=True)
class Layout:
    """A population, as one grouped network or as networks side by side."""

    population: int
    grouped: bool
    compiled: bool = False


@dataclass(frozen=True)
class Plan:
    """All that a set of runs takes: groups in an order that trains parents first."""

    wanted: dict[str, Run]
    parents: frozenset[str]  # ids of runs whose end is the start of others
    groups: tuple[Group, ...]

    @property
    def epochs(self) -> int:
        """Epochs to train with shared stages trained once."""
        return sum(t.longest.stages[-1].epochs for group in self.groups for t in group.trajectories)

    @property
    def epochs_alone(self) -> int:
        """Epochs to train with every run trained from its first stage by itself."""
        return sum(stage.epochs for run in self.wanted.values() for stage in run.stages)

    @property
    def steps(self) -> int:
        """Optimiser steps of single networks, with sharing."""
        return sum(group.steps for group in self.groups)


def population_size(run: Run) -> int:
    """How many networks of this shape train together on a core, as `benchmarks/NOTES.md` has measured it.

    Small ones leave it idle, large ones crowd its cache; those of one's own are no group.
    """
    if run.model.code is not None:
        return 1
    activations = run.batch_size * run.model.width * datasets.side(run.dataset) ** 2  # in a layer of module 1
    return max(1, min(64 // run.model.width, CACHED // activations))


def plan(runs: Iterable[Run], size: Callable[[Run], int] = population_size) -> Plan:
    """Group runs into trajectories and those into groups of a size; shared pretraining appears once.

    Runs asked for first come first.
    """
    wanted = {run.id: run for run in runs}
    rank: dict[str, int] = {}  # the place of the first wanted run that a run serves
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
        unmeasured = dataclasses.replace(run, probes=())
        # Probes take longer than training, and are worth less: what is measured is trained by itself.
        begun = with_epochs(unmeasured, 1) if run.stages[-1].prefixed else unmeasured
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
    """What trajectories of one population have in common, their place in the order of training first.

    Those that nothing starts from may mix fresh and pretrained networks: they
    train after all others, so no two groups can wait for each other.
    """
    run = trajectory.longest
    stage = run.stages[-1]
    is_parent = any(r.id in parents for r in trajectory.runs)
    level = len(run.stages) if is_parent else sys.maxsize
    subset = ALL if stage.data.gamma or stage.data.part == stage.data.parts else stage.data
    spec = stage.epochs, stage.optimizer, stage.until, stage.shift, stage.flip, subset
    return (level, run.dataset, run.model, run.batch_size, *spec)


def with_epochs(run: Run, epochs: int) -> Run:
    """The run that ends after so many epochs of its last stage."""
    last = dataclasses.replace(run.stages[-1], epochs=epochs)
    return dataclasses.replace(run, stages=(*run.stages[:-1], last))


def missing(plan: Plan, store: Store) -> set[str]:
    """Ids of wanted runs without a sound record."""
    return {name for name in plan.wanted if not store.recorded(name)}


def unfinished(plan: Plan, store: Store, absent: set[str]) -> list[tuple[Part, frozenset[str]]]:
    """What is left to train for the absent runs to be recorded, what serves the first of them first.

    Parts of planned groups, each with the ids of those of its runs that are
    needed: the absent ones, and those whose network is lacking where another
    starts.
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
    """The part of a planned group to train for the needed runs, None where it has none of them.

    It is their trajectories alone, or those that lie together in a checkpoint that has all of these.
    """
    pending = sum(1 << i for i, t in enumerate(group.trajectories) if any(r.id in needed for r in t.runs))
    begun = [mask for mask in _checkpoints(group, store) if mask & pending == pending]
    return group.part(min(begun, key=int.bit_count, default=pending)) if pending else None


def discard_checkpoints(
    groups: Iterable[Group], store: Store, wanted: Container[str], parents: Container[str]
) -> None:
    """Delete the groups' checkpoints of which all is there: records of wanted runs, networks of parents."""
    for group in groups:
        for mask, path in _checkpoints(group, store).items():
            names = [run.id for run in group.part(mask).runs]
            recorded = all(store.path(name).exists() for name in names if name in wanted)
            if recorded and all(store.snapshot(name).exists() for name in names if name in parents):
                path.unlink(missing_ok=True)


def _checkpoints(group: Group, store: Store) -> dict[int, Path]:
    """The checkpoints that there are of parts of this group, by the mask of `Group.part`."""
    found = {}
    for path in store.checkpoint(group.id).parent.glob("*.pt"):  # a pattern that need not be compiled anew
        name, _, mask = path.stem.partition("-")
        with contextlib.suppress(ValueError):
            if name == group.id:
                found[int(mask, 16)] = path
    return found
