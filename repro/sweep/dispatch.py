"""Runs a plan: decides what to train next, gives it to whoever trains it, and takes in what comes of it.

A batch whose process was killed is tried again.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import os
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from repro.config import InputError, Run, check_engine
from repro.data import datasets
from repro.store import files
from repro.store.records import Store
from repro.sweep import cluster, layouts, leases
from repro.sweep.layouts import Layout
from repro.sweep.messages import Differs, End, Ended, EpochDone, Failed, Job, Message, Recorded, Warned
from repro.sweep.plans import Plan, missing, unfinished
from repro.sweep.processes import STOP_SIGNALS, Children, Here
from repro.sweep.progress import Progress

TRIES = 3  # of a batch whose child was killed, or whose parents' networks were not there
FEW_STEPS = 3000  # of small networks take no longer than a child takes to start
PAUSE = 2.0  # seconds before another look at a batch that another sweep trains


@dataclass
class Outcome:
    """How a sweep ended."""

    finished: bool = True  # every missing run was trained, or failed
    failures: list[str] = field(default_factory=list)  # a line for what could not be trained
    differences: list[str] = field(default_factory=list)  # a line for a run that came out in two ways


class Sweep:
    """What is left of a plan, what is in training, and what came of the rest."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        progress: Progress,
        device: str,
        precision: str,
        layout: Callable[[Run], Layout] = lambda run: Layout(1, grouped=True),
    ) -> None:
        self.plan, self.store, self.progress = plan, store, progress
        self.device, self.precision, self.layout = device, precision, layout
        self.most: dict[str, int] = {}  # trajectories of planned batches that can train at once
        self.outcome = Outcome()
        self.training: list[Job] = []
        self.tries: Counter[str] = Counter()  # of planned batches
        self.rests: dict[str, float] = {}  # when to look again at batches that other sweeps train
        self.lost: set[str] = set()  # ids of runs that failed, or start from one that did
        self.left: list[Job] = []
        self.look()
        progress.runs, progress.steps = len(plan.wanted), sum(job.batch.steps for job in self.left)
        self.count()
        progress.show(progress)

    def look(self) -> None:
        """Take from the store what is left."""
        absent = missing(self.plan, self.store)
        busy = {job.batch.whole.id for job in self.training}
        self.left = [job for job in self.left if job.batch.whole.id in busy]
        for part, needed in unfinished(self.plan, self.store, absent):
            if part.whole.id in busy:
                continue
            job = Job(
                batch=part,
                needed=needed,
                wanted=needed & absent,
                parents=self.plan.parents & {run.id for run in part.whole.runs},
                folder=str(self.store.folder),
                device=self.device,
                precision=self.precision,
                layout=self.layout(part.trajectories[0].longest),
            )
            self.left += self._pieces(job)
        self._drop_lost()

    def _pieces(self, job: Job) -> list[Job]:
        """The job in as many as it takes, as far as one of them was too large."""
        size = self.most.get(job.batch.whole.id, len(job.batch.trajectories))
        return [
            dataclasses.replace(job, batch=part, needed=needed)
            for part in job.batch.pieces(size)
            if (needed := job.needed & {run.id for run in part.runs})
        ]

    def count(self) -> None:
        """Tell how many runs are recorded by now, by whatever sweep."""
        before = self.progress.recorded
        self.progress.recorded = len(self.store.ids() & self.plan.wanted.keys())
        if self.progress.recorded != before:
            self.progress.show(self.progress)

    def next(self) -> Job | None:
        """The first job whose parents are trained, now to be trained; None where there is none yet."""
        awaited = {name for job in [*self.training, *self.left] for name in job.needed}
        busy = {job.batch.whole.id for job in self.training}
        for i, job in enumerate(self.left):
            rested = self.rests.get(job.batch.whole.id, 0) <= time.monotonic()
            if rested and job.batch.whole.id not in busy and not job.batch.starts & awaited:
                self.training.append(self.left.pop(i))
                return job
        return None

    def hear(self, message: Message) -> None:
        """Take in what is told of a job in training."""
        match message:
            case EpochDone():
                self.progress.update(message.steps, message.epoch, message.accuracy)
            case Recorded():
                self.count()
            case Warned():
                warnings.warn(message.text, stacklevel=1)
            case Differs():
                self.outcome.differences.append(message.line)
            case Failed():
                self.fail(message.line, message.runs)
            case _:
                assert_never(message)

    def fail(self, line: str, runs: Sequence[str]) -> None:
        """Give up runs and all that start from them."""
        some = f"run {runs[0]}" + (f" and {len(runs) - 1} that train with it" if runs[1:] else "")
        self.outcome.failures.append(f"{some}: {line}")
        self.lost.update(runs)
        for batch in self.plan.batches:
            for t in batch.trajectories:
                if t.longest.parent is not None and t.longest.parent.id in self.lost:
                    self.lost.update(run.id for run in t.runs)
        self._drop_lost()

    def _drop_lost(self) -> None:
        """Of what is left, keep what does not start from a run that failed."""
        kept = [(job, job.needed - self.lost) for job in self.left]
        self.left = [dataclasses.replace(job, needed=needed) for job, needed in kept if needed]

    def settle(self, job: Job, ended: Ended) -> None:
        """Take in how the training of a job ended."""
        self.training.remove(job)
        name, end = job.batch.whole.id, ended.end
        if end in (End.STOPPED, End.BUSY, End.KILLED):
            self.left.insert(0, job)
        elif end is End.EAGER:
            layout = dataclasses.replace(job.layout, compiled=False)
            self.left.insert(0, dataclasses.replace(job, layout=layout))
        elif end is End.SPLIT:
            self.most[name] = ended.size
            self.left = [piece for other in [job, *self.left] for piece in self._pieces(other)]
        if end is End.BUSY:
            if name not in self.rests:
                warnings.warn(f"batch {name} is in training by {ended.said}: waiting for it", stacklevel=1)
            self.rests[name] = time.monotonic() + PAUSE
        if end in (End.KILLED, End.LACKING):
            self.tries[name] += 1
            if self.tries[name] == TRIES:
                self.left = [other for other in self.left if other is not job]
                self.fail(f"tried {TRIES} times: {ended.said}", [run.id for run in job.batch.runs])
            elif end is End.LACKING:
                self.look()
        self.count()


