"""How fast this machine trains, by training for a few seconds as a sweep would."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
import torch

from repro import data, downloads, layouts, plans, worker
from repro.config import Dataset, InputError, Run, Stage
from repro.layouts import Layout
from repro.plans import Plan
from repro.populations import Member, Population
from repro.records import Store
from repro.subsets import steps_per_epoch

SECONDS = 2.0  # of a measurement, at least
STEPS = 4  # of an epoch of one; on a GPU, which replays them, GPU_STEPS
GPU_STEPS = 64
MOST = 64  # members of a population that is tried
NEAR = 0.95  # of the highest speed is as good, where it takes fewer members
ALONE = Layout(1, True, 0.0, 0.0)  # where nothing could be measured: training it will say why


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

    def speed(self, runs: list[Run], seconds: float = SECONDS, grouped: bool = True) -> Speed | None:
        """Of populations of these runs, in all slots at the same time; None where memory is too small.

        Raises `InputError` where they cannot be trained at all.
        """
        for pipe in self.pipes:
            pipe.send((runs, seconds, grouped))
        answers = self._answers()
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
            runs, seconds, grouped = pipe.recv()
            try:
                answer = _speed(runs, seconds, grouped, device, made.precision)
            except Exception as error:
                answer = None if worker.out_of_memory(error) else worker.line(error)
            pipe.send(answer)


def _speed(
    runs: list[Run], seconds: float, grouped: bool, device: torch.device, precision: str
) -> tuple[float, float, float]:
    population = Population([Member(run) for run in runs], device, precision, grouped)
    epoch = population.batches.numel()
    population.train_epoch()  # the first one is slower
    rate = turn(lambda: population.train_epoch() and epoch, seconds)
    population.test_accuracy()
    start = time.perf_counter()
    population.test_accuracy()
    evaluation = (time.perf_counter() - start) / len(runs) / len(population.y_test)
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
    return data.npz_dataset(path)


def _members(folder: str, run: Run, size: int, steps: int) -> list[Run]:
    """So many runs of a network of this shape, of which data are at hand."""
    dataset = run.dataset
    if dataset.name in downloads.SOURCES:  # no download for this
        dataset = noise(folder, steps * run.batch_size)
    one = dataclasses.replace(run, dataset=dataset, stages=(Stage(1),), probes=())
    return [dataclasses.replace(one, init_seed=seed) for seed in range(size)]


def seconds_per_step(runs: Iterable[Run]) -> Callable[[Run], float]:
    """Seconds of a slot for a step of one of these runs, and for its share of the tests after each epoch."""
    made, found = engine(), {}  # by shape, seconds of a training image and of a test image
    slots = Slots(made)
    with tempfile.TemporaryDirectory() as folder:
        for key, run in {layouts.shape(run): run for run in runs}.items():
            if made.device == "cuda":
                speed = fastest(slots, run, folder)
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
        _, tests, _ = data.counts(run.dataset)
        return training * run.batch_size + testing * tests / steps_per_epoch(run)

    return seconds


def fastest(slots: Slots, run: Run, folder: str) -> Layout:
    """The smallest population whose speed on a GPU is near the highest, grouped or side by side.

    Populations are doubled for as long as memory lasts and that makes them faster.
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
        return ALONE
    near = NEAR * max(layout.rate for layout in tried)
    return min((t for t in tried if t.rate >= near), key=lambda t: (t.population, -t.rate))


def fitted(plan: Plan, store: Store, precision: str) -> Plan:
    """The same runs in the populations that are fastest on this GPU, as the store says or a measurement."""
    shapes = {layouts.shape(run): run for batch in plan.batches for run in batch.runs}
    found = {key: layouts.read(store, run) for key, run in shapes.items()}
    if lacking := [key for key, layout in found.items() if layout is None]:
        slots = Slots(Engine("cuda", precision, slots=1, threads=1))
        with tempfile.TemporaryDirectory() as folder:
            for key in lacking:
                try:
                    found[key] = layouts.keep(store, shapes[key], fastest(slots, shapes[key], folder))
                except InputError as error:
                    warnings.warn(f"populations not measured, so of one network: {error}", stacklevel=2)
                    found[key] = ALONE
        slots.close()
    return plans.plan(plan.wanted.values(), lambda run: found[layouts.shape(run)].population)
