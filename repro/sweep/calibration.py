"""Measures how fast this machine trains, by a few seconds of training in each slot (process) of a sweep."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from repro.config import Dataset, InputError, Run, Stage
from repro.data import datasets, downloads
from repro.data.datasets import steps_per_epoch
from repro.store.records import Store
from repro.sweep import layouts, leases, machine, plans, trainer
from repro.sweep.messages import End, Ended, Speed, Trial
from repro.sweep.processes import Child, Children

SECONDS = 2.0  # least duration of a measurement
STEPS, GPU_STEPS = 4, 64  # in an epoch of a measurement, on a CPU and on a GPU


@dataclass(frozen=True)
class Engine:
    """What a sweep trains with on this machine."""

    device: str
    precision: str
    slots: int  # processes
    threads: int  # in each of them

    def children(self) -> contextlib.closing[Children]:
        """Start the processes of a sweep; they end with the block."""
        gpus = range(self.slots) if self.device == "cuda" else [None] * self.slots
        return contextlib.closing(Children(Child(self.threads, gpu) for gpu in gpus))

    def trial(self, runs: Iterable[Run], seconds: float = SECONDS, **way: bool) -> Trial:
        return Trial(tuple(runs), self.device, self.precision, seconds, **way)


def engine() -> Engine:
    """A process of one thread for each GPU, else for each core; `InputError` if this system cannot train."""
    leases.check()
    gpus = machine.gpus("auto")
    device = "cuda" if gpus else "cpu"
    return Engine(device, trainer.choose_precision(device, "auto"), gpus or machine.cores(), threads=1)


def speed(children: Children, trial: Trial) -> Speed | None:
    """Run a trial in all slots at once; None if memory is too small in any of them, or its process died.

    Raises `InputError` if training fails for another reason.
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


def noise(folder: str, images: int) -> Dataset:
    """Save `images` images of noise, 32 x 32 in colour and in 10 classes, in `folder`, as a data set."""
    random, path = np.random.default_rng(0), f"{folder}/noise{images}.npz"
    x = random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    y = np.arange(images) % 10
    tests = min(500, max(100, images // 16))
    np.savez(path, x_train=x, y_train=y, x_test=x[:tests], y_test=y[:tests])
    return datasets.npz_dataset(path)


def seconds_per_step(runs: list[Run], store: Store, seconds: float = SECONDS) -> Callable[[Run], float]:
    """Measure the seconds that a slot needs for a step of one network of a run, as a function of the run.

    They include a step's share of the tests after each epoch. Each shape is measured for at least `seconds`,
    in the populations in which a sweep of this store trains. Raises `InputError` if memory is too small.
    """
    made, found = engine(), {}  # by shape, seconds for a training image and for a test image
    layout_of = layouts.fitted(plans.plan(runs), store)[1] if made.device == "cuda" else layouts.on_cpu
    with tempfile.TemporaryDirectory() as folder, made.children() as children:
        for key, run in {layouts.shape(run): run for run in runs}.items():
            dataset = run.dataset
            if dataset.name in downloads.SOURCES:  # noise takes as long, and needs no download
                steps = GPU_STEPS if made.device == "cuda" else STEPS
                dataset = noise(folder, steps * run.batch_size)
            one = dataclasses.replace(run, dataset=dataset, stages=(Stage(1),), probes=())
            layout = layout_of(run)
            size, best = 2 * layout.population, None
            while best is None and size > 1:
                size = -(-size // 2)  # first the whole population, then halves, as in a sweep
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
