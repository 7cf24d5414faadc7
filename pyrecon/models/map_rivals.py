"""The rivals of PINQI: maps from the images of an unrolled reconstruction, or from zero-filled ones, and DOPAMINE.

As PINQI's authors built them anew for complex data of several coils and saturation recovery (section 3.3 of their
paper; sizes and details of their program), with the same interface as :class:`~pyrecon.models.PINQI`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pyrecon._check import check_count, check_number
from pyrecon.linops import LinearOperator
from pyrecon.models._map_network import Iterates, MapNetwork, as_channels, numbers_of, options_of
from pyrecon.models.data_consistency import DataConsistency
from pyrecon.models.pinqi import PINQI, image_unet, improved_by, ranged, unweighted, weighted
from pyrecon.models.weights import find_weights, read_header
from pyrecon.nn import ConditionedUNet
from pyrecon.nn.mapping import InstanceNet, PlainUNet, RecurrentNet, StridedUNet
from pyrecon.ops import SignalModel, fit_voxels

Regression = Literal["network", "fit"]


class _Unrolled(MapNetwork):
    """Images by ``iterations`` of ``y <- argmin |A y - k|^2 + l |y - y'|^2``, each with a learned l of its own."""

    def __init__(
        self,
        images: int,
        model: SignalModel | None,
        options: dict[str, Any],
        iterations: int,
        weight: float,
        rtol: float,
        max_iter: int,
    ) -> None:
        options = options | {"iterations": iterations, "rtol": rtol, "max_iter": max_iter}
        super().__init__(images, model, options)
        self.iterations = check_count("iterations", iterations)
        self.consistency = DataConsistency(rtol=rtol, max_iter=max_iter)
        check_number("weight", weight, above=True)
        self.raw_weights = nn.Parameter(unweighted(torch.full((iterations,), weight)))

    @property
    def weights(self) -> Tensor:
        """``(iterations,)``: l."""
        return weighted(self.raw_weights)


