"""Deep image prior: an untrained network, fitted to one frame's data, is all that is known of images.

Dittmer et al., A deep prior approach to magnetic particle imaging, MLMIR 2020, with the squared error, Adam and the
number of iterations of DEQ-MPI section IV-A.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrecon._check import check_number
from pyrecon._threads import all_threads
from pyrecon.data.mpi import MPISystem
from pyrecon.models.method import Progress
from pyrecon.models.mpi.method import Data, MPIMethod
from pyrecon.models.mpi.system import FactoredSystem, image_shape
from pyrecon.solvers import Solution, Status

_WIDTHS = (16, 32, 32)  # channels at full, half and quarter resolution
_INPUT = 8  # channels of noise that the network turns into an image
_CHECK = 10  # iterations between stop tests: each one synchronises with the device


@dataclass(frozen=True)
class DeepImagePrior(MPIMethod):
    """``x = net(z)`` with ``net`` minimising ``|A net(z) - y|^2`` by Adam, ended when the noise would be fitted.

    The network is a small U-Net (two scales down, 3x3 convolutions, instance norm, leaky ReLU, softplus at the end), z
    fixed noise. Every frame of a batch has a network of its own, and all start alike, so an image does not depend on
    the frames beside it. The data term is taken in the r + 1 coordinates of the data, where it is the same number.

    Stop: at the first test (every 10th iteration) with A x in the ball around y: Morozov's discrepancy principle,
    stated in the range of A. Status CONVERGED then, MAX_ITER after all ``iterations``. The residual of the solution is
    the misfit there over the radius.

    Attributes
    ----------
    iterations, rate
        At most so many steps of Adam, and its rate; 20,000 and 1e-3 as published.
    kappa
        Of the ball: the misfit in the range of A as a multiple of the noise expected there; 0 runs all iterations.
    seed
        Of the first weights and of z.
    """

    iterations: int = 20_000
    rate: float = 1e-3
    kappa: float = 1.0
    seed: int = 0

    name: ClassVar[str] = "DIP"
    volumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations: {self.iterations}, expected at least one")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate: {self.rate}, expected a number above 0")
        check_number("kappa", self.kappa)

    def prepare(self, system: FactoredSystem, source: MPISystem | None = None) -> DeepImagePrior:
        """Itself; DataError where the grid is not an image."""
        image_shape(system.shape)
        return self

    def _solve(
        self, system: FactoredSystem, data: Data, start: None, progress: Progress
    ) -> tuple[Solution[Tensor], None]:
        with all_threads():  # for the convolutions they pay
            return _fit(self, system, *data.ball(self.kappa), progress), None


def _fit(
    method: DeepImagePrior, system: FactoredSystem, y: Tensor, radius: Tensor, progress: Progress
) -> Solution[Tensor]:
    """Frames that are done leave the batch and cost nothing more."""
    shape, batch = image_shape(system.shape), len(y)
    ended = Solution(
        y.new_full((batch, math.prod(shape)), torch.nan),
        torch.full((batch,), Status.NONFINITE, dtype=torch.int8, device=y.device),
        torch.zeros(batch, dtype=torch.int32, device=y.device),
        y.new_full((batch,), torch.nan),
    )
    active = torch.nonzero(torch.isfinite(y).all(dim=1) & torch.isfinite(radius))[:, 0]
    weights, z = _first(method.seed, shape, y)
    weights = [w.expand(len(active), *w.shape[1:]).clone().requires_grad_() for w in weights]
    adam = torch.optim.Adam(weights, lr=method.rate)
    y, radius = y[active], radius[active]
    for k in range(method.iterations + 1):
        if len(active) == 0:
            break
        with torch.enable_grad():
            x = _network(weights, z)
            inside = ((x @ system.V) * system.s - y[:, :-1]).square().sum(dim=1)
        leave = None
        if (k % _CHECK == 0 and k > 0) or k == method.iterations:
            progress(k / method.iterations)
            with torch.no_grad():
                residual = inside.sqrt() / radius.clamp(min=torch.finfo(y.dtype).tiny)
                reached = residual <= 1
                broken = ~torch.isfinite(inside)
                leave = reached | broken | (k == method.iterations)
        if k < method.iterations:
            adam.zero_grad()
            # The mean over a frame's numbers, the sum over frames: a frame's network does not see the others.
            (inside.sum() / y.shape[1]).backward()
            adam.step()
        if leave is not None and bool(leave.any()):
            gone, stay = active[leave], ~leave
            ended.value[gone], ended.residual[gone], ended.iterations[gone] = x.detach()[leave], residual[leave], k
            status = torch.where(reached, int(Status.CONVERGED), int(Status.MAX_ITER))
            status[broken] = int(Status.NONFINITE)
            ended.status[gone] = status[leave].to(torch.int8)
            active, y, radius = active[stay], y[stay], radius[stay]
            weights, adam = _without(weights, adam, stay)
    return ended


# --- one network per frame ---------------------------------------------------------------------------------------
def _sizes() -> Iterator[tuple[int, int]]:
    """Outputs and inputs of the 3x3 convolutions: down, down, bottom, and up again with skips."""
    full, half, quarter = _WIDTHS
    yield from ((full, _INPUT), (full, full), (half, full), (half, half), (quarter, half), (quarter, quarter))
    yield from ((half, half + quarter), (full, full + half))


def _first(seed: int, shape: tuple[int, int], like: Tensor) -> tuple[list[Tensor], Tensor]:
    """What every frame starts from: weights ``(1, ...)``, of each layer the convolution's and scale and bias after its
    norm, then the last 1x1's; and z, ``(1, channels, H, W)``, in [0, 0.1)."""
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for outputs, inputs in _sizes():
        spread = math.sqrt(2 / (9 * inputs))
        weights += [spread * torch.randn(1, outputs, inputs, 3, 3, generator=generator), torch.ones(1, outputs)]
        weights.append(torch.zeros(1, outputs))
    weights += [torch.randn(1, _WIDTHS[0], generator=generator) / math.sqrt(_WIDTHS[0]), torch.zeros(1)]
    z = 0.1 * torch.rand(1, _INPUT, *shape, generator=generator)
    return [w.to(like) for w in weights], z.to(like)


