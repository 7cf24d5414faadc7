"""Triton kernel of pyrecon/ops/_rdn.py: a launch per convolution, with bias, ReLU and addition, no concatenation.

All feature maps of a batch are planes of one tensor; a convolution reads two ranges of them. Nine products of weights
(outputs, 16 inputs) with shifted pixels (16 inputs, pixels) for every 16 inputs, on the matrix units: in single
precision three of tf32, which keeps single precision.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor


# What differs between the launches of a network makes no kernel of its own.
@triton.jit(do_not_specialize=["start", "first", "split", "rest", "inputs", "outputs", "skip", "to"])
def conv_kernel(
    planes, weights, out, start, first, split, rest, inputs, outputs, skip, to, height, width, planes_per_image,
    planes_per_result, blocks,
    OUTPUTS: tl.constexpr, P: tl.constexpr, K: tl.constexpr, RELU: tl.constexpr, SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    # A block of P pixels of all outputs: planes `to` and on of out = [relu](planes from `skip` on + bias + weight * in)
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    at = (program % blocks) * P + tl.arange(0, P)
    row, col, pixels = at // width, at % width, height * width
    image = planes + b * planes_per_image * pixels
    o, filter = tl.arange(0, OUTPUTS), inputs * K * K
    total = tl.zeros((OUTPUTS, P), out.dtype.element_ty)
    for begin in range(0, inputs, 16):
        i = begin + tl.arange(0, 16)
        plane = tl.where(i < split, first + i, rest + i - split).to(tl.int64) * pixels
        for tap in tl.static_range(K * K):
            r, c = row + (tap // K - K // 2), col + (tap % K - K // 2)
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            x = tl.load(image + plane[:, None] + (r * width + c)[None, :], (i < inputs)[:, None] & inside[None, :], 0.0)
            w = tl.load(
                weights + start + o[:, None] * filter + i[None, :] * (K * K) + tap,
                (o < outputs)[:, None] & (i < inputs)[None, :], 0.0,
            )  # fmt: skip
            total = tl.dot(w, x, total, input_precision=PRECISION, out_dtype=out.dtype.element_ty)
    total += tl.load(weights + start + outputs * filter + o, o < outputs, 0.0)[:, None]
    wanted = (o < outputs)[:, None] & (at < pixels)[None, :]
    if SKIP:
        total += tl.load(image + (o + skip).to(tl.int64)[:, None] * pixels + at[None, :], wanted, 0.0)
    if RELU:
        total = tl.where(total < 0.0, 0.0, total)  # keeps a NaN
    result = out + b * planes_per_result * pixels
    tl.store(result + (o + to).to(tl.int64)[:, None] * pixels + at[None, :], total, wanted)


def rdn(
    image: Tensor,
    weights: Tensor,
    features: int,
    growth: int,
    blocks: int,
    layers: int,
    filters: Iterable[tuple[int, int, int]],
    out: Tensor,
) -> None:
    """The network; ``filters`` lists outputs, inputs and size of its convolutions."""
    batch, height, width = image.shape
    if batch == 0:
        return
    shallow = 1
    x = shallow + features  # the planes of all x_i follow one another
    grown = x + (blocks + 1) * features
    fused = grown + layers * growth
    planes = image.new_empty(batch, fused + features, height, width)
    planes[:, 0] = image
    remaining, start = iter(filters), 0
    double = image.dtype == torch.float64

    def conv(first: int, to: int, *, split: int | None = None, skip: int | None = None, relu: bool = False) -> None:
        """From `split` planes (all of them if not given), then those grown, to planes from ``to``."""
        nonlocal start
        outputs, inputs, size = next(remaining)
        result = planes if to else out
        P = 32 if double else 64
        count = triton.cdiv(height * width, P)
        conv_kernel[(batch * count,)](
            planes, weights, result, start, first, split or inputs, grown, inputs, outputs, skip or 0, to, height,
            width, planes.shape[1], result.shape[1] if to else 1, count,
            OUTPUTS=max(16, triton.next_power_of_2(outputs)), P=P, K=size, RELU=relu, SKIP=skip is not None,
            PRECISION="ieee" if double else "tf32x3", num_warps=4,
        )  # fmt: skip
        start += outputs * (inputs * size * size + 1)

    conv(0, shallow)
    conv(shallow, x)
    for block in range(blocks):
        now = x + block * features
        for layer in range(layers):
            conv(now, grown + layer * growth, split=features, relu=True)
        conv(now, now + features, split=features, skip=now)
    conv(x + features, fused)
    conv(fused, x, skip=shallow)
    conv(x, 0, skip=0, relu=True)
