"""Training speed against the loop as the field writes it: `make bench`.

Every row is a ratio measured in this process, the two loops taking turns: one
network in eager float32 fed by a DataLoader, and a population as `repro` trains
it. Machines are noisy; the ratio of the fastest turns of each is what holds.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from repro import data, profiles, studies, worker
from repro.config import MODULES, Model, Run, Stage
from repro.models import ResNet
from repro.plans import population_size
from repro.training import Member, Population, resident

TURNS = 3
SHAPES = {  # changes to the profile `quick`
    "quick": {},
    "width 8, depth 2": {"width": 8, "depth": 2},
    "width 16, 32 x 32, batch 128": {"width": 16, "depth": 2, "batch_size": 128, "train": 512},
}


def plain_loop(run, images, device) -> Callable[[], int]:
    """An epoch of one network; gives the images it trained on."""
    network = ResNet(run.model, images.x_train.shape[3], images.classes).to(device)
    network.initialise(0, MODULES, seed=0, stage=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=run.stages[-1].optimizer.learning_rate)
    x, y = resident(images, images.x_train, images.y_train, torch.device("cpu"))
    loader = DataLoader(TensorDataset(x, y), run.batch_size, shuffle=True, drop_last=True)

    def epoch() -> int:
        network.train()
        seen = correct = 0
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = network(inputs)[0]
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            correct += (logits.argmax(1) == labels).sum().item()
            seen += len(labels)
        return seen

    return epoch


def population(runs, device, precision) -> Callable[[], int]:
    """An epoch of a population; gives the images that all of its members trained on."""
    made = Population([Member(run) for run in runs], device, precision)

    def epoch() -> int:
        made.train_epoch()
        return len(runs) * (len(made.labels) // runs[0].batch_size) * runs[0].batch_size

    return epoch


def rates(*epochs: Callable[[], int]) -> list[float]:
    """Images per second in the fastest turn of each, after one turn to warm up."""
    best = [0.0] * len(epochs)
    for turn in range(TURNS + 1):
        for i, epoch in enumerate(epochs):
            start = time.perf_counter()
            seen = epoch()  # ends with numbers on the host, so the device has finished
            if turn:
                best[i] = max(best[i], seen / (time.perf_counter() - start))
    return best


def noise_file(folder: str) -> str:
    """A file of random images of CIFAR-10's size; speed does not depend on what they show."""
    random, path = np.random.default_rng(0), f"{folder}/noise.npz"
    x = random.integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    y = np.arange(512) % 10
    np.savez(path, x_train=x, y_train=y, x_test=x[:64], y_test=y[:64])
    return path


def main() -> None:
    name, _ = worker.choose_device("auto")
    device, precision = torch.device(name), worker.choose_precision(name, "auto")
    table = Table("shape", "population", "plain, images/s", "repro, images/s", "ratio", box=None)
    with tempfile.TemporaryDirectory() as folder:
        for shape, changes in SHAPES.items():
            profile = dataclasses.replace(profiles.PROFILES["quick"], **changes)
            if "32 x 32" in shape:
                profile = dataclasses.replace(profile, dataset=noise_file(folder), test=None)
            profile = dataclasses.replace(
                profile, seeds=population_size(Run(profile.data(), Model(profile.width), (Stage(1),)))
            )
            runs = [c.run for c in studies.warm_start(profile) if c.condition == studies.FRESH]
            images = data.images(runs[0].dataset)
            plain, ours = rates(plain_loop(runs[0], images, device), population(runs, device, precision))
            table.add_row(shape, str(len(runs)), f"{plain:,.0f}", f"{ours:,.0f}", f"{ours / plain:.2f}")
    console, machine = Console(), worker.device_name(device)
    console.print(f"{machine}, {torch.get_num_threads()} threads, {precision}, torch {torch.__version__}")
    console.print(table)


if __name__ == "__main__":
    main()