def _network(weights: list[Tensor], z: Tensor) -> Tensor:
    """``(B, H W)`` images, not negative, from B networks and one z."""
    remaining = iter(weights)

    def layer(x: Tensor) -> Tensor:
        weight, scale, bias = (next(remaining) for _ in range(3))
        # Channels of all frames in one convolution with a group for each frame. A step (26 x 13 pixels, one thread)
        # takes 4.5 ms for one frame and 170 for 64; torch.vmap of conv2d 11 and 185, unfold with bmm 9 and 425.
        batch, outputs, inputs = weight.shape[:3]
        stacked = x.reshape(1, batch * inputs, *x.shape[2:])
        y = F.conv2d(stacked, weight.flatten(0, 1), padding=1, groups=batch).view(batch, outputs, *x.shape[2:])
        y = torch.addcmul(bias[:, :, None, None], F.instance_norm(y), scale[:, :, None, None])
        return F.leaky_relu(y, 0.1)

    def down(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2, ceil_mode=True) if min(x.shape[2:]) > 2 else x

    def up(x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([skip, F.interpolate(x, size=skip.shape[2:])], dim=1)

    full = layer(layer(z.expand(len(weights[0]), *z.shape[1:])))
    half = layer(layer(down(full)))
    quarter = layer(layer(down(half)))
    x = layer(up(layer(up(quarter, half)), full))
    weight, bias = remaining
    return F.softplus(torch.einsum("bchw,bc->bhw", x, weight) + bias[:, None, None], beta=10).flatten(1)


def _without(weights: list[Tensor], adam: torch.optim.Adam, stay: Tensor) -> tuple[list[Tensor], torch.optim.Adam]:
    """Weights and optimiser of the frames that stay."""
    kept = [w.detach()[stay].requires_grad_() for w in weights]
    new = torch.optim.Adam(kept, lr=adam.param_groups[0]["lr"])
    for old, now in zip(weights, kept, strict=True):
        if old in adam.state:
            new.state[now] = {k: v[stay] if k != "step" else v for k, v in adam.state[old].items()}
    return kept, new
