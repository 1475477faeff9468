"""How fast this machine trains, by training for a few seconds as a sweep would."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
import torch

from repro import data, downloads, plans, worker
from repro.config import Dataset, Run, Stage
from repro.training import Member, Population

SECONDS = 2.0  # of a measurement, at least
STEPS = 4  # of an epoch of one


@dataclass(frozen=True)
class Engine:
    """How a sweep trains here."""

    device: str
    precision: str
    slots: int  # processes
    threads: int  # of each


@dataclass(frozen=True)
class Speed:
    """What populations of one shape reached, one in each slot."""

    rate: float  # training images a second, of all members in all slots
    memory: float  # GiB that a slot took at most so far
    evaluation: float  # seconds to test one member on one image


def engine() -> Engine:
    """A process of one thread for each GPU, or for each core, as `workers.execute` has them."""
    device, gpus = worker.choose_device("auto")
    return Engine(device, worker.choose_precision(device, "auto"), gpus or os.cpu_count() or 1, threads=1)


class Slots:
    """Processes that train populations for as long as they are asked to."""

    def __init__(self, made: Engine) -> None:
        start, context = time.perf_counter(), get_context("spawn")
        self.pipes = []
        for slot in range(made.slots):
            near, far = context.Pipe()
            context.Process(target=_serve, args=(far, made, slot), daemon=True).start()
            self.pipes.append(near)
        self._answers()
        self.start_up = time.perf_counter() - start  # seconds until all of them could begin

    def _answers(self) -> list:
        return [pipe.recv() for pipe in self.pipes]

    def speed(self, runs: list[Run], seconds: float = SECONDS) -> Speed:
        """Of populations of these runs, in all slots at the same time."""
        for pipe in self.pipes:
            pipe.send((runs, seconds))
        rates, memory, evaluation = zip(*self._answers(), strict=True)
        return Speed(sum(rates), max(memory), max(evaluation))

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()


def _serve(pipe: Connection, made: Engine, slot: int) -> None:
    torch.set_num_threads(made.threads)
    device = torch.device(made.device, slot) if made.device == "cuda" else torch.device("cpu")
    pipe.send(None)
    try:
        while True:
            runs, seconds = pipe.recv()
            population = Population([Member(run) for run in runs], device, made.precision)
            epoch = len(runs) * (len(population.labels) // runs[0].batch_size) * runs[0].batch_size
            population.train_epoch()  # the first one is slower
            rate = turn(lambda: population.train_epoch() and epoch, seconds)  # noqa: B023, called at once
            start = time.perf_counter()
            population.test_accuracy()
            evaluation = (time.perf_counter() - start) / len(runs) / len(population.y_test)
            pipe.send((rate, _peak_memory(device), evaluation))
    except EOFError:
        return


def turn(epoch: Callable[[], int], seconds: float) -> float:
    """Images a second, over as many epochs as fill the time; `epoch` gives the images that it trained on."""
    seen, start = 0, time.perf_counter()
    while seen == 0 or time.perf_counter() - start < seconds:
        seen += epoch()
    return seen / (time.perf_counter() - start)


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


def noise(folder: str, images: int) -> Dataset:
    """So many images of noise, of CIFAR-10's size; speed does not depend on what images show."""
    random, path = np.random.default_rng(0), f"{folder}/noise{images}.npz"
    x = random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    y = np.arange(images) % 10
    np.savez(path, x_train=x, y_train=y, x_test=x[:128], y_test=y[:128])
    return data.npz_dataset(path)


def seconds_per_step(runs: Iterable[Run]) -> dict[tuple, float]:
    """Seconds that a step of one network takes in a slot, by what `shape` gives of a run."""
    shapes = {shape(run): run for run in runs}
    made, found = engine(), {}
    slots = Slots(made)
    with tempfile.TemporaryDirectory() as folder:
        for key, run in shapes.items():
            dataset = run.dataset
            if dataset.name in downloads.SOURCES:  # no download for this
                dataset = noise(folder, STEPS * run.batch_size)
            one = dataclasses.replace(run, dataset=dataset, stages=(Stage(1),), probes=())
            members = range(plans.population_size(run))
            speed = slots.speed([dataclasses.replace(one, init_seed=seed) for seed in members])
            found[key] = made.slots * run.batch_size / speed.rate
    slots.close()
    return found


def shape(run: Run) -> tuple:
    """What the time of a step depends on."""
    return run.dataset.name, run.model, run.batch_size
