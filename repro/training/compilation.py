"""Networks' losses by PyTorch's compiler, which fuses batch norm, addition, ReLU and casts into few kernels.

Convolutions remain those of cuDNN or oneDNN: the compiler chooses among its own
kernels by timing them, so two processes could give different bits.
"""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.training.network import ResNet

SHAPES = 64  # combinations of network and batch for which a process compiles; PyTorch's limit is 8


def judged(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [P, B] of logits [P, B, classes] for labels [P, B], and which predictions are right [P, B]."""
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
    return losses, logits.detach().argmax(2) == y


def _examine(network: ResNet, x: Tensor, y: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        logits = network(x.contiguous(memory_format=torch.channels_last))
    return judged(logits.to(x.dtype), y)


@functools.cache
def _compiler(free: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    # Imported only here, as they take nearly as long to import as PyTorch.
    from torch._dynamo import config
    from torch._inductor import config as inductor

    config.recompile_limit = SHAPES
    # Left to its own rule, the compiler uses channels last for ungrouped convolutions only.
    options = {"layout_optimization": True, "force_layout_optimization": True}
    if hasattr(inductor, "deterministic"):
        # Otherwise timings decide the order of sums, which may then differ between processes.
        options["deterministic"] = not free
    return torch.compile(_examine, fullgraph=True, dynamic=False, options=options)


def compiled(
    network: ResNet, x: Tensor, y: Tensor, bf16: bool
) -> Callable[[ResNet, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """A function of (network, x, y) for training: losses [P, B], and which predictions are right [P, B].

    It is compiled for networks and batches of the shapes of these, forwards and
    backwards, by a trial on a copy of the network. None, after a warning, if that fails.
    """
    trial = copy.deepcopy(network).train()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to programmers, such as on precisions
            examine = _compiler(os.environ.get("TORCHINDUCTOR_DETERMINISTIC") == "0")
            losses, _ = examine(trial, x, y, bf16)
            losses.mean(1).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler, a broken one, an unknown operation, and others
        warnings.warn(f"not compiled, so slower: {' '.join(str(error).split())}"[:300], stacklevel=3)
        return None
    return lambda network, x, y: examine(network, x, y, bf16)
