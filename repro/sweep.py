"""Which runs are missing, how they train together, and training them.

Planning needs neither torch nor data. It looks at all runs asked for, recorded
or not, so that an interrupted sweep goes on in the very populations it began
with, and gives the results it would have given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import signal
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from repro import profiles, records
from repro.config import ALL, Run
from repro.profiles import Profile
from repro.progress import Progress, shown
from repro.records import Store
from repro.studies import Study, studies
from repro.subsets import steps_per_epoch


@dataclass(frozen=True)
class Trajectory:
    """Runs that are one training: they differ in the epochs of the last stage alone."""

    runs: tuple[Run, ...]  # by epochs

    @property
    def longest(self) -> Run:
        return self.runs[-1]

    @property
    def steps(self) -> int:
        """Optimiser steps from the parent's end to the end of the longest run."""
        return self.longest.stages[-1].epochs * steps_per_epoch(self.longest)


@dataclass(frozen=True)
class Batch:
    """Trajectories that train together, as one population."""

    trajectories: tuple[Trajectory, ...]

    @property
    def id(self) -> str:
        names = ",".join(run.id for t in self.trajectories for run in t.runs)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    @property
    def steps(self) -> int:
        return sum(t.steps for t in self.trajectories)


@dataclass(frozen=True)
class Plan:
    """All that a set of runs takes: batches in an order that trains parents first."""

    wanted: dict[str, Run]
    parents: frozenset[str]  # ids of runs whose end is the start of others
    batches: tuple[Batch, ...]

    @property
    def epochs(self) -> int:
        """Epochs to train with shared stages trained once."""
        return sum(t.longest.stages[-1].epochs for batch in self.batches for t in batch.trajectories)

    @property
    def epochs_alone(self) -> int:
        """Epochs to train with every run trained from its first stage by itself."""
        return sum(stage.epochs for run in self.wanted.values() for stage in run.stages)

    @property
    def steps(self) -> int:
        """Optimiser steps of single networks, with sharing."""
        return sum(batch.steps for batch in self.batches)


