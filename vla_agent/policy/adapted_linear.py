"""peft's linear layer with a low-rank adapter, changed to compute in the type of its input."""

from typing import Any, cast

import torch as th
from peft.tuners import lora
from torch import nn
from torch.nn import functional as F


class AdaptedLinear(lora.Linear):
    """`base(x) + scaling * up(down(dropout(x)))`, computed in the type of `x` whatever the adapter's is.

    Adapters are float32, so that small steps are not lost. peft computes in that type, too: for a bfloat16 layer,
    each pass then makes a float32 copy of its input, which is kept for the backward pass, and multiplies without
    tensor cores. Here the weights are rounded at each use, as autocast would, and steps still add up in float32. The
    product is added within the matrix multiplication.
    """

    def forward(self, x: th.Tensor, *args: Any, **kwargs: Any) -> th.Tensor:
        """Maps (..., C_in) to (..., C_out)."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        y = self.base_layer(x)
        down, up = (cast(nn.Linear, half[name]).weight.to(x.dtype) for half in (self.lora_A, self.lora_B))
        low = F.linear(self.lora_dropout[name](x), down)
        return th.addmm(y.flatten(0, -2), low.flatten(0, -2), up.t(), alpha=self.scaling[name]).view_as(y)
