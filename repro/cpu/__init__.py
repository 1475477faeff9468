"""The same network, sooner on a CPU: nothing outside this folder knows how.

`forward` computes what `repro.training.network.ResNet` computes, with its parameters and
buffers. Where llvmlite is not installed, PyTorch's own operations do it.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from repro.cpu import bf16

try:
    import llvmlite

    from repro.cpu import tiles
except ImportError:  # llvmlite is not installed
    tiles = None


def forward(network: nn.Module, images: Tensor) -> Tensor:
    """Logits [P, B, classes] that a `ResNet` gives for images [B, P * C, H, W], up to rounding.

    In float32, multiples of 16 images go through our own kernels (`repro.cpu.tiles`),
    on one core; their result can be differentiated once. Everything else goes
    through PyTorch, whose convolutions in bf16 (by autocast) are emulated where
    the processor has none.
    """
    in_bf16 = torch.is_autocast_enabled("cpu")
    if tiles is not None and images.dtype == torch.float32 and not in_bf16 and len(images) % tiles.TILE == 0:
        return tiles.forward(network, images)
    with bf16.Emulated() if in_bf16 and not bf16.SUPPORTED else contextlib.nullcontext():
        return network(images.contiguous(memory_format=torch.channels_last))


def versions() -> dict[str, str]:
    """Versions of libraries on which the results of `forward` depend, besides PyTorch's."""
    return {} if tiles is None else {"llvmlite": llvmlite.__version__}
