"""Runs a plan: decides what to train next, hands it to a process or a cluster, and takes in the outcome.

A group whose process was killed is tried again.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import assert_never

from repro.config import InputError, Run, check_engine
from repro.data import datasets
from repro.store import files
from repro.store.records import Store
from repro.sweep import costs, layouts, leases, machine, plans
from repro.sweep.messages import End, Ended, EpochDone, Job, Message, Warned
from repro.sweep.plans import Layout, Part, Plan
from repro.sweep.processes import STOP_SIGNALS, Child, Children, Here, Place, Workers
from repro.sweep.progress import Progress

TRIES = 3  # for a group whose child was killed, or whose parents' networks were not there
FEW_STEPS = 3000  # small networks take no longer for this many than a child takes to start
PAUSE = 2.0  # seconds before a group that another sweep trains is tried again


@dataclass
class Outcome:
    """How a sweep ended."""

    finished: bool = True  # every missing run was trained, or failed
    failures: list[str] = field(default_factory=list)  # lines for what could not be trained, or read


class Sweep:
    """The jobs of a plan that are left, those of them that are in training, and the outcome of the others."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        progress: Progress,
        device: str,
        precision: str,
        layout: Callable[[Run], Layout] = layouts.on_cpu,
    ) -> None:
        self.plan, self.store, self.progress = plan, store, progress
        self.device, self.precision, self.layout = device, precision, layout
        self.outcome = Outcome(failures=store.unreadable(plan.wanted))
        self.absent = plans.missing(plan, store)  # ids of wanted runs that are neither recorded nor given up
        self.done: set[str] = set()  # ids of trained runs, whose files a shared folder may show late
        self.training: list[Job] = []
        self.max_together: dict[str, int] = {}  # by planned group, how many trajectories can train at once
        self.tries: Counter[str] = Counter()  # by part, whose process was killed or whose start was lacking
        self.retry_at: dict[str, float] = {}  # by planned group in training elsewhere, when to try again
        progress.runs = len(plan.wanted)
        self.look()
        progress.steps = sum(job.part.steps for job in self.left)
        progress.show(progress)

    def look(self) -> None:
        """Count the recorded runs, whoever trained them; put jobs for the rest, started or not, in `left`."""
        there = self.store.ids()
        self.absent -= there
        self.progress.recorded = len(there & self.plan.wanted.keys())
        self.left: list[Job] = []
        for part, needed in plans.unfinished(self.plan, self.store, self.absent):
            # Cut into pieces if its group was found too large to train at once.
            for piece in part.pieces(self.max_together.get(part.whole.id, len(part.trajectories))):
                if own := (needed - self.done) & {run.id for run in piece.runs}:
                    job = Job(
                        part=piece,
                        needed=own,
                        wanted=needed & self.absent,
                        parents=self.plan.parents & {run.id for run in part.whole.runs},
                        folder=str(self.store.folder),
                        device=self.device,
                        precision=self.precision,
                        layout=self.layout(part.trajectories[0].longest),
                    )
                    self.left.append(job)

    def next(self) -> Job | None:
        """Return the first job that can start, now in `training`; None if there is none yet.

        Its parents must be trained, and its group neither in training nor at rest (`retry_at`).
        """
        awaited = {name for job in self.left for name in job.needed}
        busy = {job.part.whole.id for job in self.training}
        for job in self.left:
            rested = self.retry_at.get(job.part.whole.id, 0) <= time.monotonic()
            if rested and job.part.whole.id not in busy and not job.part.starts & awaited:
                self.training.append(job)
                return job
        return None

    def hear(self, message: Message) -> None:
        """Act on a message about a job in training."""
        match message:
            case EpochDone():
                self.progress.steps_done += message.steps
                self.progress.epoch, self.progress.accuracy = message.epoch, message.accuracy
                self.progress.show(self.progress)
            case Warned():
                warnings.warn(message.text, stacklevel=1)
            case _:
                assert_never(message)

    def settle(self, job: Job, ended: Ended) -> None:
        """Act on how the training of a job ended."""
        self.training.remove(job)
        name, said = job.part.whole.id, ended.said
        match ended.end:
            case End.DONE:
                self.done |= job.needed
            case End.FAILED:
                self.fail(said, job.part)
            case End.SPLIT:
                self.max_together[name] = ended.size
            case End.BUSY:
                if name not in self.retry_at:
                    warnings.warn(f"group {name} is in training by {said}: waiting for it", stacklevel=1)
                self.retry_at[name] = time.monotonic() + PAUSE
            case End.KILLED | End.LACKING:
                self.tries[job.part.id] += 1
                self.done.clear()  # a parent's network may be missing or damaged
                if self.tries[job.part.id] == TRIES:
                    self.fail(f"tried {TRIES} times: {said}", job.part)
        before = self.progress.recorded
        self.look()
        if self.progress.recorded != before:
            self.progress.show(self.progress)

    def fail(self, line: str, part: Part) -> None:
        """Give up the runs of a part and all runs that start from them."""
        runs = [run.id for run in part.runs]
        some = f"run {runs[0]}" + (f" and {len(runs) - 1} that train with it" if runs[1:] else "")
        self.outcome.failures.append(f"{some}: {line}")
        lost = set(runs)
        for trajectory in (t for group in self.plan.groups for t in group.trajectories):
            if trajectory.longest.parent is not None and trajectory.longest.parent.id in lost:
                lost.update(run.id for run in trajectory.runs)
        self.absent -= lost


