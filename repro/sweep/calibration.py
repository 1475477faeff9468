"""How fast this machine trains, by training for a few seconds as a sweep would."""

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
        gpus = range(self.slots) if self.device == "cuda" else [None] * self.slots
        return contextlib.closing(Children(Child(self.threads, gpu) for gpu in gpus))

    def trial(self, runs: Iterable[Run], seconds: float = SECONDS, **way: bool) -> Trial:
        return Trial(tuple(runs), self.device, self.precision, seconds, **way)


def engine() -> Engine:
    """A process of one thread for each GPU, or for each core, as a sweep has them, where one can train."""
    leases.check()
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
    layout_of = layouts.fitted(plans.plan(runs), store)[1] if made.device == "cuda" else layouts.on_cpu
    with tempfile.TemporaryDirectory() as folder, made.children() as children:
        for key, run in {layouts.shape(run): run for run in runs}.items():
            dataset = run.dataset
            if dataset.name in downloads.SOURCES:  # no download for this
                steps = GPU_STEPS if made.device == "cuda" else STEPS
                dataset = noise(folder, steps * run.batch_size)
            one = dataclasses.replace(run, dataset=dataset, stages=(Stage(1),), probes=())
            layout = layout_of(run)
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
