"""The weights of networks that run as one op."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from pyrecon._library import runs_kernel


def runs_as_op(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether nothing was added to a module that an op in its place would leave out."""
    return type(module) is kind and not module._forward_hooks and not module._forward_pre_hooks


def packable(convs: Iterable[nn.Module], *inputs: Tensor, op: str | None = None) -> list[Tensor] | None:
    """Weights and biases of convolutions in turn, or None where modules must run: on a device without a kernel of
    ``op``, for transforms, hooks and parametrizations.

    Looked up afresh each time: nothing that a program does to the modules is missed.
    """
    weights: list[Tensor] = []
    for conv in convs:
        own = conv._parameters  # attributes of modules take three times as long to look up
        weight, bias = own.get("weight"), own.get("bias")
        if weight is None or bias is None or conv._forward_hooks or conv._forward_pre_hooks or len(own) != 2:
            return None
        weights += (weight, bias)
    return weights if runs_kernel(*inputs, *weights, op=op) else None
