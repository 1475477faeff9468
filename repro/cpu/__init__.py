"""A faster ResNet on a CPU, where PyTorch's convolutions are slow for few channels.

Other packages call only `forward` and `versions`. `forward` computes what `repro.training.network.ResNet`
does, with its parameters and buffers, by our own kernels on tiles of 16 images (`repro.cpu.tiles`), or by
PyTorch if llvmlite is not installed. Letters in shapes: P members (networks trained together), B images,
C channels of a member, H rows, W columns.
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

# Whether this processor multiplies bf16; False if PyTorch has no oneDNN to tell, as on a Mac.
HAS_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def forward(network: nn.Module, images: Tensor, has_bf16: bool = HAS_BF16) -> Tensor:
    """Logits [P, B, classes] that a `ResNet` gives for images [B, P * C, H, W], up to rounding.

    In float32, if B is a multiple of 16, our own kernels compute them, on one core;
    the result can be differentiated once only. Otherwise PyTorch does, with emulated
    convolutions under bf16 autocast unless `has_bf16`.
    """
    in_bf16 = torch.is_autocast_enabled("cpu")
    if tiles is not None and images.dtype == torch.float32 and not in_bf16 and len(images) % tiles.TILE == 0:
        return tiles.forward(network, images)
    with EmulatedBf16() if in_bf16 and not has_bf16 else contextlib.nullcontext():
        return network(images.contiguous(memory_format=torch.channels_last))


def versions() -> dict[str, str]:
    """Versions of the libraries, besides PyTorch, on which the results of `forward` depend."""
    return {} if tiles is None else {"llvmlite": llvmlite.__version__}


class EmulatedBf16(TorchFunctionMode):
    """A context in which convolutions give what hardware with bf16 gives.

    Images, weights, results and their gradients are rounded to bf16; products of
    rounded numbers are exact in float32, and are summed in it. On processors without
    bf16, PyTorch's own bf16 convolutions take six times as long as float32 ones.
    """

    def __torch_function__(
        self, function: Callable, types: object, arguments: tuple = (), options: dict | None = None
    ) -> Tensor:
        if function is not torch.conv2d:
            return function(*arguments, **options or {})
        x, weight, *others = arguments
        with torch.autocast("cpu", enabled=False):  # which would choose PyTorch's own bf16
            x, weight = (tensor.bfloat16().float() for tensor in (x, weight))
            return function(x, weight, *others, **options or {}).bfloat16()
