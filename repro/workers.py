"""Runs a plan: batches go to child processes, one per slot, that train them one after another.

A slot is a GPU, or a share of the processor's cores. A child is a plain process
on a pipe: no daemon, no port. It tells what it does along the pipe, stops at the
end of an epoch when told to or when its parent is gone, and pays for its
start-up once. A killed child is replaced and its batch tried again; an error in
Python is not retried.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from repro.plans import Batch, Plan, missing, unfinished
from repro.progress import Progress
from repro.records import ROOT, Store

TRIES = 3  # of a batch whose child was killed
FEW_STEPS = 3000  # of small networks take no longer than a child takes to start
BEAT = 0.2  # seconds between looks at the clock and at signals


@dataclass
class Outcome:
    """How a sweep ended."""

    finished: bool = True  # every missing run was trained, or failed
    failures: list[str] = field(default_factory=list)  # one line per batch that could not be trained


@dataclass(frozen=True)
class Job:
    """What a child needs to know to train a batch."""

    batch: Batch
    wanted: frozenset[str]  # ids of runs to record
    parents: frozenset[str]  # ids of runs whose network to keep
    folder: str  # of the store
    device: str
    precision: str


def execute(
    plan: Plan,
    store: Store,
    *,
    device: str = "auto",
    precision: str = "auto",
    time_limit: float | None = None,
    slots: int | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Train and record every missing run of the plan.

    Stops between two epochs once it gets SIGINT or SIGTERM or `time_limit`
    seconds have passed, and leaves checkpoints, from which the next call goes on.
    """
    progress = progress or Progress()
    absent = missing(plan, store)
    batches = unfinished(plan, store, absent)
    progress.runs, progress.recorded = len(plan.wanted), len(plan.wanted) - len(absent)
    progress.steps = sum(batch.steps for batch in batches)
    progress.show(progress)
    if not batches:
        return Outcome()

    from repro import worker  # torch, only where something is to be trained

    device, gpus = worker.choose_device(device)
    precision = worker.choose_precision(device, precision)
    worker.check_data(batches[0])
    jobs = [
        Job(batch, frozenset(absent), plan.parents, str(store.folder), device, precision) for batch in batches
    ]
    cores = gpus or os.cpu_count() or 1
    slots = slots or max(1, min(cores, len(plan.batches)))
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    with _stop_signals() as signalled:

        def stopping() -> bool:
            return signalled.is_set() or time.monotonic() >= deadline

        if slots == 1 or (not gpus and plan.steps < FEW_STEPS):
            return _here(jobs, progress, stopping)
        return _in_children(jobs, slots, max(1, cores // slots), bool(gpus), progress, stopping)


def _here(jobs: list[Job], progress: Progress, stopping: Callable[[], bool]) -> Outcome:
    """Train the jobs in this process."""
    from repro import worker

    for job in jobs:
        if worker.train_batch(job, progress.update, stopping) == "stopped":
            return Outcome(finished=False)
    return Outcome()


class _Child:
    """A process that trains the jobs sent to it."""

    def __init__(self, threads: int, gpu: int | None) -> None:
        self.pipe, far = Pipe()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
        if gpu is not None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[gpu] if len(visible) > gpu > 0 else str(gpu)
        call = f"from repro.worker import serve; serve({far.fileno()})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", call], pass_fds=[far.fileno()], stdin=subprocess.DEVNULL, env=environment
        )
        far.close()
        self.job: Job | None = None

    def start(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # it died: the next look at the pipe tells
            self.pipe.send(job)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(None)

    def close(self) -> None:
        self.pipe.close()
        self.process.wait()


def _in_children(
    jobs: list[Job],
    slots: int,
    threads: int,
    gpus: bool,
    progress: Progress,
    stopping: Callable[[], bool],
) -> Outcome:
    """Train the jobs in as many children as there are slots, parents before their branches."""
    outcome, tries, left = Outcome(), dict.fromkeys(jobs, 0), list(jobs)
    children = [_Child(threads, i if gpus else None) for i in range(slots)]
    stopped = False
    try:
        while True:
            if not stopped and stopping():
                stopped = True
                for child in children:
                    child.stop()
            for child in children:
                job = _next(left, children) if child.job is None and not stopped else None
                if job is not None:
                    left.remove(job)
                    child.start(job)
            busy = {child.pipe: i for i, child in enumerate(children) if child.job is not None}
            if not busy:
                break
            for pipe in wait(list(busy), timeout=BEAT):
                i = busy[pipe]
                child = children[i]
                message = _received(pipe)
                if isinstance(message, dict):
                    progress.update(**message)
                    continue
                if message is None:  # killed, by hand or for want of memory
                    code = child.process.wait()
                    child.close()
                    children[i] = _Child(threads, i if gpus else None)
                    tries[child.job] += 1
                    if tries[child.job] < TRIES:
                        left.insert(0, child.job)
                        continue
                    message = f"its process ended {TRIES} times, last with status {code}"
                elif message == "stopped":
                    left.insert(0, child.job)
                if message not in ("done", "stopped"):
                    outcome.failures.append(f"batch {child.job.batch.id}: {message}")
                    lost = [child.job]  # and all that starts from it, parents before their branches
                    for job in list(left):
                        if any(_needs(job, other) for other in lost):
                            left.remove(job)
                            lost.append(job)
                child.job = None
    finally:
        for child in children:
            child.close()
    outcome.finished = not left
    return outcome


def _received(pipe: Connection) -> dict | str | None:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _next(left: list[Job], children: list[_Child]) -> Job | None:
    """The first job whose parents are trained."""
    busy = [child.job for child in children if child.job is not None]
    for job in left:
        if not any(_needs(job, other) for other in [*busy, *left]):
            return job
    return None


def _needs(job: Job, other: Job) -> bool:
    """Whether a network of `job` starts where one of `other` ends."""
    starts = {t.longest.parent.id for t in job.batch.trajectories if t.longest.parent is not None}
    return any(run.id in starts for t in other.batch.trajectories for run in t.runs)


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
