"""The experiment in plain PyTorch, one network at a time.

The chapter "The gap in two minutes" shows this code and trains one seed with it.
It leaves out what those runs do not use, such as `reset` and `until`. A test checks
that a population, which trains many networks at once, gives the same for such a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from repro import config
from repro.config import MODULES, Run
from repro.data import datasets
from repro.data.sampling import examples
from repro.training.network import ResNet
from repro.training.populations import resident

CPU = torch.device("cpu")

OPTIMIZERS = {
    "adam": lambda weights, rate, momentum: torch.optim.Adam(weights, rate),
    "rmsprop": lambda weights, rate, momentum: torch.optim.RMSprop(weights, rate),
    "sgd": lambda weights, rate, momentum: torch.optim.SGD(weights, rate, momentum),
}


def step(network: Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
    """One training step on a mini-batch of images x [B, C, H, W] with labels y [B]."""
    network.train()
    loss = cross_entropy(network(x)[0], y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def accuracy(network: Module, x: Tensor, y: Tensor) -> float:
    """Fraction of images classified correctly; batch norm uses running statistics."""
    network.eval()
    return (network(x)[0].argmax(1) == y).double().mean().item()


def stages(run: Run) -> Iterator[tuple[int, ResNet]]:
    """Train a run: yields the number of the stage and the network after each epoch.

    A fresh network has one stage, on all data; a warm start two, the first on half.
    """
    images = datasets.images(run.dataset)
    x, y = resident(images, images.x_train, images.y_train, CPU)
    network = ResNet(run.model, x.shape[1], images.classes)
    network.initialise(0, MODULES, run.init_seed, stage=1)
    for number, stage in enumerate(run.stages, 1):
        so_far = replace(run, stages=run.stages[:number])
        optimizer = new(stage.optimizer, network)  # no state is carried over
        for epoch in range(stage.epochs):
            for batch in examples(so_far, images.y_train, epoch):
                step(network, optimizer, x[batch], y[batch])
            yield number, network


def train(run: Run) -> pd.DataFrame:
    """Train a run; return stage and test accuracy, a fraction, after each epoch."""
    torch.set_num_threads(1)  # more would slow down such small networks
    images = datasets.images(run.dataset)
    x, y = resident(images, images.x_test, images.y_test, CPU)
    rows = [(number, accuracy(network, x, y)) for number, network in stages(run)]
    return pd.DataFrame(rows, columns=["stage", "test_accuracy"])


def new(optimizer: config.Optimizer, network: Module) -> Optimizer:
    """A new optimiser of the network's weights, with a constant learning rate."""
    make = OPTIMIZERS[optimizer.name]
    return make(network.parameters(), optimizer.learning_rate, optimizer.momentum)
