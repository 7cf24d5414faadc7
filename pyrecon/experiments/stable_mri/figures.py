"""The landscape of a prior's energy along a Langevin trajectory, as Figure 1 of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrecon import plotting
from pyrecon._check import check_count, check_number, check_shape
from pyrecon._errors import DataError
from pyrecon.experiments.study import Drawing
from pyrecon.models.generative import GenerativePrior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyrecon.experiments.stable_mri.study import StableMRIStudy

__all__ = ["Landscape", "figure_1", "landscape", "landscape_figure", "trajectory"]

_MARGIN = 0.15  # of the plane beyond the trajectory, in shares of its extent
_BATCH = 64


@dataclass(frozen=True)
class Landscape:
    """A plane through a trajectory's images.

    Attributes
    ----------
    density
        ``(N, N)``: ``exp(-(R - min R) / T)`` at ``mean + rows[i] v1 + columns[j] v2``.
    temperature
        That T.
    rows, columns
        ``(N,)``: coordinates along the first and the second principal component.
    path
        ``(K, 2)``: the trajectory's.
    images
        ``(K, n, n)``: the trajectory itself.
    components
        ``(2, n, n)``, orthonormal.
    mean
        ``(n, n)``.
    """

    density: Tensor
    temperature: float
    rows: Tensor
    columns: Tensor
    path: Tensor
    images: Tensor
    components: Tensor
    mean: Tensor


def trajectory(prior: GenerativePrior, *, steps: int = 1000, every: int = 10, seed: int = 0) -> Tensor:
    """Every ``every``-th state of one chain of Langevin steps from noise, the start among them ``(K, n, n)``."""
    check_count("steps", steps)
    check_count("every", every, 1, steps)
    chain = prior.sample(1, iterations=0, seed=seed)
    states = [chain.x[0]]
    for _ in range(steps // every):
        chain = prior.sample(chain, iterations=every)
        states.append(chain.x[0])
    return torch.stack(states)


def landscape(
    prior: GenerativePrior, images: Tensor, *, points: int = 41, temperature: float | None = None
) -> Landscape:
    """The energy on the plane of a trajectory's first two principal components.

    They are those of its images less its last one; the plane goes through the mean of all but the first.

    Parameters
    ----------
    images
        ``(K, n, n)`` with K from 3 on and n the prior's size, as :func:`trajectory` gives them.
    points
        N, of the plane along both axes.
    temperature
        T; by default a fifth of the energy's range on the plane, at which the landscape is seen. It is far above the
        one that samples are drawn at, where a mode is one bright point.
    """
    check_shape("images", images, (None, prior.size, prior.size), "(K, size, size)")
    check_count("points", points, 2, 1001)
    if len(images) < 3:
        raise ValueError(f"images: {len(images)} of a trajectory, expected at least 3")
    flat = images.detach().double().flatten(1)
    away = flat[:-1] - flat[-1]
    mean = flat[-1] + away[1:].mean(0)
    _, vectors = torch.linalg.eigh(away @ away.mT)  # K x K: a trajectory has fewer images than they have pixels
    components, _ = torch.linalg.qr((vectors[:, [-1, -2]].mT @ away).mT)
    path = (flat - mean) @ components
    low, high = path.amin(0), path.amax(0)
    margin = (_MARGIN * (high - low)).clamp(min=1e-3)
    axes = [torch.linspace(float(a), float(b), points) for a, b in zip(low - margin, high + margin, strict=True)]
    energies = []
    where = torch.cartesian_prod(*axes)
    for some in where.split(_BATCH):
        plane = (mean + some.double().to(mean.device) @ components.mT).to(images.dtype)
        with torch.no_grad():
            energies.append(prior.energy(plane.view(-1, *images.shape[1:])))
    energy = torch.cat(energies).double().cpu()
    energy = energy - energy.min()
    if temperature is None:
        temperature = max(float(energy.max()) / 5, 1e-30)
    check_number("temperature", temperature, above=True)
    shape = images.shape[1:]
    return Landscape(
        (-energy / temperature).exp().view(points, points), temperature, axes[0], axes[1], path.cpu(), images,
        components.mT.reshape(2, *shape), mean.view(shape),
    )  # fmt: skip


def landscape_figure(found: Landscape, *, states: int = 4) -> Figure:
    """The surface with the trajectory on it in gold, and some of its images, the first and the last among them."""
    check_count("states", states, 2)
    figure: Figure = plotting._matplotlib().figure.Figure(figsize=(7.6, 4.6), dpi=150, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[3, 1])  # type: ignore[misc]
    axes = left.add_subplot(projection="3d", computed_zorder=False)
    x, y = np.meshgrid(found.rows.numpy(), found.columns.numpy(), indexing="ij")
    axes.plot_surface(x, y, found.density.numpy(), cmap="viridis", linewidth=0, rstride=1, cstride=1)
    height = _heights(found)
    axes.plot(*found.path.numpy().T, height + 0.02, color="gold", linewidth=1.5, zorder=9)
    axes.set(xlabel="first component", ylabel="second component", zlabel=f"exp(-R / {found.temperature:.2g})")
    chosen = np.linspace(0, len(found.images) - 1, states).round().astype(int)
    axes.scatter(*found.path.numpy()[chosen].T, height[chosen] + 0.02, color="gold", s=14, zorder=10)
    for axis, i in zip(np.atleast_1d(right.subplots(states, 1)), chosen, strict=True):
        axis.imshow(found.images[i].cpu().numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"state {i}", fontsize=7)
        axis.set_axis_off()
    return figure


def figure_1(study: StableMRIStudy) -> Drawing:
    """Of a chain of Langevin steps from noise by the study's prior."""
    prior = study.energy
    if prior is None:
        raise DataError("figure 1: no prior is there; give one with --prior, or train it: pyrecon train generative")
    steps = 1000 if study.scale == "quick" else 10_000
    found = landscape(prior, trajectory(prior, steps=steps, every=10, seed=study.seed))
    rows = [["state", "first component", "second component"]]
    rows += [[str(10 * i), f"{a:.6g}", f"{b:.6g}"] for i, (a, b) in enumerate(found.path.tolist())]
    caption = (
        f"exp(-R / {found.temperature:.2g}) on the plane of the first two principal components of a chain of {steps} "
        "Langevin steps from permuted pixels, and some of its states. The published T, 7, is of another scale of R."
    )
    return Drawing(landscape_figure(found), rows, caption)


def _heights(found: Landscape) -> NDArray[np.float64]:
    """The surface below the trajectory, by linear interpolation ``(K,)``."""
    from scipy.interpolate import RegularGridInterpolator

    surface = RegularGridInterpolator((found.rows.numpy(), found.columns.numpy()), found.density.numpy())
    return np.asarray(surface(found.path.numpy().astype(np.float32)), np.float64)
