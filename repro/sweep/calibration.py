"""How fast this machine trains, by training for a few seconds as a sweep would."""

from __future__ import annotations

import contextlib
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

from repro.config import Dataset, InputError, Run, Stage
from repro.data import datasets, downloads
from repro.data.sampling import steps_per_epoch
from repro.store.records import Store
from repro.sweep import layouts, plans, trainer
from repro.sweep.layouts import Layout
from repro.training import cuda_graphs
from repro.training.populations import Member, Population

SECONDS = 2.0  # of a measurement, at least
STEPS = 4  # of an epoch of one; on a GPU, which replays them, GPU_STEPS
GPU_STEPS = 64
MOST = 64  # members of a population that is tried
NEAR = 0.95  # of the highest speed is as good, where it takes fewer members


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
    device, gpus = trainer.choose_device("auto")
    return Engine(device, trainer.choose_precision(device, "auto"), gpus or os.cpu_count() or 1, threads=1)


class Slots:
    """Processes that train populations for as long as they are asked to."""

    def __init__(self, made: Engine) -> None:
        self.made, self.pipes = made, []
        start = time.perf_counter()
        self._start()
        self.start_up = time.perf_counter() - start  # seconds until all of them could begin

    def _start(self) -> None:
        self.close()
        context, self.pipes = get_context("spawn"), []
        for slot in range(self.made.slots):
            near, far = context.Pipe()
            context.Process(target=_serve, args=(far, self.made, slot), daemon=True).start()
            self.pipes.append(near)
        self._answers()

    def _answers(self) -> list:
        return [pipe.recv() for pipe in self.pipes]

    def speed(
        self, runs: list[Run], seconds: float = SECONDS, grouped: bool = True, compiled: bool = False
    ) -> Speed | None:
        """Of populations of these runs, in all slots at the same time; None where memory is too small.

        Raises `InputError` where they cannot be trained at all.
        """
        for pipe in self.pipes:
            pipe.send((runs, seconds, grouped, compiled))
        answers = self._answers()
        if not all(isinstance(answer, tuple) for answer in answers):
            self._start()  # what failed may have spoilt a process for all that comes after
        if failures := [answer for answer in answers if isinstance(answer, str)]:
            raise InputError(f"not to be trained here: {failures[0]}")
        if None in answers:
            return None
        rates, memory, evaluation = zip(*answers, strict=True)
        return Speed(sum(rates), max(memory), max(evaluation))

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()


def _serve(pipe: Connection, made: Engine, slot: int) -> None:
    torch.set_num_threads(made.threads)
    device = torch.device(made.device, slot) if made.device == "cuda" else torch.device("cpu")
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while True:
            runs, seconds, grouped, compiled = pipe.recv()
            try:
                answer = measured(runs, seconds, grouped, compiled, device, made.precision)
            except Exception as error:
                answer = None if trainer.out_of_memory(error) else trainer.line(error)
            pipe.send(answer)


def measured(
    runs: list[Run], seconds: float, grouped: bool, compiled: bool, device: torch.device, precision: str
) -> tuple[float, float, float]:
    """Training images a second of a population, GiB it took, and seconds to test one member on one image.

    It trains and tests as in a sweep, and is timed once a GPU replays that. Zeros where it could not be
    compiled and was to be.
    """
    population = Population([Member(run) for run in runs], device, precision, grouped, compiled)
    if population.compiled != compiled:
        return 0.0, _peak_memory(device), 0.0
    epoch = population.batches.numel()
    population.train_epoch()  # the first one is slower
    rate = turn(lambda: population.train_epoch() and epoch, seconds)
    for _ in range(cuda_graphs.WARM_UPS + 1 if population.test.captures else 1):
        population.test_accuracy()
    tests = len(runs) * len(population.y_test)
    evaluation = 1 / turn(lambda: population.test_accuracy() and tests, seconds / 8)
    return rate, _peak_memory(device), evaluation


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
    tests = min(500, max(100, images // 16))
    np.savez(path, x_train=x, y_train=y, x_test=x[:tests], y_test=y[:tests])
    return datasets.npz_dataset(path)


def _members(folder: str, run: Run, size: int, steps: int) -> list[Run]:
    """So many runs of a network of this shape, of which data are at hand."""
    dataset = run.dataset
    if dataset.name in downloads.SOURCES:  # no download for this
        dataset = noise(folder, steps * run.batch_size)
    one = dataclasses.replace(run, dataset=dataset, stages=(Stage(1),), probes=())
    return [dataclasses.replace(one, init_seed=seed) for seed in range(size)]


def seconds_per_step(runs: Iterable[Run], store: Store | None = None) -> Callable[[Run], float]:
    """Seconds of a slot for a step of one of these runs, and for its share of the tests after each epoch.

    How they train fastest on a GPU is kept in the store, whose next sweep follows it.
    """
    made, found = engine(), {}  # by shape, seconds of a training image and of a test image
    slots = Slots(made)
    with tempfile.TemporaryDirectory() as folder:
        for key, run in {layouts.shape(run): run for run in runs}.items():
            if made.device == "cuda":
                speed = fastest(slots, run, folder)
                if store is not None and speed is not None:
                    layouts.keep(store, run, speed)
            else:
                speed = slots.speed(_members(folder, run, plans.population_size(run), STEPS))
            if speed is None or not speed.rate:
                raise InputError(
                    f"no hours to tell: a network of width {run.model.width} with batches of "
                    f"{run.batch_size} needs more memory than there is"
                )
            found[key] = made.slots / speed.rate, speed.evaluation
    slots.close()

    def seconds(run: Run) -> float:
        training, testing = found[layouts.shape(run)]
        _, tests, _ = datasets.counts(run.dataset)
        return training * run.batch_size + testing * tests / steps_per_epoch(run)

    return seconds


def fastest(slots: Slots, run: Run, folder: str) -> Layout | None:
    """The smallest population whose speed on a GPU is near the highest, grouped or side by side.

    Populations are doubled for as long as memory lasts and that makes them faster.
    The one that is found is then tried compiled. None where not one network fits.
    """
    tried: list[Layout] = []
    size = 1
    while size <= MOST:
        members = _members(folder, run, size, GPU_STEPS)
        speeds = {g: slots.speed(members, grouped=g) for g in ((True, False) if size > 1 else (True,))}
        found = [Layout(size, g, s.rate, s.evaluation) for g, s in speeds.items() if s is not None]
        best = max((layout.rate for layout in tried), default=0.0)
        tried += found
        if max((layout.rate for layout in found), default=0.0) * NEAR <= best:
            break
        size *= 2
    if not tried:
        return None
    near = NEAR * max(layout.rate for layout in tried)
    best = min((t for t in tried if t.rate >= near), key=lambda t: (t.population, -t.rate))
    for grouped in (True, False) if best.population > 1 else (True,):
        members = _members(folder, run, best.population, GPU_STEPS)
        speed = slots.speed(members, grouped=grouped, compiled=True)
        if speed is not None and speed.rate > best.rate:
            best = Layout(best.population, grouped, speed.rate, speed.evaluation, compiled=True)
    return best
