"""Measures how fast runs train in this process, by training them for some seconds as a sweep would."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch

from repro.sweep import trainer
from repro.sweep.messages import End, Ended, Speed, Trial
from repro.training import cuda_graphs
from repro.training.populations import Member, Population


def measured(trial: Trial) -> Ended:
    """The speed of a trial in this process; `End.SPLIT` if memory is short, `End.FAILED` on other errors."""
    try:
        return Ended(End.DONE, speed=_speed(trial))
    except Exception as error:
        return Ended(End.SPLIT) if trainer.out_of_memory(error) else Ended(End.FAILED, trainer.line(error))


def _speed(trial: Trial) -> Speed:
    """Train and test as in a sweep; timing begins after warm-up, when a GPU replays its graphs."""
    device = torch.device(trial.device)
    members = [Member(run) for run in trial.runs]
    population = Population(members, device, trial.precision, trial.grouped, trial.compiled)
    epoch = population.batches.numel()
    population.train_epoch()  # the first one is slower
    rate = turn(lambda: population.train_epoch() and epoch, trial.seconds)
    for _ in range(cuda_graphs.WARM_UPS + 1 if population.test.captures else 1):
        population.test_accuracy()
    tests = len(members) * len(population.y_test)
    evaluation = 1 / turn(lambda: population.test_accuracy() and tests, trial.seconds / 8)
    return Speed(rate, _peak_memory(device), evaluation)


def turn(epoch: Callable[[], int], seconds: float) -> float:
    """Images a second, over whole epochs until `seconds` have passed; `epoch` returns how many it did."""
    seen, start = 0, time.perf_counter()
    while seen == 0 or time.perf_counter() - start < seconds:
        seen += epoch()
    return seen / (time.perf_counter() - start)


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30
