"""LoRA's product in one step: fewer passes over the activations than PEFT makes, forward and backward, same result.

PEFT computes `y = x W' + b`, `u = x A'`, `v = u B'`, `s v` and `y + s v` one after the other, each a tensor of the
output's size that autograd keeps or reads again. Here the low-rank part is added into `y` by the matrix product itself,
and the backward pass does the same for the gradient of `x`.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from hf_rlhf.types import Model

_FEW_ROWS = 64


class LoraProduct(torch.autograd.Function):
    """`y = x W' + b + s (x A') B'` for a frozen `W` and `b`, in the dtype of `W`.

    x: `(..., I)`. weight `W`: `(O, I)`. bias `b`: `(O,)` or None. lora_a `A`: `(R, I)`. lora_b `B`: `(O, R)`; both may
    have another dtype, which is that of their gradients. scaling: `s`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        """Compute `y` and keep what the backward pass needs."""
        dtype = weight.dtype
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        a, b = lora_a.to(dtype), lora_b.to(dtype)
        low = rows @ a.T
        y = nn.functional.linear(rows, weight, bias)
        y.addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling, ctx.dtypes = scaling, (x.dtype, lora_a.dtype, lora_b.dtype)
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        """Compute, with `g = dL/dy`: `dx = g W + s (g B) A`, `dA = s (g B)' x`, `dB = s g' (x A')`."""
        rows, low, weight, a, b = ctx.saved_tensors
        x_dtype, a_dtype, b_dtype = ctx.dtypes
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1]).to(weight.dtype)
        low_gradient = (gradient @ b).mul_(ctx.scaling)
        x_gradient = a_gradient = b_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = gradient @ weight
            x_gradient.addmm_(low_gradient, a)
            x_gradient = x_gradient.to(x_dtype).view(*gradients[0].shape[:-1], weight.shape[1])
        if ctx.needs_input_grad[3]:
            a_gradient = (low_gradient.T @ rows).to(a_dtype)
        if ctx.needs_input_grad[4]:
            b_gradient = (low.T @ gradient).mul_(ctx.scaling).T.to(b_dtype)  # three times as fast as gradient.T @ low
        return x_gradient, None, None, a_gradient, b_gradient, None


def _product_of_few_rows(x: Tensor, base: Any, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """Compute `LoraProduct` for the few rows of a decoding step.

    On few rows a low-rank product is faster in the adapter's fp32.
    """
    y = nn.functional.linear(x, base.weight, base.bias)
    rows = x.reshape(-1, x.shape[-1]).to(lora_a.dtype)
    # With `out`, autocast leaves the products alone.
    low = torch.mm(rows, lora_a.T, out=rows.new_empty(len(rows), lora_a.shape[0]))
    high = torch.mm(low, lora_b.T, out=rows.new_empty(len(rows), lora_b.shape[0]))
    return y.add_(high.view(y.shape), alpha=scaling)


class FusedLoraLinear(Linear):
    """PEFT's LoRA layer on a plain linear one. Anything that is not plain LoRA falls back to PEFT's own code."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Like `Linear.forward` of PEFT, but compute plain LoRA by `LoraProduct`."""
        name = self._plain_adapter(x)
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        lora_a: Any = self.lora_A[name].weight
        lora_b: Any = self.lora_B[name].weight
        scaling = float(self.scaling[name])
        if not torch.is_grad_enabled() and 0 < x.numel() <= _FEW_ROWS * x.shape[-1]:
            return _product_of_few_rows(x, base, lora_a, lora_b, scaling)
        product: Any = LoraProduct.apply(x, base.weight, base.bias, lora_a, lora_b, scaling)
        return product

    def is_plain(self, name: str, *, training: bool) -> bool:
        """Return whether adapter `name` is plain LoRA on a frozen layer.

        It has no bias, no variants and, in `training`, no dropout.
        """
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias.get(name):
            return False
        if training and not isinstance(self.lora_dropout[name], nn.Identity) and self.lora_dropout[name].p:
            return False
        base: Any = self.get_base_layer()
        return not (base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad))

    def _plain_adapter(self, x: Tensor) -> str | None:
        """Return the one active adapter, if it `is_plain` and no casts or hooks are needed."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        if not self.is_plain(name, training=self.training):
            return None
        base: Any = self.get_base_layer()
        casts = self.cast_input_dtype_enabled and self.lora_A[name].weight.dtype != x.dtype
        device = x.device.type
        mixed = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != base.weight.dtype
        watched = base._forward_hooks or base._forward_pre_hooks or hasattr(base, "_hf_hook")
        return None if casts or mixed or watched else name


def fuse_lora(model: Model) -> None:
    """Let every LoRA layer of `model` on a plain linear layer compute by `LoraProduct`. Weights and names stay."""
    for module in model.modules():
        if type(module) is Linear and type(module.get_base_layer()) is nn.Linear:
            module.__class__ = FusedLoraLinear