class UnrolledMaps(_Unrolled):
    """Images first, maps at the end: ``iterations`` of ``y <- argmin |A y - k|^2 + l |y - Y(y)|^2`` with one network Y
    on images, then parameters by a network P or by a fit of the signal.

    The baselines of PINQI's section 3.4: "unrolled reconstruction", and regression after it, apart or as a layer.

    Parameters
    ----------
    images, model, iterations, widths, image_widths, start, scale, bounds, rtol, max_iter
        As of :class:`PINQI`.
    regression
        ``"network"``, or ``"fit"``: :func:`pyrecon.ops.fit_voxels` without a prior.
    weight
        First l, for every iteration the same; learned, positive.
    """

    network: ClassVar[str] = "unrolled"
    start: Tensor
    scale: Tensor

    def __init__(
        self,
        images: int = 5,
        *,
        model: SignalModel | None = None,
        regression: Regression = "network",
        iterations: int = 5,
        widths: tuple[int, ...] = (32, 64, 96, 128, 128),
        image_widths: tuple[int, ...] = (16, 32, 48, 64, 64),
        start: tuple[float, float, float] = (0.8, 0.9, 0.0),
        scale: tuple[float, float, float] = (0.6, 0.2, 0.1),
        bounds: tuple[float, float] = (0.05, 20.0),
        weight: float = 0.1,
        rtol: float = 1e-4,
        max_iter: int = 50,
    ) -> None:
        options = {
            "regression": regression, "widths": list(widths), "image_widths": list(image_widths), "start": list(start),
            "scale": list(scale), "bounds": list(bounds),
        }  # fmt: skip
        super().__init__(images, model, options, iterations, weight, rtol, max_iter)
        if regression not in ("network", "fit"):
            raise ValueError(f"regression: {regression!r}, expected network or fit")
        self.bounds = bounds
        self.image_net = image_unet(image_widths)
        self.parameter_net: ConditionedUNet | None = None
        if regression == "network":
            self.parameter_net = ConditionedUNet(2 * images, 3, widths, groups=max(1, widths[0] // 2))
        for name, three in (("start", start), ("scale", scale)):
            self.register_buffer(name, torch.tensor(numbers_of(three, 3)).view(1, 3, 1, 1))

    def forward(self, k: Tensor, physics: LinearOperator, times: Tensor) -> Iterates:
        """As of :class:`PINQI`."""
        _, spread = self._begin(k, physics, times)
        y = self.first(k, physics)
        found = Iterates()
        for i, weight in enumerate(self.weights):
            improved = improved_by(self.image_net, y, (i + 1) / self.iterations)
            y = self.consistency(k, physics, [(weight, improved)], x0=improved.detach())
            found.images.append(y)
            found.suggested.append((None, improved))
        if self.parameter_net is not None:
            found.parameters.append(ranged(self.parameter_net(as_channels(y)), self.start, self.scale))
        else:
            found.fits.append(fit_voxels(self.model, y, spread, bounds=self.bounds))
            found.parameters.append(found.fits[-1].value)
        return found

    @classmethod
    def _configured(cls, config: dict[str, Any]) -> dict[str, Any]:
        return options_of(
            config, counts=("iterations", "max_iter"), widths=("widths", "image_widths"),
            numbers={"start": 3, "scale": 3, "bounds": 2},
        )  # fmt: skip


class DeepT1(_Unrolled):
    """Images by an unrolled recurrent network, maps by a U-Net on their magnitudes: ``y <- argmin |A y - k|^2 +
    l |y - y - R(y)|^2`` from ``A^H k``, with R of :class:`pyrecon.nn.mapping.RecurrentNet`.

    H. Jeelani, Y. Yang, R. Zhou, C. M. Kramer, M. Salerno, D. S. Weller, A myocardial T1-mapping framework with
    recurrent and U-Net convolutional neural networks, ISBI 2020. Both are trained apart. 297,538 and, for eight images,
    20,547,906 weights.

    Parameters
    ----------
    images, model, rtol, max_iter
        As of :class:`PINQI`.
    iterations, layers, width
        Of the recurrent network.
    widths
        Of the U-Net.
    start
        (rate in 1/s, M0) that it begins with.
    weight
        First l, for every iteration the same; learned, positive.
    """

    network: ClassVar[str] = "deept1"
    phase: ClassVar[bool] = False

    def __init__(
        self,
        images: int = 5,
        *,
        model: SignalModel | None = None,
        iterations: int = 5,
        layers: int = 5,
        width: int = 64,
        widths: tuple[int, ...] = (64, 128, 256, 512, 512),
        start: tuple[float, float] = (0.8, 0.9),
        weight: float = 1.0,
        rtol: float = 1e-4,
        max_iter: int = 50,
    ) -> None:
        options = {"layers": layers, "width": width, "widths": list(widths)}
        super().__init__(images, model, options, iterations, weight, rtol, max_iter)
        self.image_net = RecurrentNet(width, layers)
        self.parameter_net = PlainUNet(images, 2, widths)
        _begin_at(self.parameter_net.last, start)

    def forward(self, k: Tensor, physics: LinearOperator, times: Tensor) -> Iterates:
        """As of :class:`PINQI`; no gradient flows from the maps to the images."""
        found = self.reconstructed(k, physics, times)
        rate, size = self.parameter_net(found.images[-1].detach().abs()).unbind(1)
        found.parameters.append(torch.stack((rate, size, torch.zeros_like(size)), dim=1))
        return found

    def reconstructed(self, k: Tensor, physics: LinearOperator, times: Tensor) -> Iterates:
        """The images alone."""
        y, _ = self._begin(k, physics, times)
        memory: list[Tensor] = []
        found = Iterates()
        for weight in self.weights:
            change, memory = self.image_net(y, memory)
            improved = y + change
            y = self.consistency(k, physics, [(weight, improved)], x0=improved.detach())
            found.images.append(y)
            found.suggested.append((None, improved))
        return found

    @classmethod
    def _configured(cls, config: dict[str, Any]) -> dict[str, Any]:
        return options_of(config, counts=("iterations", "layers", "width", "max_iter"), widths=("widths",))


class MANTIS(MapNetwork):
    """Maps by a U-Net on the magnitudes of ``A^H k``; the data only enter the loss.

    F. Liu, L. Feng, R. Kijowski, MANTIS: Model-augmented neural network with incoherent k-space sampling for efficient
    MR parameter mapping, Magn. Reson. Med. 82 (2019). 29,248,258 weights for eight images.

    Parameters
    ----------
    images, model
        As of :class:`PINQI`.
    widths
        Of the U-Net.
    start
        (rate in 1/s, M0) that it begins with.
    """

    network: ClassVar[str] = "mantis"
    phase: ClassVar[bool] = False

    def __init__(
        self,
        images: int = 5,
        *,
        model: SignalModel | None = None,
        widths: tuple[int, ...] = (64, 128, 256, 512, 512, 512),
        start: tuple[float, float] = (0.8, 0.9),
    ) -> None:
        super().__init__(images, model, {"widths": list(widths)})
        self.parameter_net = StridedUNet(images, 2, widths)
        _begin_at(self.parameter_net.last, start)
        nn.init.normal_(self.parameter_net.last.weight, 0, 1e-6)

    def forward(self, k: Tensor, physics: LinearOperator, times: Tensor) -> Iterates:
        """As of :class:`PINQI`."""
        right, _ = self._begin(k, physics, times)
        rate, size = self.parameter_net(right.abs()).unbind(1)
        return Iterates([torch.stack((rate, size, torch.zeros_like(size)), dim=1)])

    @classmethod
    def _configured(cls, config: dict[str, Any]) -> dict[str, Any]:
        return options_of(config, widths=("widths",))


class DOPAMINE(MapNetwork):
    """Gradient descent on the parameters, with learned corrections and steps:

        p <- p - b tanh(m_i (J^T A^H (A q(p) - k) + l_i D(p)) / b),        J = dq/dp,

    from what a network of 1x1 convolutions says of the first images.

    Y. Jun, H. Shin, T. Eo, T. Kim, D. Hwang, Deep model-based magnetic resonance parameter mapping network (DOPAMINE)
    for fast T1 mapping using variable flip angle method, Med. Image Anal. 70 (2021), with the bound b that PINQI's
    authors needed. 317,894 weights for eight images.

    Parameters
    ----------
    images, model
        As of :class:`PINQI`.
    iterations
        Steps; each has an m and an l of its own.
    width, layers
        Of the networks.
    start
        (rate in 1/s, real and imaginary part of M0) that the first network begins with.
    bounds
        Of the rates that q sees, 1/s; the parameters themselves have none.
    weights
        First (m, l), for every iteration the same; learned, positive.
    bound
        b.
    """

    network: ClassVar[str] = "dopamine"

    def __init__(
        self,
        images: int = 5,
        *,
        model: SignalModel | None = None,
        iterations: int = 10,
        width: int = 64,
        layers: int = 5,
        start: tuple[float, float, float] = (0.8, 0.9, 0.0),
        bounds: tuple[float, float] = (0.05, 20.0),
        weights: tuple[float, float] = (0.05, 0.5),
        bound: float = 1.0,
    ) -> None:
        super().__init__(images, model, {
            "iterations": iterations, "width": width, "layers": layers, "bounds": list(bounds), "bound": bound,
        })  # fmt: skip
        self.bounds = bounds
        self.iterations = check_count("iterations", iterations)
        self.bound = check_number("bound", bound, above=True)
        sizes: dict[str, Any] = {"width": check_count("width", width), "layers": layers}
        self.start_net = InstanceNet(2 * images, 3, kernel=1, **sizes)
        self.rate_net, self.factor_net = InstanceNet(1, 1, **sizes), InstanceNet(2, 2, **sizes)
        for net in (self.rate_net, self.factor_net):
            nn.init.zeros_(net.last.weight)
            if net.last.bias is not None:
                nn.init.zeros_(net.last.bias)
        _begin_at(self.start_net.last, start)
        pair = [check_number("weights", w, above=True) for w in weights]
        self.raw_weights = nn.Parameter(unweighted(torch.tensor([pair] * iterations)))

    @property
    def weights(self) -> Tensor:
        """``(iterations, 2)``: m and l."""
        return weighted(self.raw_weights)

    def forward(self, k: Tensor, physics: LinearOperator, times: Tensor) -> Iterates:
        """As of :class:`PINQI`."""
        right, spread = self._begin(k, physics, times)
        p = self.began(k, physics)
        found = Iterates([p])

        def images(p: Tensor) -> Tensor:
            # Ten steps of up to b may lead to rates whose exponential overflows, and from near zero on they do.
            bounded = torch.cat((p[:, :1].clamp(*self.bounds), p[:, 1:]), dim=1)
            return torch.view_as_real(self.signal(bounded, spread))

        for step, prior in self.weights:
            y, pulled_back = torch.func.vjp(images, p)[:2]
            misfit = physics.gram(torch.view_as_complex(y)) - right
            (slope,) = pulled_back(torch.view_as_real(misfit))
            correction = torch.cat((self.rate_net(p[:, :1]), self.factor_net(p[:, 1:])), dim=1)
            p = p - self.bound * torch.tanh(step * (slope + prior * correction) / self.bound)
            found.parameters.append(p)
        return found

    def began(self, k: Tensor, physics: LinearOperator) -> Tensor:
        """The first parameters."""
        found: Tensor = self.start_net(as_channels(self.first(k, physics)))
        return found

    @classmethod
    def _configured(cls, config: dict[str, Any]) -> dict[str, Any]:
        return options_of(config, counts=("iterations", "width", "layers"), numbers={"bounds": 2})


def _begin_at(layer: nn.Conv2d | nn.ConvTranspose2d, start: tuple[float, ...]) -> None:
    """With a bias that says so."""
    assert layer.bias is not None
    if not layer.bias.is_meta:
        with torch.no_grad():
            layer.bias.copy_(torch.tensor(numbers_of(start, len(layer.bias))))


NETWORKS: dict[str, type[MapNetwork]] = {kind.network: kind for kind in (PINQI, UnrolledMaps, DeepT1, MANTIS, DOPAMINE)}


def load(name_or_path: Any) -> MapNetwork:
    """PINQI or a rival from a file, or from weights that ship, by what its header says; DataError where it is none."""
    path = find_weights(name_or_path)
    header = read_header(path)
    kind = NETWORKS.get(str(header.config.get("network")), PINQI)
    return kind.load(path)
