"""Training speed against the loop as the field writes it: `make bench`.

Every row is a ratio measured in one run, the loops taking turns: one network in
eager float32 fed by a DataLoader on all cores, and populations as a sweep trains
them, a process for each core or GPU. Machines are noisy; the ratio of the
fastest turns of each is what holds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pandas as pd
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import pages, store
from repro import profiles
from repro.config import MODULES, Dataset, Model, Run
from repro.data import datasets
from repro.questions.warm_start import warm_start
from repro.store.records import commit
from repro.study import FRESH
from repro.sweep import calibration, trainer
from repro.sweep.calibration import Engine
from repro.sweep.trials import turn
from repro.training.network import ResNet
from repro.training.populations import TEST_BATCH, resident

TURNS = 3
EPOCHS = 20  # of a run
SIZES = (1, 4, 16)  # of populations
SHAPES = {  # changes to the profile `quick`; those after it at CIFAR-10's size, batches of 128
    "quick": {},
    "width 8": {"width": 8},
    "width 16": {"width": 16},
    "width 64": {"width": 64},
}


def plain_loop(run: Run, device: torch.device) -> tuple[Callable[[], int], Callable[[], int]]:
    """An epoch of one network as the field writes it, and a test of it; each gives the images it saw."""
    images = datasets.images(run.dataset)
    network = ResNet(run.model, images.x_train.shape[3], images.classes).to(device)
    network.initialise(0, MODULES, seed=0, stage=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=run.stages[-1].optimizer.learning_rate)
    splits = ((images.x_train, images.y_train), (images.x_test, images.y_test))
    train, test = (TensorDataset(*resident(images, *split, torch.device("cpu"))) for split in splits)
    train_loader = DataLoader(train, run.batch_size, shuffle=True, drop_last=True)
    test_loader = DataLoader(test, TEST_BATCH[device.type])

    def epoch() -> int:
        network.train()
        seen = correct = 0
        for inputs, labels in train_loader:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = network(inputs)[0]
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            correct += (logits.argmax(1) == labels).sum().item()
            seen += len(labels)
        return seen

    @torch.no_grad()
    def evaluation() -> int:
        network.eval()
        correct = 0
        for inputs, labels in test_loader:
            correct += (network(inputs.to(device))[0].argmax(1) == labels.to(device)).sum().item()
        return len(test)

    return epoch, evaluation


def runs_per_hour(dataset: Dataset, train: float, test: float) -> float:
    """Runs of `EPOCHS`, each with a test after it, at so many training and test images a second."""
    images, tests, _ = datasets.counts(dataset)
    return 3600 / (EPOCHS * (images / train + tests / test))


def matrix_rate(device: torch.device, precision: str, n: int = 0) -> float:
    """Floating-point operations a second of a product of matrices [n, n], large ones unless told, at best."""
    n = n or (8192 if device.type == "cuda" else 2048)
    dtype = {"bf16": torch.bfloat16, "float32": torch.float32}[precision]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def operations(run: Run) -> int:
    """Floating-point operations of one training step, per image."""
    images = datasets.images(run.dataset)
    network = ResNet(run.model, images.x_train.shape[3], images.classes)
    network.initialise(0, MODULES, seed=0, stage=1)
    x = torch.zeros(run.batch_size, images.x_train.shape[3], *images.x_train.shape[1:3])
    with FlopCounterMode(display=False) as counter:
        network(x).sum().backward()
    return counter.get_total_flops() // run.batch_size


def measured(shape: str, folder: str, made: Engine) -> list[dict]:
    """A row for each size of population, with its ratio to the plain loop."""
    profile = dataclasses.replace(profiles.PROFILES["quick"], **SHAPES[shape], seeds=max(SIZES))
    slow = profile.width >= 16 and made.device == "cpu"  # seconds a step
    runs = [c.run for c in warm_start(profile) if c.condition == FRESH]
    whole = runs[0].dataset if shape == "quick" else Dataset("cifar10")
    if shape != "quick":
        steps = calibration.GPU_STEPS if made.device == "cuda" else 1 if slow else calibration.STEPS
        dataset = calibration.noise(folder, 128 * steps)
        model = dataclasses.replace(runs[0].model, depth=2)
        runs = [dataclasses.replace(run, dataset=dataset, model=model, batch_size=128) for run in runs]
    device = torch.device(made.device)
    (plain, plain_test), per_image = plain_loop(runs[0], device), operations(runs[0])
    peak_rate = matrix_rate(device, made.precision) * (made.slots if made.device == "cuda" else 1)
    for epoch in (plain, plain_test):  # the first one is slower
        turn(epoch, 0)
    rows = []
    sizes = SIZES[:2] if slow and profile.width == 64 else SIZES
    ways = (True, False) if made.device == "cuda" else (True,)
    for size, grouped in [(size, way) for size in sizes for way in ways if way or size > 1]:
        turns, start = [], time.perf_counter()
        with made.children() as children:
            small = dataclasses.replace(runs[0], dataset=Dataset("digits", 64, 32), model=Model(2, 1))
            calibration.speed(children, made.trial([small], 0.0))
            start_up = time.perf_counter() - start  # until all of them have trained something
            for _ in range(TURNS):
                rates = [turn(plain, calibration.SECONDS), turn(plain_test, calibration.SECONDS / 4)]
                speed = calibration.speed(children, made.trial(runs[:size], grouped=grouped))
                turns.append([*rates, speed.rate, made.slots / speed.evaluation])
        base, base_test, best, best_test = map(max, zip(*turns, strict=True))
        base_runs, best_runs = runs_per_hour(whole, base, base_test), runs_per_hour(whole, best, best_test)
        share = round(100 * best * per_image / peak_rate, 1)
        costs = (round(base_test), round(best_test), share, round(speed.memory, 2), round(start_up, 1))
        rows.append(
            {
                "shape": shape,
                "population": size if grouped else f"{size} side by side",
                "plain, images/s": round(base),
                "repro, images/s": round(best),
                "ratio": round(best / base, 2),
                "plain, runs/h": float(f"{base_runs:.3g}"),
                "repro, runs/h": float(f"{best_runs:.3g}"),
                "ratio of runs": round(best_runs / base_runs, 2),
                **dict(zip(pages.COSTS, costs, strict=True)),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    made = calibration.engine()
    name = trainer.device_name(torch.device(made.device))
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for shape in SHAPES for row in measured(shape, folder, made)]
    found = {
        **dataclasses.asdict(made),
        "device": name,
        "cores": os.cpu_count(),
        "plain_threads": torch.get_num_threads(),
        "versions": trainer.versions(),
        "commit": commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "store": store.costs(),
    }
    stem = re.sub(r"[^a-z0-9]+", "-", f"{name} {made.slots}".lower()).strip("-")
    (pages.FOLDER / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
    pages.main([])
    print(f"{name}, {made.slots} processes of {made.threads} threads, {made.precision}")
    print(pd.DataFrame(rows).to_string(index=False))
    print(found["store"])


if __name__ == "__main__":
    main()
