"""The same network, sooner on a CPU: nothing outside this folder knows how.

`forward` computes what `repro.training.network.ResNet` computes, with its parameters and
buffers. Where llvmlite is not installed, PyTorch's own operations do it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

try:
    import llvmlite

    from repro.cpu import tiles
except ImportError:  # llvmlite is not installed
    tiles = None

# Whether this processor multiplies bf16. PyTorch without oneDNN, as on a Mac, cannot be asked.
HAS_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def forward(network: nn.Module, images: Tensor, has_bf16: bool = HAS_BF16) -> Tensor:
    """Logits [P, B, classes] that a `ResNet` gives for images [B, P * C, H, W], up to rounding.

    In float32, multiples of 16 images go through our own kernels (`repro.cpu.tiles`),
    on one core; their result can be differentiated once. Everything else goes
    through PyTorch, whose convolutions in bf16 (by autocast) are emulated where
    the processor has none.
    """
    in_bf16 = torch.is_autocast_enabled("cpu")
    if tiles is not None and images.dtype == torch.float32 and not in_bf16 and len(images) % tiles.TILE == 0:
        return tiles.forward(network, images)
    with EmulatedBf16() if in_bf16 and not has_bf16 else contextlib.nullcontext():
        return network(images.contiguous(memory_format=torch.channels_last))


def versions() -> dict[str, str]:
    """Versions of libraries on which the results of `forward` depend, besides PyTorch's."""
    return {} if tiles is None else {"llvmlite": llvmlite.__version__}


class EmulatedBf16(TorchFunctionMode):
    """A context in which convolutions give what hardware with bf16 gives.

    Images, weights, results and their gradients are rounded to bf16. Products of
    rounded numbers are exact in float32, in which they are summed. PyTorch's own
    convolutions in bf16 take six times as long as float32 on processors without it.
    """

    def __torch_function__(
        self, function: Callable, types: object, arguments: tuple = (), options: dict | None = None
    ) -> Tensor:
        if function is not torch.conv2d:
            return function(*arguments, **options or {})
        x, weight, *others = arguments
        with torch.autocast("cpu", enabled=False):  # it would choose PyTorch's own bf16
            x, weight = (tensor.bfloat16().float() for tensor in (x, weight))
            return function(x, weight, *others, **options or {}).bfloat16()
