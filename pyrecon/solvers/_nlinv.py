"""Joint estimation of an image and its coil maps by the iteratively regularised Gauss-Newton method (NLINV).

The coil images are ``rho S_c``, with the maps ``S_c = F^H w C_c`` of coefficients C that a weight makes smooth,
``w(m) = (1 + s |m / 256|^2)^(-l/2)``, m in cycles per field of view. With G the sampling of all coils and
``x = (rho, C)``, a step goes from x to the minimiser of::

    |G(x) + G'(x) (x' - x) - k|^2 + alpha_n |x' - x_0|^2      alpha_n = alpha reduction^n,  x_0 = (1, 0)

so what regularises is the weight alpha_n, how small it becomes and when the steps end. The linear problem is solved by
conjugate gradients on ``G'^H G' + alpha_n``, each application one ``F^H M^2 F`` of the coil images and two transforms
of them. F here has no shifts: they would multiply C by phases, which neither the norm of C nor w sees.

Source: Uecker, Hohage, Block and Frahm, Image reconstruction by regularized nonlinear inversion - joint estimation of
coil sensitivities and image content, Magn Reson Med 60:674 (2008).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrecon._check import COMPLEX, REAL_OF, check_count, check_dtype, check_number
from pyrecon._fft import transformed
from pyrecon._solution import Solution, Status
from pyrecon.solvers._batch import like, norm, per_sample
from pyrecon.solvers._coils import Coils, CoilTransform, coil_transform
from pyrecon.solvers._conjugate_gradient import _iterate

# Data are scaled to this root mean square of the zero-filled coil images, where rho = 1 is a first guess of an image:
# the norm of 100 that is usual for 256 x 256 pixels.
_SCALE = 100 / 256
_ADVICE = "MAX_ITER: raise steps, or tol if the noise is larger. NONFINITE: the data hold NaN or Inf."


def nlinv(
    kspace: Tensor,
    mask: Tensor | CoilTransform,
    *,
    steps: int = 8,
    tol: float | Tensor = 0.0,
    alpha: float = 1.0,
    reduction: float = 0.5,
    smoothness: float = 220.0,
    order: float = 32.0,
    rtol: float = 0.1,
    max_iter: int = 100,
) -> Solution[tuple[Tensor, Tensor]]:
    """Complex image and coil maps of undersampled k-space, without calibration data.

    Parameters
    ----------
    kspace
        ``(B, C, H, W)``, complex64 or complex128, on any device, DC in the centre; what ``mask`` takes where that is no
        tensor. Its scale does not matter.
    mask
        As in :func:`ipalm`: ``(B | 1, 1, H | 1, W | 1)``, bool or real, or a :class:`CoilTransform`.
    steps
        Gauss-Newton steps at most. The last weight, ``alpha reduction^(steps - 1)``, decides between noise and folded
        edges where ``tol`` does not end the steps before.
    tol
        A sample ends with the first step that leaves ``|F^H M (k - M F rho S)| <= tol``, a number or ``(B,)``. Noise of
        standard deviation s in n complex samples leaves ``s sqrt(n)`` of the true image, and of a good one somewhat
        less. 0: all steps are made.
    alpha, reduction
        Of the weights; both above 0, ``reduction`` 1 at most.
    smoothness, order
        s and l of the maps' weight: 220 and 32 as published, there for frequencies in cycles per pixel. Here 220 is
        that of 256 pixels for images of any size, since maps are as smooth as the coils are far away: with it in cycles
        per pixel an image of 48 x 40 pixels was 5 to 9 dB worse, one of 128 x 128 up to 1.
    rtol, max_iter
        Of the conjugate gradients in a step, relative to its right-hand side. With 0.01 in place of 0.1 images differ
        by less than 0.3 dB, at half as many iterations again.

    Returns
    -------
    Solution
        ``value`` is the image ``(B, H, W)``, ``rho |S|``, complex and on the scale of a root sum of squares of the coil
        images; and the maps ``(B, C, H, W)``, ``S / |S|``. ``iterations`` are Gauss-Newton steps, ``residual`` is what
        ``tol`` is compared with. Of a sample without any signal the image is zero. No gradient flows through.

    Warns
    -----
    ConvergenceWarning
        With ``tol`` above 0, where a sample's last step did not reach it.
    UserWarning
        For samplings from which maps and image cannot be told apart, as :func:`ipalm` has it.

    Notes
    -----
    The discrete transform makes maps periodic: at opposite edges of the field of view they are alike.
    """
    check_dtype("kspace", kspace, COMPLEX)
    check_count("steps", steps)
    check_count("max_iter", max_iter)
    for name, value in (("alpha", alpha), ("reduction", reduction), ("smoothness", smoothness), ("order", order)):
        check_number(name, value, above=True)
    if reduction > 1:
        raise ValueError(f"reduction: {reduction}, expected a number above 0, 1 at most")
    check_number("rtol", rtol)
    with torch.no_grad():
        physics, data = coil_transform(kspace.detach(), mask)
        limit = per_sample("tol", tol, "kspace", data)
        smooth = _Maps(data, smoothness, order)
        solution = _gauss_newton(physics, data, smooth, limit, alpha, reduction, steps, rtol, max_iter)
    asked = bool((limit > 0).any()) or bool((solution.status == Status.NONFINITE).any())
    return solution.warn_unless_converged("nlinv", _ADVICE) if asked else solution


class _Maps:
    """``F^H w`` from coefficients of the low frequencies ``(B, C, h, w)`` to maps, and its adjoint.

    What w leaves less than eps of is left out: of 640 x 368 pixels in single precision 99 % of the coefficients, and
    with them almost half of the transforms.
    """

    def __init__(self, data: Tensor, smoothness: float, order: float) -> None:
        real = REAL_OF[data.dtype]
        squares = [torch.fft.fftfreq(n, 256 / n, dtype=real, device=data.device).square() for n in data.shape[2:]]
        kept = [(1 + smoothness * k).pow(-order / 2) >= torch.finfo(real).eps for k in squares]
        # As many from zero up as from below it; all in their order, zero first.
        self.sizes = tuple(data.shape[2:])
        self.above = [int(at[: (len(at) + 1) // 2].sum()) for at in kept]
        self.below = [int(at[(len(at) + 1) // 2 :].sum()) for at in kept]
        rows, cols = (k[at] for k, at in zip(squares, kept, strict=True))
        self.weight = (1 + smoothness * (rows[:, None] + cols)).pow(-order / 2)
        self.shape = (data.shape[1], len(rows), len(cols))

    def __call__(self, coefficients: Tensor) -> Tensor:
        columns = transformed(torch.fft.ifft, self._spread(self.weight * coefficients, 0), dim=-2, norm="ortho")
        return transformed(torch.fft.ifft, self._spread(columns, 1), dim=-1, norm="ortho")

    def adjoint(self, maps: Tensor) -> Tensor:
        columns = self._gathered(transformed(torch.fft.fft, maps, dim=-1, norm="ortho"), 1)
        found = self._gathered(transformed(torch.fft.fft, columns, dim=-2, norm="ortho"), 0)
        return found.mul_(self.weight)

    def _spread(self, x: Tensor, axis: int) -> Tensor:
        above, below, size, dim = self.above[axis], self.below[axis], self.sizes[axis], axis - 2
        if above + below == size:
            return x
        shape = list(x.shape)
        shape[dim] = size - above - below
        ends = x.split((above, below), dim=dim)
        return torch.cat((ends[0], x.new_zeros(()).expand(shape), ends[1]), dim=dim)

    def _gathered(self, x: Tensor, axis: int) -> Tensor:
        above, below, size, dim = self.above[axis], self.below[axis], self.sizes[axis], axis - 2
        if above + below == size:
            return x
        return torch.cat((x.narrow(dim, 0, above), x.narrow(dim, size - below, below)), dim=dim)


class _Linearised:
    """``G'^H G' + alpha`` and what surrounds it, at a point x: rho and C of a sample in one row."""

    def __init__(self, physics: Coils, smooth: _Maps, x: Tensor) -> None:
        self.physics, self.smooth = physics, smooth
        self.rho, coefficients = self._parts(x)
        self.maps = smooth(coefficients)

    def coils(self) -> Tensor:
        """``rho S``."""
        return self.rho * self.maps

    def gram(self, coils: Tensor) -> Tensor:
        """``F^H M^2 F``."""
        return self.physics.gram(coils, torch.empty_like(coils))

    def forward(self, x: Tensor) -> Tensor:
        """Coil images of a direction."""
        rho, coefficients = self._parts(x)
        return (rho * self.maps).addcmul_(self.rho, self.smooth(coefficients))

    def adjoint(self, coils: Tensor) -> Tensor:
        rho = torch.linalg.vecdot(self.maps, coils, dim=1)
        return torch.cat((rho.flatten(1), self.smooth.adjoint(self.rho.conj() * coils).flatten(1)), dim=1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, cols = self.smooth.sizes
        rho, coefficients = x.split((rows * cols, math.prod(self.smooth.shape)), dim=1)
        return rho.unflatten(1, (1, rows, cols)), coefficients.unflatten(1, self.smooth.shape)


def _gauss_newton(
    physics: Coils,
    data: Tensor,
    smooth: _Maps,
    limit: Tensor,
    alpha: float,
    reduction: float,
    steps: int,
    rtol: float,
    max_iter: int,
) -> Solution[tuple[Tensor, Tensor]]:
    batch, _, rows, cols = data.shape
    size = norm(data)
    silent = size == 0
    scale = torch.where(silent, 1.0, _SCALE * math.sqrt(rows * cols) / size)  # a double per sample
    status = torch.full((batch,), Status.MAX_ITER, dtype=torch.int8, device=data.device)
    status = torch.where(size.isfinite(), status, int(Status.NONFINITE)).to(torch.int8)
    status = torch.where(silent, int(Status.CONVERGED), status).to(torch.int8)
    iterations = torch.zeros(batch, dtype=torch.int32, device=data.device)
    residual = size.to(limit.dtype)
    scaled = data * like(scale, data)
    start = data.new_zeros(batch, rows * cols + math.prod(smooth.shape))
    start[:, : rows * cols] = 1
    values = start.clone()
    places = (status == Status.MAX_ITER).nonzero().flatten()
    for n in range(steps):
        if len(places) == 0:
            break
        whole = len(places) == batch
        of = physics if whole else physics.of(places)
        x, known = (values, scaled) if whole else (values[places], scaled[places])
        at, weight_n = _Linearised(of, smooth, x), alpha * reduction**n
        right = at.adjoint(known - at.gram(at.coils())) + weight_n * (start[places] - x)

        def normal(d: Tensor, at: _Linearised = at, weight_n: float = weight_n) -> Tensor:
            return at.adjoint(at.gram(at.forward(d))).add_(d, alpha=weight_n)

        moved = x + _iterate(normal, right, None, rtol * norm(right), max_iter).value
        after = _Linearised(of, smooth, moved)
        left = norm(known - after.gram(after.coils())) / scale[places]
        finite = left.isfinite()
        values[places] = torch.where(like(finite, x), moved, x)
        iterations[places] += finite.to(torch.int32)
        residual[places] = left.to(residual.dtype)
        now = torch.where(left <= limit[places], int(Status.CONVERGED), int(Status.MAX_ITER))
        status[places] = torch.where(finite, now, int(Status.NONFINITE)).to(torch.int8)
        places = (status == Status.MAX_ITER).nonzero().flatten()
    end = _Linearised(physics, smooth, values)
    total = torch.linalg.vector_norm(end.maps, dim=1)
    image = end.rho[:, 0] * total / like(scale, end.rho[:, 0])
    image = torch.where(like(silent, image), 0, image)
    equal = total.new_full((), data.shape[1] ** -0.5)
    maps = torch.where(total[:, None] > 0, end.maps / total[:, None], equal)
    return Solution((image, maps), status, iterations, residual)