def population_size(run: Run) -> int:
    """How many networks of this shape train together: small ones leave a processor idle."""
    return max(1, 64 // run.model.width)


def plan(runs: Iterable[Run]) -> Plan:
    """Group runs into trajectories and those into batches; shared pretraining appears once.

    Runs asked for first, and seed by seed, come first.
    """
    wanted = {run.id: run for run in runs}
    rank: dict[str, int] = {}  # of the first wanted run that a run serves
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
        stage = run.stages[-1]
        prefixed = stage.data.gamma is None and stage.until is None
        families[with_epochs(run, 1) if prefixed else run].append(run)
    shapes = defaultdict(list)
    for family in families.values():
        trajectory = Trajectory(tuple(sorted(family, key=lambda r: r.stages[-1].epochs)))
        shapes[_shape(trajectory, parents)].append(trajectory)

    batches = []
    for alike in shapes.values():
        alike.sort(key=lambda t: (t.longest.split_seed, min(rank[r.id] for r in t.runs)))
        size = population_size(alike[0].longest)
        chunks = -(-len(alike) // size)
        for i in range(chunks):  # of nearly equal size
            batches.append(Batch(tuple(alike[len(alike) * i // chunks : len(alike) * (i + 1) // chunks])))
    batches.sort(key=lambda batch: min(rank[r.id] for t in batch.trajectories for r in t.runs))
    return Plan(wanted, frozenset(parents), tuple(_parents_first(batches)))


def _parents_first(batches: list[Batch]) -> list[Batch]:
    """The batches in the order given, each preceded by those that train its members' parents."""
    home = {run.id: batch for batch in batches for t in batch.trajectories for run in t.runs}
    ordered: dict[Batch, None] = {}

    def place(batch: Batch) -> None:
        for trajectory in batch.trajectories:
            if (parent := trajectory.longest.parent) is not None:
                place(home[parent.id])
        ordered[batch] = None

    for batch in batches:
        place(batch)
    return list(ordered)


def _shape(trajectory: Trajectory, parents: set[str]) -> tuple:
    """What trajectories of one population have in common, their place in the order of training first.

    Those that nothing starts from may mix fresh and pretrained networks: they
    train after all others, so no two batches can wait for each other.
    """
    run = trajectory.longest
    stage = run.stages[-1]
    is_parent = any(r.id in parents for r in trajectory.runs)
    level = len(run.stages) if is_parent else sys.maxsize
    subset = ALL if stage.data.gamma or stage.data.part == stage.data.parts else stage.data
    return (level, run.dataset, run.model, run.batch_size, stage.epochs, stage.optimizer, stage.until, subset)


def with_epochs(run: Run, epochs: int) -> Run:
    """The run that ends after so many epochs of its last stage."""
    last = dataclasses.replace(run.stages[-1], epochs=epochs)
    return dataclasses.replace(run, stages=(*run.stages[:-1], last))


def missing(plan: Plan, store: Store) -> set[str]:
    """Ids of wanted runs without a sound record; an unsound one is set aside, with a warning."""
    absent = set(plan.wanted) - store.ids()
    for run_id in set(plan.wanted) - absent:
        try:
            store.read(run_id)
        except records.DamagedRecord as damage:
            warnings.warn(f"{damage}; set aside as {store.set_aside(run_id).name}", stacklevel=2)
            absent.add(run_id)
    return absent


def unfinished(plan: Plan, store: Store, absent: set[str]) -> list[Batch]:
    """What is left to train, in order, for the absent runs to be recorded.

    A batch with a checkpoint stays whole, as its networks lie together there;
    of another one only the trajectories still needed are left.
    """
    needed = set(absent)
    left = []
    for batch in reversed(plan.batches):
        pending = tuple(t for t in batch.trajectories if any(r.id in needed for r in t.runs))
        if pending and not store.checkpoint(batch.id).exists():
            batch = Batch(pending)
        if pending:
            left.append(batch)
            starts = (t.longest.parent for t in batch.trajectories)
            needed |= {run.id for run in starts if run is not None and not store.snapshot(run.id).exists()}
    return left[::-1]


def execute(
    plan: Plan,
    store: Store,
    *,
    device: str = "auto",
    precision: str = "auto",
    time_limit: float | None = None,
    progress: Progress | None = None,
) -> bool:
    """Train and record every missing run; False where stopped before the last, by signal or time.

    It stops between two epochs and leaves a checkpoint, from which the next call
    goes on. `time_limit` is in seconds.
    """
    progress = progress or Progress()
    absent = missing(plan, store)
    batches = unfinished(plan, store, absent)
    progress.runs, progress.recorded = len(plan.wanted), len(plan.wanted) - len(absent)
    progress.steps = sum(batch.steps for batch in batches)
    progress.show(progress)
    if not batches:
        return True

    from repro import training, worker  # torch, only where something is to be trained

    chosen = training.choose_device(device)
    precision = training.choose_precision(chosen) if precision == "auto" else precision
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    with _stop_signals() as signalled:
        for batch in batches:
            try:
                worker.train_batch(
                    batch,
                    plan,
                    store,
                    chosen,
                    precision,
                    progress,
                    stop=lambda: signalled.is_set() or time.monotonic() > deadline,
                )
            except training.Stopped:
                return False
    return True


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second SIGINT interrupts at once."""
    event, before = threading.Event(), {}

    def on_signal(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Results:
    """What is recorded of a study: the tables that figures and statistics are made of."""

    study: Study
    profile: Profile
    table: pd.DataFrame  # a row per run, see `records.table`
    curves: pd.DataFrame  # a row per epoch, see `records.curves`
    missing: int  # runs not recorded


def results(study: Study, profile: Profile) -> Results:
    """The recorded part of a study; trains nothing."""
    cases, store = study.cases(profile), Store.of(profile.name)
    table = records.table(cases, store, profile.window)
    return Results(study, profile, table, records.curves(cases, store), len(cases) - len(table))


def run_study(
    name: str,
    profile: str = "quick",
    *,
    seeds: int | None = None,
    device: str = "auto",
    settings: str = "",
) -> Results:
    """The results of a study, after training whatever of it is not recorded yet.

    `settings` overrides fields of the profile: "width=16, train=500".
    """
    [study] = studies([name])
    chosen = profiles.profile(profile, filter(None, settings.split(",")), seeds or None)
    with shown() as progress:
        cases = study.cases(chosen)
        made, store = plan(case.run for case in cases), Store.of(chosen.name)
        if not execute(made, store, device=device, progress=progress):
            raise KeyboardInterrupt
    return results(study, chosen)
