"""The inside of a child process: it trains jobs, and times trials, for as long as its parent sends some."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from multiprocessing.connection import Connection

import torch

from repro.config import InputError
from repro.sweep import calibration, messages, trainer
from repro.sweep.messages import LAST, Message, Trial


def serve(descriptor: int) -> None:
    """Do what comes along a pipe until it closes; stops where told to, or where its parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they reach the parent too, which says when to stop
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    pipe = Connection(descriptor)

    def tell(message: Message) -> None:
        with contextlib.suppress(OSError):  # the parent is gone: `poll` says so at the end of the epoch
            pipe.send(message)

    warnings.showwarning = lambda message, *_, **__: tell(messages.Warned(str(message)))
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while (job := pipe.recv()) is not None:
            if isinstance(job, Trial):
                ended = calibration.measured(job)
            else:
                try:
                    ended = trainer.train_part(job, tell, pipe.poll)
                except InputError as error:
                    ended = trainer.failed(job.part, str(error), tell)
            pipe.send(ended)
            if ended.end in LAST:
                return
