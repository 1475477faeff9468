"""Gradient noise and sharpness, for the paper's hypothesis of two phases of learning (Figure 7).

The paper suspects that a warm-started network skips a first, noisy phase of
learning and so ends in a narrower minimum: sharpness, the largest eigenvalue of
the loss's Hessian, tells how narrow. All probes take the images in one fixed
order, so that fresh and warm-started networks are probed on the same ones.
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
from repro.data.datasets import generator
from repro.lazy import Lazy
from repro.training.models import Own
from repro.training.models import network as build
from repro.training.network import ResNet

arpack = Lazy("scipy.sparse.linalg")  # few of the processes that import this module measure sharpness

# Streams of random numbers; no seed of a run enters them, so that all networks are probed alike.
ORDER, START = range(2)


def _order(y: Tensor) -> Tensor:
    """Indices of all images in one fixed random order, on the device of the labels `y`."""
    return torch.from_numpy(generator(0, ORDER).permutation(len(y))).to(y.device)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """Gradients of all parameters, flattened into one tensor [n]."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def _sums(gradients: Iterable[Sequence[Tensor]]) -> tuple[Tensor, Tensor, int]:
    """Sum of the mini-batch gradients [n], sum of their squared norms, and their number."""
    total = squares = count = 0
    for gradient in gradients:
        flat = _flat(gradient).double()
        total, squares, count = total + flat, squares + flat.square().sum(), count + 1
    return total, squares, count


def noise_to_signal(gradients: Iterable[Sequence[Tensor]]) -> float:
    """Trace of the covariance of mini-batch gradients, divided by the squared norm of their mean; no unit.

    `gradients` yields one list of tensors per mini-batch of one network. The variance
    divides by their number K; pure noise gives about K - 1, so larger ratios cannot be
    told from it. NaN for fewer than two mini-batches, if a gradient is not finite, or
    if noise and mean are both zero.
    """
    total, squares, count = _sums(gradients)
    if count < 2:
        return math.nan
    signal = (total / count).square().sum()
    return float((squares / count - signal).clamp(min=0) / signal)


def trace_and_signal(gradients: Iterable[Sequence[Tensor]]) -> tuple[float, float]:
    """Trace of the covariance of one network's mini-batch gradients, and squared norm of their expectation.

    Both are unbiased, in squared units of a gradient. For K gradients, the covariance
    divides by K - 1; noise adds a K-th of the trace to the squared norm of their mean,
    which is subtracted again, so that the second result can be negative. Both are NaN
    for fewer than two mini-batches.
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
    """Gradients of a network at up to `batches` full mini-batches, in the order of `index`."""
    probed = copy.deepcopy(network).train()  # a copy, as training mode changes running statistics
    parameters = [parameter for parameter in probed.parameters() if parameter.requires_grad]
    for chosen in index.split(batch_size)[: min(batches, len(index) // batch_size)]:
        loss = F.cross_entropy(probed(x[chosen])[0], y[chosen], reduction="sum") / batch_size
        yield torch.autograd.grad(loss, parameters, materialize_grads=True)


def gradient_noise(network: ResNet | Own, x: Tensor, y: Tensor, batch_size: int, batches: int = 64) -> float:
    """Noise-to-signal ratio (`noise_to_signal`) of mini-batch gradients at the network's current weights.

    Images [n, C, H, W] with labels [n] are cut into full mini-batches, of which at
    most `batches` are used. Batch norm uses the statistics of the batch, as in
    training. The network is not changed.
    """
    return noise_to_signal(_gradients(network, x, y, _order(y), batch_size, batches))


def noise(
    network: ResNet | Own, x: Tensor, y: Tensor, old: Tensor, batch_size: int, batches: int = 64
) -> dict[str, float]:
    """`trace_and_signal` of one network on all images, on the old ones, and on the others (new).

    `old` [n], bool, marks the images that a pretraining uses. Mini-batches are as in
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

    The loss is the sum of the terms that `losses()` yields, each with its own
    graph, so that only one graph is held at a time. The eigenvector's residual is
    at most `tolerance` times the eigenvalue, whose own relative error is far
    smaller if the next eigenvalue is well separated. NaN if a Hessian-vector product
    is not finite, if the Hessian is zero, or if `restarts` restarts do not suffice.
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
    start = generator(0, START).standard_normal(n)  # ARPACK would draw a new one every time
    try:
        # A network's largest eigenvalue is well separated: 5 products find it with 4 Lanczos vectors,
        # where the usual 20 vectors would take 21 products.
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
    """Largest eigenvalue of the Hessian of the mean cross-entropy, over what is trained of one network.

    In units of the loss, at the first `images` in the fixed order, processed `chunk`
    at a time. Batch norm uses running statistics: this is the curvature of the
    function that is tested. The network is not changed.
    """
    probed = copy.deepcopy(network).eval()
    chosen = _order(y)[:images]

    def losses() -> Iterator[Tensor]:
        for index in chosen.split(chunk):
            yield F.cross_entropy(probed(x[index])[0], y[index], reduction="sum") / len(chosen)

    parameters = [parameter for parameter in probed.parameters() if parameter.requires_grad]
    return largest_hessian_eigenvalue(losses, parameters, tolerance)


@torch.no_grad()
def mean_loss(network: ResNet | Own, x: Tensor, y: Tensor, images: int = 1000, chunk: int = 128) -> float:
    """Mean cross-entropy of one network at the images of `sharpness`, also with running statistics."""
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
    """Results of the named probes for one network, whose weights `state` has as `ResNet.member` returns them.

    Images [n, C, H, W] with labels [n] are all training images; `old` [n], bool,
    marks the half that the run's seed assigns to pretraining. The network is built
    on the device of the images, in their precision.
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
    # By default a GPU rounds the inputs of convolutions to TF32's ten bits. Of PyTorch's ways to
    # compute attention, only MATH can be differentiated twice.
    with (
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        return {key: value for name in names for key, value in probes[name]().items()}
