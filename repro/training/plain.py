"""The experiment in plain PyTorch, one network after the other: what the package does for many at once.

The chapter "The gap in two minutes" shows this code and trains one seed with it;
a test holds it to what a population gives for the same run.
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
    """Share of images whose class the network knows, with running statistics."""
    network.eval()
    return (network(x)[0].argmax(1) == y).double().mean().item()


def stages(run: Run) -> Iterator[tuple[int, ResNet]]:
    """Train a run: yields the number of the stage and the network after each epoch.

    Fresh is one stage on all of the data; a warm start is two, the first on one half.
    """
    images = datasets.images(run.dataset)
    x, y = resident(images, images.x_train, images.y_train, CPU)
    network = ResNet(run.model, x.shape[1], images.classes)
    network.initialise(0, MODULES, run.init_seed, stage=1)
    for number, stage in enumerate(run.stages, 1):
        so_far = replace(run, stages=run.stages[:number])
        optimizer = new(stage.optimizer, network)  # with no memory of the stage before
        for epoch in range(stage.epochs):
            for batch in examples(so_far, images.y_train, epoch):
                step(network, optimizer, x[batch], y[batch])
            yield number, network


def train(run: Run) -> pd.DataFrame:
    """Test accuracy after each epoch of a run, a fraction, with the number of its stage."""
    torch.set_num_threads(1)  # networks as small as the chapter's only lose by more
    images = datasets.images(run.dataset)
    x, y = resident(images, images.x_test, images.y_test, CPU)
    rows = [(number, accuracy(network, x, y)) for number, network in stages(run)]
    return pd.DataFrame(rows, columns=["stage", "test_accuracy"])


def new(optimizer: config.Optimizer, network: Module) -> Optimizer:
    """An optimiser of the network's weights that has not taken a step yet."""
    make = OPTIMIZERS[optimizer.name]
    return make(network.parameters(), optimizer.learning_rate, optimizer.momentum)
