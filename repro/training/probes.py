"""Gradient noise and sharpness, for the paper's hypothesis of two phases of learning (Figure 7).

The paper suspects that a warm-started network skips a first, noisy phase of
learning and so ends in a narrower minimum. Both probes take the images in one
fixed order, so that fresh and warm-started networks are probed on the same ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from repro.config import Model
from repro.lazy import Lazy
from repro.training.models import Own
from repro.training.models import network as build
from repro.training.network import ResNet

arpack = Lazy("scipy.sparse.linalg")  # every child imports this module, few of them measure sharpness

# Streams of random numbers; they do not depend on a run, as every network is probed alike.
ORDER, START = range(2)


def _random(stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(0, spawn_key=(stream,))))


def _order(y: Tensor) -> Tensor:
    """All indices of the images in one fixed order, on their device."""
    return torch.from_numpy(_random(ORDER).permutation(len(y))).to(y.device)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """Gradients of all parameters in one tensor [n]."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def _sums(gradients: Iterable[Sequence[Tensor]]) -> tuple[Tensor, Tensor, int]:
    """Sum of mini-batch gradients [n], sum of their squared norms, and how many they are."""
    total = squares = count = 0
    for gradient in gradients:
        flat = _flat(gradient).double()
        total, squares, count = total + flat, squares + flat.square().sum(), count + 1
    return total, squares, count


def noise_to_signal(gradients: Iterable[Sequence[Tensor]]) -> float:
    """Trace of the covariance of one network's gradients over the squared norm of their mean; no unit.

    `gradients` yields one list of tensors per mini-batch. These are the whole
    population: the variance divides by their number K, and pure noise gives about
    K - 1, so that no larger ratio is seen. NaN from fewer than two mini-batches, or
    where a gradient is not finite or noise and mean are both zero.
    """
    total, squares, count = _sums(gradients)
    if count < 2:
        return math.nan
    signal = (total / count).square().sum()
    return float((squares / count - signal).clamp(min=0) / signal)


def trace_and_signal(gradients: Iterable[Sequence[Tensor]]) -> tuple[float, float]:
    """Trace of the covariance of one network's mini-batch gradients, and squared norm of their expectation.

    Both without bias, in squared units of a gradient: the covariance divides by
    K - 1, and what noise adds to the squared norm of a mean of K gradients, a
    K-th of the trace, is taken away. The second can therefore come out negative.
    NaN from fewer than two mini-batches.
    """
    total, squares, count = _sums(gradients)
    if count < 2:
        return math.nan, math.nan
    signal = float((total / count).square().sum())
    trace = (float(squares) / count - signal) * count / (count - 1)
    return trace, signal - trace / count


