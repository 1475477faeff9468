"""Processes that train the jobs sent to them; the inside of one is `repro.worker`.

A child is a plain process on a pipe: no daemon, no port. It tells what it does
along the pipe, stops at the end of an epoch when told to or when its parent is
gone, and pays for its start-up once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe

from repro.messages import End, Ended, Job, Message
from repro.records import ROOT

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Child:
    """A process that trains the jobs sent to it."""

    def __init__(self, threads: int, gpu: int | None = None) -> None:
        self.pipe, far = Pipe()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
        environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or several streams are not repeatable
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible(gpu)
        call = f"from repro.worker import serve; serve({far.fileno()})"
        # Blocked signals stay blocked in the child, which may get one before it has begun to ignore them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", call],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        far.close()
        self.job: Job | None = None

    def start(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # it died: the next look at the pipe tells
            self.pipe.send(job)

    def heard(self) -> Message | Ended:
        """The child's next message; waits for it."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return Ended(End.KILLED, _death(self.process.wait()))

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(None)

    def close(self) -> None:
        self.pipe.close()
        self.process.wait()


def visible(gpu: int) -> str:
    """The name, a number or a UUID, of the GPU that is at this place among those that may be used."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return names[gpu] if names != [""] else str(gpu)


def _death(status: int) -> str:
    if status != -signal.SIGKILL:
        return f"its process ended with status {status}"
    return (
        "its process was killed (SIGKILL), as systems do that run out of memory: "
        "a smaller width or batch_size needs less"
    )