def execute(
    plan: Plan,
    store: Store,
    *,
    device: str = "auto",
    precision: str = "auto",
    time_limit: float | None = None,
    slots: int | None = None,
    progress: Progress | None = None,
    place: Place | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train and record every missing run of the plan.

    Trains on this machine, in `slots` processes or as many as memory and work allow; or at
    `place`, whose workers look for GPUs themselves. Stops between two epochs once it gets
    SIGINT or SIGTERM, `stop()` is true or `time_limit` seconds have passed, and leaves
    checkpoints from which the next call goes on. Raises `InputError` for users' mistakes.
    """
    check_engine(device, precision)
    progress, gpus, layout = progress or Progress(), 0, layouts.on_cpu
    with _usable(store, "read"), contextlib.suppress(FileNotFoundError):
        next(store.folder.iterdir(), None)  # one error for a folder, not one for each run
        store.leases.stat()
    if plans.missing(plan, store):
        gpus = 0 if place else machine.gpus(device)
        _check(plan)
        with _usable(store, "write in"):
            _prepare(plan, store)
        if gpus:
            plan, layout = layouts.fitted(plan, store)
        if not place:  # else a child that sees no GPU would turn to the CPU
            device = "cuda" if gpus else "cpu"
    else:
        with contextlib.suppress(OSError):  # a complete store may be read-only
            plans.discard_checkpoints(plan.groups, store, plan.wanted, plan.parents)
    sweep = Sweep(plan, store, progress, device, precision, layout)
    if not sweep.left:
        return sweep.outcome
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    with _stop_signals() as signalled:

        def stopping() -> bool:
            if stop() or time.monotonic() >= deadline:
                signalled.set()
            return signalled.is_set()

        with place(stopping) if place else _here(plan, gpus, slots, stopping) as workers:
            _train(sweep, workers, stopping)
    sweep.outcome.finished = not sweep.left
    return sweep.outcome


def _here(
    plan: Plan, gpus: int, slots: int | None, stopping: Callable[[], bool]
) -> contextlib.AbstractContextManager[Workers]:
    """Workers on this machine: a child on each GPU; or children on shares of the cores, or this process."""
    if gpus:
        return contextlib.closing(
            Children(Child(1, gpu) for gpu in range(min(slots or gpus, gpus, len(plan.groups))))
        )
    cores, memory, taken = machine.cores(), machine.memory(), costs.process_bytes(plan)
    few = slots is None and plan.steps < FEW_STEPS
    slots = slots or max(1, min(cores, (memory - costs.PROCESS) // taken, len(plan.groups)))
    small = 4 * taken < memory  # else the system may kill what trains, and this process has to say so
    if small and (slots == 1 or few):
        return contextlib.nullcontext(Here(stopping))
    return contextlib.closing(Children(Child(max(1, cores // slots)) for _ in range(slots)))


def _train(sweep: Sweep, workers: Workers, stopping: Callable[[], bool]) -> None:
    """Train what is left, parents before the runs that start from them, until done or told to stop."""
    while sweep.training or (sweep.left and workers.slots):
        while len(sweep.training) < workers.slots and (job := sweep.next()) is not None:
            workers.start(job)
        for job, ended in workers.listen(sweep.hear):
            sweep.settle(job, ended)
        if workers.slots and stopping():
            workers.stop()


def _check(plan: Plan) -> None:
    """Raise `InputError` if this system cannot train, data are not available, or custom code fails."""
    leases.check()
    datasets.images(plan.groups[0].trajectories[0].longest.dataset)
    _ = plan.steps  # raises if a stage has fewer images than a batch
    if own := [r for g in plan.groups for r in g.runs if r.model.code or any(s.hook for s in r.stages)]:
        from repro.training import models  # PyTorch takes seconds to import

        models.check(own)


@contextlib.contextmanager
def _usable(store: Store, verb: str) -> Iterator[None]:
    """Turn an `OSError` of the block into an `InputError` that asks the user for another folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot {verb} {store.folder}: {error.strerror}; REPRO_RESULTS names another folder"
        ) from error


def _prepare(plan: Plan, store: Store) -> None:
    """Check that the store is writable, remove what killed processes left, and set damaged records aside."""
    for folder in (store.leases, store.folder, store.snapshot("").parent, store.checkpoint("").parent):
        files.try_out(folder)
        files.sweep_partials(folder)
    store.set_damaged_aside(plan.wanted)
    plans.discard_checkpoints(plan.groups, store, plan.wanted, plan.parents)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set (in the main thread); a SIGINT after that interrupts at once."""
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