@torch.enable_grad()
def _gradients(
    network: ResNet | Own, x: Tensor, y: Tensor, index: Tensor, batch_size: int, batches: int
) -> Iterator[Sequence[Tensor]]:
    """Gradients of a network at `batches` full mini-batches, in the order of `index`."""
    probed = copy.deepcopy(network).train()  # its running statistics move, the network's do not
    parameters = list(probed.parameters())
    for chosen in index.split(batch_size)[: min(batches, len(index) // batch_size)]:
        loss = F.cross_entropy(probed(x[chosen])[0], y[chosen], reduction="sum") / batch_size
        yield torch.autograd.grad(loss, parameters)


def gradient_noise(network: ResNet | Own, x: Tensor, y: Tensor, batch_size: int, batches: int = 64) -> float:
    """Noise-to-signal ratio of mini-batch gradients of one network, at its present weights; no unit.

    Images [n, C, H, W] with labels [n] are cut into full batches, of which at most
    `batches` serve. Batch norm takes the statistics of the batch, as in training.
    The network stays as it is.
    """
    return noise_to_signal(_gradients(network, x, y, _order(y), batch_size, batches))


def noise(
    network: ResNet | Own, x: Tensor, y: Tensor, old: Tensor, batch_size: int, batches: int = 64
) -> dict[str, float]:
    """What `trace_and_signal` finds for one network on all images, on old ones and on the others.

    `old` [n], bool, says which images a pretraining had. Mini-batches are as in
    `gradient_noise`. Keys are `noise_trace`, `noise_signal`, and the same with
    `_old` and `_new`.
    """
    found = {}
    order = _order(y)
    for name, index in {"": order, "_old": order[old[order]], "_new": order[~old[order]]}.items():
        pair = trace_and_signal(_gradients(network, x, y, index, batch_size, batches))
        found |= dict(zip((f"noise_trace{name}", f"noise_signal{name}"), pair, strict=True))
    return found


@torch.enable_grad()
def largest_hessian_eigenvalue(
    losses: Callable[[], Iterable[Tensor]],
    parameters: Sequence[Tensor],
    tolerance: float = 1e-2,
    restarts: int = 50,
) -> float:
    """Largest (not largest in magnitude) eigenvalue of the Hessian of a loss, by Lanczos iteration.

    The loss is the sum of the terms that `losses()` yields, each with a graph of
    its own, so that only one graph is held at a time. The eigenvector's residual
    is at most `tolerance` times the eigenvalue, whose own relative error is far
    smaller where the next eigenvalue lies well apart. NaN where a product is not
    finite, where the Hessian is zero, or after so many restarts without success.
    """

    def product(v: np.ndarray) -> np.ndarray:
        vector = torch.tensor(v).to(parameters[0]).flatten()
        pieces = vector.split([p.numel() for p in parameters])
        result = torch.zeros_like(vector)
        for loss in losses():
            gradient = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            slope = sum((g * piece.view_as(g)).sum() for g, piece in zip(gradient, pieces, strict=True))
            result += _flat(torch.autograd.grad(slope, parameters, materialize_grads=True))
        if not result.isfinite().all():
            raise FloatingPointError
        return result.double().cpu().numpy()

    n = sum(p.numel() for p in parameters)
    start = _random(START).standard_normal(n)  # ARPACK would draw another one every time
    try:
        # A network's largest eigenvalue stands well apart: with 4 vectors 5 products find it, with
        # the 20 that are usual it would take 21.
        found = arpack.eigsh(
            arpack.LinearOperator((n, n), matvec=product, dtype=np.float64),
            k=1,
            which="LA",
            v0=start,
            ncv=4,
            maxiter=restarts,
            tol=tolerance,
            return_eigenvectors=False,
        )
    except (FloatingPointError, arpack.ArpackError):
        return math.nan
    return float(found[0])


def sharpness(
    network: ResNet | Own, x: Tensor, y: Tensor, images: int = 1000, chunk: int = 128, tolerance: float = 1e-2
) -> float:
    """Largest eigenvalue of the Hessian of the mean cross-entropy, over all parameters of one network.

    In units of the loss, at the first `images` of the fixed order, `chunk` of them
    at a time. Batch norm takes the running statistics: this is the curvature of
    the function that is tested. The network stays as it is.
    """
    probed = copy.deepcopy(network).eval()
    chosen = _order(y)[:images]

    def losses() -> Iterator[Tensor]:
        for index in chosen.split(chunk):
            yield F.cross_entropy(probed(x[index])[0], y[index], reduction="sum") / len(chosen)

    return largest_hessian_eigenvalue(losses, list(probed.parameters()), tolerance)


@torch.no_grad()
def mean_loss(network: ResNet | Own, x: Tensor, y: Tensor, images: int = 1000, chunk: int = 128) -> float:
    """Mean cross-entropy of one network at the images at which `sharpness` is measured, tested as there."""
    probed, chosen = copy.deepcopy(network).eval(), _order(y)[:images]
    parts = (F.cross_entropy(probed(x[i])[0], y[i], reduction="sum") for i in chosen.split(chunk))
    return float(sum(parts)) / len(chosen)


def measure(
    names: Sequence[str],
    state: dict[str, Tensor],
    model: Model,
    x: Tensor,
    y: Tensor,
    classes: int,
    batch_size: int,
    old: Tensor,
) -> dict[str, float]:
    """What the named probes find in one network, at weights as `ResNet.member` names them.

    Images [n, C, H, W] with labels [n] are a population's training images, of
    which `old` [n], bool, are those of its seed's first half; the network is
    rebuilt on their device, in their precision.
    """
    network = build(model, x.shape[1], classes, x.shape[3]).to(x)
    network.load_member(0, state)
    probes = {
        "gradient_noise": lambda: {"gradient_noise": gradient_noise(network, x, y, batch_size)},
        "sharpness": lambda: {"sharpness": sharpness(network, x, y)},
        "noise": lambda: noise(network, x, y, old, batch_size),
        "curvature": lambda: {
            "curvature": sharpness(network, x, y),
            "curvature_loss": mean_loss(network, x, y),
        },
    }
    # By default a GPU rounds the inputs of convolutions to TF32's ten bits. Attention can be
    # differentiated twice only where it is computed plainly.
    with (
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        return {key: value for name in names for key, value in probes[name]().items()}
