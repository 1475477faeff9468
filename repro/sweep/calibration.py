"""How fast this machine trains, by training for a few seconds as a sweep would."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from repro.config import Dataset, InputError, Run, Stage
from repro.data import datasets, downloads
from repro.data.datasets import steps_per_epoch
from repro.store.records import Store
from repro.sweep import layouts, machine, plans, trainer
from repro.sweep.messages import End, Ended, Speed, Trial
from repro.sweep.plans import Layout
from repro.sweep.processes import Children
from repro.training import cuda_graphs
from repro.training.populations import Member, Population

SECONDS = 2.0  # a measurement takes so long at least
STEPS, GPU_STEPS = 4, 64  # in an epoch of a measurement; a GPU replays them


@dataclass(frozen=True)
class Engine:
    """How a sweep trains here."""

    device: str
    precision: str
    slots: int  # processes
    threads: int  # in each of them

    def children(self) -> contextlib.closing[Children]:
        """The processes of a sweep, until the block ends."""
        gpus = range(self.slots) if self.device == "cuda" else ()
        return contextlib.closing(Children(self.slots, self.threads, gpus))

    def trial(self, runs: Iterable[Run], seconds: float = SECONDS, **way: bool) -> Trial:
        return Trial(tuple(runs), self.device, self.precision, seconds, **way)


def engine() -> Engine:
    """A process of one thread for each GPU, or for each core, as a sweep has them."""
    gpus = machine.gpus("auto")
    device = "cuda" if gpus else "cpu"
    return Engine(device, trainer.choose_precision(device, "auto"), gpus or machine.cores(), threads=1)


def speed(children: Children, trial: Trial) -> Speed | None:
    """What a trial reaches in all slots at the same time; None where memory is too small.

    Raises `InputError` where its runs cannot be trained at all.
    """
    for _ in range(children.slots):
        children.start(trial)
    ends: list[Ended] = []
    while len(ends) < children.slots:
        ends += [ended for _, ended in children.listen(lambda message: None)]
    if failed := [ended for ended in ends if ended.end is End.FAILED]:
        raise InputError(f"not to be trained here: {failed[0].said}")
    found = [ended.speed for ended in ends if ended.speed is not None]
    if len(found) < len(ends):
        return None
    return Speed(sum(s.rate for s in found), max(s.memory for s in found), max(s.evaluation for s in found))


def measured(trial: Trial) -> Ended:
    """What a trial reaches in this process; its process ends where that fails, which may have spoilt it."""
    try:
        return Ended(End.DONE, speed=_speed(trial))
    except Exception as error:
        return Ended(End.SPLIT) if trainer.out_of_memory(error) else Ended(End.FAILED, trainer.line(error))


def _speed(trial: Trial) -> Speed:
    """It trains and tests as in a sweep, and is timed once a GPU replays that."""
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
    """Images a second, over as many epochs as fill the time; `epoch` returns its number of images."""
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
    """A data set of so many images of noise, as large as those of CIFAR-10."""
    random, path = np.random.default_rng(0), f"{folder}/noise{images}.npz"
    x = random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    y = np.arange(images) % 10
    tests = min(500, max(100, images // 16))
    np.savez(path, x_train=x, y_train=y, x_test=x[:tests], y_test=y[:tests])
    return datasets.npz_dataset(path)


def seconds_per_step(runs: list[Run], store: Store, seconds: float = SECONDS) -> Callable[[Run], float]:
    """Seconds of a slot for a step of one of these runs, and for its share of the tests after each epoch.

    Each measurement takes so many seconds, in populations as a sweep of this store trains them.
    """
    made, found = engine(), {}  # by shape, seconds of a training image and of a test image
    fitted = layouts.fitted(plans.plan(runs), store)[1] if made.device == "cuda" else None
    with tempfile.TemporaryDirectory() as folder, made.children() as children:
        for key, run in {layouts.shape(run): run for run in runs}.items():
            dataset = run.dataset
            if dataset.name in downloads.SOURCES:  # no download for this
                steps = GPU_STEPS if made.device == "cuda" else STEPS
                dataset = noise(folder, steps * run.batch_size)
            one = dataclasses.replace(run, dataset=dataset, stages=(Stage(1),), probes=())
            layout = fitted(run) if fitted else Layout(plans.population_size(run), grouped=True)
            size, best = 2 * layout.population, None
            while best is None and size > 1:
                size = -(-size // 2)  # from the second time on, as a sweep does where memory is short
                alike = [dataclasses.replace(one, init_seed=seed) for seed in range(size)]
                trial = made.trial(alike, seconds, grouped=layout.grouped, compiled=layout.compiled)
                best = speed(children, trial)
            if best is None:
                network = f"a network of width {run.model.width} with batches of {run.batch_size}"
                raise InputError(f"no hours to tell: {network} needs more memory than there is")
            found[key] = made.slots / best.rate, best.evaluation

    def step(run: Run) -> float:
        training, testing = found[layouts.shape(run)]
        _, tests, _ = datasets.counts(run.dataset)
        return training * run.batch_size + testing * tests / steps_per_epoch(run)

    return step