def execute(
    plan: Plan,
    store: Store,
    *,
    device: str = "auto",
    precision: str = "auto",
    time_limit: float | None = None,
    slots: int | None = None,
    progress: Progress | None = None,
    on: str | None = None,
    jobs: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train and record every missing run of the plan, here or on a cluster (`cluster.connected`).

    Stops between two epochs once it gets SIGINT or SIGTERM, `stop()` is true or
    `time_limit` seconds have passed, and leaves checkpoints, from which the next call goes on.
    """
    check_engine(device, precision)
    if on is not None:
        cluster.check(on)
    try:
        sweep = Sweep(plan, store, progress or Progress(), device, precision)
        if not sweep.left:
            return sweep.outcome
        if leases.fcntl is None:
            raise InputError(
                "training needs locks of files (fcntl), as Linux, macOS and WSL have them; here only what "
                "is recorded can be read"
            )
        gpus = 0 if on else _gpus(device)  # there, the machine that trains is the one to say
        datasets.images(plan.batches[0].trajectories[0].longest.dataset)  # now, if they cannot be had
        if own := [r for b in plan.batches for r in b.runs if r.model.code or any(s.hook for s in r.stages)]:
            from repro.training import models

            models.check(own)
        _clean(store)
        if gpus:
            plan, layout = layouts.fitted(plan, store)
            sweep = Sweep(plan, store, sweep.progress, "cuda", precision, layout)
        elif not on:  # a child that sees no GPU is not to decide for the processor
            sweep.device = "cpu"
            sweep.left = [dataclasses.replace(job, device="cpu") for job in sweep.left]
    except OSError as error:
        raise InputError(
            f"cannot write in {store.folder}: {error.strerror}; REPRO_RESULTS names another folder"
        ) from error
    cores = gpus or os.cpu_count() or 1
    slots = slots or max(1, min(cores, len(plan.batches)))
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    with _stop_signals() as signalled:

        def stopping() -> bool:
            if stop() or time.monotonic() >= deadline:
                signalled.set()
            return signalled.is_set()

        if on is not None:
            place = cluster.connected(on, *filter(None, [jobs]))
        elif not gpus and (slots == 1 or plan.steps < FEW_STEPS):
            place = contextlib.nullcontext(Here(stopping))
        else:
            place = contextlib.closing(Children(slots, max(1, cores // slots), bool(gpus)))
        with place as workers:
            _train(sweep, workers, stopping)
    sweep.outcome.finished = not sweep.left
    return sweep.outcome


def _train(sweep: Sweep, workers: Here | Children | cluster.Cluster, stopping: Callable[[], bool]) -> None:
    """Train what is left, parents before their branches, until nothing is or there is to be a stop."""
    while sweep.training or (sweep.left and workers.slots):
        while len(sweep.training) < workers.slots and (job := sweep.next()) is not None:
            workers.start(job)
        for job, ended in workers.listen(sweep.hear):
            sweep.settle(job, ended)
        if workers.slots and stopping():
            workers.stop()


def _gpus(device: str) -> int:
    """GPUs to use of this machine; raises `InputError` where one is asked for and there is none.

    Where no driver is installed there is none, and PyTorch, which would know but
    takes seconds and half a gigabyte, is left to the processes that train.
    """
    if device == "cpu":
        return 0
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        if device == "auto":
            return 0
    from repro.sweep import trainer

    return trainer.choose_device(device)[1]


def _clean(store: Store) -> None:
    """Remove what killed processes left behind; raises `OSError` where nothing can be written."""
    store.leases.mkdir(parents=True, exist_ok=True)
    files.time_here(store.leases)
    leases.remove_abandoned(store.leases)
    for folder in (store.folder, store.snapshot("").parent, store.checkpoint("").parent):
        files.sweep_partials(folder)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second SIGINT interrupts at once."""
    event, before = threading.Event(), {}

    def on_signal(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
