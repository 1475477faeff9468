"""Where jobs are done: in this process, or in children, processes that it starts and talks to by pipes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Protocol

from repro.config import InputError
from repro.store.records import ROOT
from repro.sweep import machine
from repro.sweep.messages import LAST, End, Ended, Job, Message, Report, Trial, Warned

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
BEAT = 0.2  # seconds between looks at the clock and at signals


class Workers(Protocol):
    """What does jobs: this process, its children, or a cluster."""

    slots: float  # how many jobs at once

    def start(self, job: Job) -> None:
        """Begin a job in a free slot."""

    def listen(self, hear: Report) -> Iterable[tuple[Job, Ended]]:
        """Pass messages about jobs to `hear` for a while; yields each job that ended, and how."""

    def stop(self) -> None:
        """Have all jobs stop at the end of their epoch, and set `slots` to 0."""


# Called with a function that says whether to stop, returns a context that provides the workers.
Place = Callable[[Callable[[], bool]], contextlib.AbstractContextManager[Workers]]


class Here:
    """This process as a worker: it trains its job within `listen`; `how` goes to `trainer.train_part`."""

    slots = 1

    def __init__(self, stopping: Callable[[], bool], **how: object) -> None:
        self.stopping, self.how, self.job = stopping, how, None

    def start(self, job: Job) -> None:
        self.job = job

    def listen(self, hear: Report) -> Iterator[tuple[Job, Ended]]:
        if self.job is None:
            time.sleep(BEAT)
            return
        from repro.sweep import trainer  # PyTorch takes seconds to import

        job, self.job = self.job, None
        yield job, trainer.train_part(job, hear, self.stopping, **self.how)

    def stop(self) -> None:
        self.slots = 0


class Children:
    """Children as workers, one in each slot: on a GPU, or on a share of the processor's cores."""

    def __init__(self, children: Iterable[Child]) -> None:
        self.children = list(children)
        self.slots = len(self.children)

    def start(self, job: Job | Trial) -> None:
        next(child for child in self.children if child.job is None).start(job)

    def listen(self, hear: Report) -> Iterator[tuple[Job | Trial, Ended]]:
        busy = {child.pipe: child for child in self.children if child.job is not None}
        for pipe in wait(list(busy), timeout=BEAT):
            message, job = busy[pipe].heard(), busy[pipe].job
            if isinstance(message, Ended):
                busy[pipe].job = None
                yield job, message
            else:
                hear(message)

    def stop(self) -> None:
        self.slots = 0
        for child in self.children:
            child.stop()

    def close(self) -> None:
        for child in self.children:
            child.close()


# Only `repro` may be imported from its folder, where users may have put a `random.py` or a `torch.py`.
CALL = """
import importlib, os, sys
sys.path.insert(0, sys.argv[1])
import repro
del sys.path[0]
from repro.sweep.processes import serve
serve(int(sys.argv[2]))
print(end="", flush=True)
os._exit(0)  # the parent has all: taking PyTorch down module by module is time for nothing
"""


class Child:
    """A process that does the jobs sent to it through a pipe, one after another, without daemon or port.

    It stops at the end of an epoch when told to or when its parent is gone. It
    imports PyTorch once for all its jobs. If it ended, the next job starts a new process.
    """

    def __init__(self, threads: int, gpu: int | None = None) -> None:
        self.threads, self.gpu, self.job = threads, gpu, None
        self.begin()

    def begin(self) -> None:
        """Start the process, connected by a pipe, on all cores that this process may use."""
        self.pipe, far = Pipe()
        # The child inherits this block, so that none of these signals ends it before it ignores them itself.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CALL, str(ROOT), str(far.fileno())],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                env=self._environment(),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        far.close()
        # OpenMP may have bound this thread to one core, which the child would inherit.
        with contextlib.suppress(AttributeError, OSError):  # only Linux can; the child may have ended
            os.sched_setaffinity(self.process.pid, machine.allowed())

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if name not in machine.BINDING}
        environment["OMP_NUM_THREADS"] = str(self.threads)
        environment["PYTHONSAFEPATH"] = "1"  # nothing is imported from the working folder
        if paths := environment.get("PYTHONPATH"):  # in which an empty entry means that folder, too
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths.split(os.pathsep)))
        environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else streams are not repeatable
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = machine.visible_gpu(self.gpu)
        return environment

    def start(self, job: Job | Trial) -> None:
        if self.process.poll() is not None:
            self.begin()
        self.job = job
        with contextlib.suppress(OSError):  # it died: `heard` will say so
            self.pipe.send(job)

    def heard(self) -> Message | Ended:
        """Wait for the child's next message; it is `Ended` with `End.KILLED` if the process is gone."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            said = f"its process ended with status {(status := self.process.wait())}"
            if status == -signal.SIGKILL:
                said = "its process was killed (SIGKILL), as systems do that run out of memory: "
                said += "a smaller width or batch_size needs less"
            message = Ended(End.KILLED, said)
        if isinstance(message, Ended) and message.end in LAST:
            self.close()
        return message

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(None)

    def close(self) -> None:
        self.pipe.close()
        self.process.wait()


def serve(descriptor: int) -> None:
    """In a child: do the jobs from its pipe until told to stop, the parent is gone, or one ends in `LAST`."""
    import torch  # takes seconds, and memory that the parent does not need

    from repro.sweep import trainer, trials

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # they reach the parent too, which says when to stop
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    pipe = Connection(descriptor)

    def tell(message: Message) -> None:
        with contextlib.suppress(OSError):  # the parent is gone: `poll` says so at the end of the epoch
            pipe.send(message)

    warnings.showwarning = lambda message, *_, **__: tell(Warned(str(message)))
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while (job := pipe.recv()) is not None:
            try:
                trial = isinstance(job, Trial)
                ended = trials.measured(job) if trial else trainer.train_part(job, tell, pipe.poll)
            except InputError as error:
                ended = Ended(End.FAILED, str(error))
            pipe.send(ended)
            if ended.end in LAST:
                return
