"""Convolutions in bf16 on processors without it, where PyTorch's own take six times as long as float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Whether this processor multiplies bf16. PyTorch without oneDNN, as on a Mac, cannot be asked.
SUPPORTED = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Emulated(TorchFunctionMode):
    """A context in which convolutions give what hardware with bf16 gives.

    Images, weights, results and their gradients are rounded to bf16. Products of
    rounded numbers are exact in float32, in which they are summed.
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
