"""A network's losses from a compiler, which puts batch norm, addition, ReLU and casts into few kernels.

Convolutions stay those of cuDNN or oneDNN: the compiler chooses among its own
kernels by the clock, and two processes would then differ in bits.
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

SHAPES = 64  # of networks, batches and images that a process compiles for; PyTorch gives up after 8


def judged(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [P, B] of logits [P, B, classes] for labels [P, B], and where the largest is the label's."""
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
    return losses, logits.detach().argmax(2) == y


def _examine(network: ResNet, x: Tensor, y: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        logits = network(x.contiguous(memory_format=torch.channels_last))
    return judged(logits.to(x.dtype), y)


@functools.cache
def _compiler(free: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    # One waits nearly as long for these as for PyTorch.
    from torch._dynamo import config
    from torch._inductor import config as inductor

    config.recompile_limit = SHAPES
    # By a rule of its own it turns images to channels last, but not where convolutions are grouped.
    options = {"layout_optimization": True, "force_layout_optimization": True}
    if hasattr(inductor, "deterministic"):
        # Else the clock says in what order numbers are summed, and may say otherwise in another process.
        options["deterministic"] = not free
    return torch.compile(_examine, fullgraph=True, dynamic=False, options=options)


def compiled(
    network: ResNet, x: Tensor, y: Tensor, bf16: bool
) -> Callable[[ResNet, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What gives losses and hits [P, B] in training of networks like this one on batches like this one.

    It is compiled once for a shape, forwards and backwards, by a trial on a copy
    of the network. None, after a warning, where that fails.
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
    except Exception as error:  # of many kinds: no compiler, none that works, an operation it does not know
        warnings.warn(f"not compiled, so slower: {' '.join(str(error).split())}"[:300], stacklevel=3)
        return None
    return lambda network, x, y: examine(network, x, y, bf16)
