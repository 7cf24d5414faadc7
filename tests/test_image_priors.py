"""Priors of real images: gradients, curvature, and the crop with its adjoint."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrecon.solvers import CenterCrop, Charbonnier


def test_charbonnier_gradient_and_curvature() -> None:
    generator = torch.Generator().manual_seed(0)
    u, d = (torch.randn(2, 7, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    prior = Charbonnier(0.1)
    leaf = u.clone().requires_grad_()
    energy, gradient = prior.energy_and_gradient(u)
    rows, cols = (torch.zeros_like(u) for _ in range(2))
    rows[:, :-1], cols[:, :, :-1] = u[:, 1:] - u[:, :-1], u[:, :, 1:] - u[:, :, :-1]
    torch.testing.assert_close(energy, (rows**2 + cols**2 + 0.01).sqrt().flatten(1).sum(1))
    assert torch.equal(prior.energy(u), energy)
    torch.testing.assert_close(torch.autograd.grad(prior.energy(leaf).sum(), leaf)[0], gradient)
    for size in (1e-3, 0.1, 10.0):
        rise = prior.energy(u + size * d) - energy - (gradient * size * d).flatten(1).sum(1)
        bound = prior.curvature(u, size * d) / 2
        assert bool((rise <= bound + 1e-12).all())
    flat = torch.ones_like(u)  # where nothing is bent yet it is the second derivative
    rise = prior.energy(flat + 1e-3 * d) - prior.energy(flat)
    torch.testing.assert_close(rise, prior.curvature(flat, 1e-3 * d) / 2, rtol=1e-3, atol=0)


def test_center_crop_is_the_adjoint_of_padding() -> None:
    class Square:
        def energy_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
            assert u.shape[1:] == (4, 7)
            return u.square().flatten(1).sum(1) / 2, u

    prior = CenterCrop(Square(), (4, 7))
    assert not hasattr(prior, "curvature")
    u = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    energy, gradient = prior.energy_and_gradient(u)
    wanted = torch.zeros_like(u)
    wanted[:, 2:6] = u[:, 2:6]  # rows about 9 // 2; columns padded
    assert torch.equal(gradient, wanted)
    torch.testing.assert_close(energy, wanted.square().flatten(1).sum(1) / 2)
    assert torch.equal(prior.energy(u), energy)
    assert hasattr(CenterCrop(Charbonnier(), (4, 4)), "curvature")


@pytest.mark.parametrize("epsilon", [1e-20, 1e20])
def test_an_epsilon_whose_square_is_no_number_is_refused(epsilon: float) -> None:
    flat = torch.ones(1, 3, 4)
    for call in (Charbonnier(epsilon).energy_and_gradient, Charbonnier(epsilon).energy):
        with pytest.raises(ValueError, match=r"epsilon: .* does not fit torch\.float32, expected 1\.1e-19 to 1\.8e"):
            call(flat)
    with pytest.raises(ValueError, match=r"epsilon: .* does not fit torch\.float32"):
        Charbonnier(epsilon).curvature(flat, flat)
    assert Charbonnier(epsilon).energy_and_gradient(flat.double())[1].isfinite().all()
