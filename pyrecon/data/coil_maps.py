"""Coil sensitivity maps from a fully sampled centre of k-space: ESPIRiT, and Walsh's adaptive combination.

Both end in the same question, asked at every pixel: the dominant eigenvector of a C x C matrix. In ESPIRiT that matrix
projects onto what the coils' local k-space correlations allow, in Walsh's method it is the local covariance of the coil
images. Maps are normalised to a root sum of squares of 1; their phase, which the data leave open, is that which makes
the principal combination of the coils real and positive, so it is smooth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrecon._check import COMPLEX, check_dtype, check_shape
from pyrecon._errors import DataError
from pyrecon._threads import one_thread_if_small, shared_out
from pyrecon.data.fourier import centered_slice, ifft_centered

# Of C x C matrices handled at a time. On the CPU as many as its second-level cache holds, a third faster for 8 coils.
_CHUNK_BYTES = {"cpu": 2**21, "cuda": 2**26}


def espirit_maps(
    calibration: Tensor,
    shape: tuple[int, int],
    *,
    noise_std: float,
    kernel: int | tuple[int, int] = 6,
    threshold: float = 0.01,
    crop: float = 0.8,
) -> tuple[Tensor, Tensor]:
    """ESPIRiT (Uecker et al., Magn Reson Med 71:990, 2014), one set of maps.

    Patches of kernel x kernel samples across the coils lie near a subspace V, found from the calibration data. That
    k-space agrees with V wherever a patch is taken, averaged over the patches that hold a sample, becomes at pixel q
    ``G(q) s(q) = s(q)`` with the C x C matrix::

        G(q) = 1 / kernel^2 sum_d h(d) exp(2 pi i d.q / n),   h_cc'(d) = sum_{p - p' = d} P[(c, p), (c', p')]

    where P is the projector onto V. Wherever there is signal G has the eigenvalue 1, and its eigenvector is the map.

    Parameters
    ----------
    calibration
        ``(B, C, h, w)`` complex64 or complex128: the centre of k-space, DC at index n // 2.
    shape
        ``(H, W)`` of the maps.
    noise_std
        ``sqrt(E|n|^2)`` of a sample: 1 after :func:`~pyrecon.data.mri.prewhiten`, 0 for data without noise. It keeps
        noise out of V: singular values below those of pure noise, ``noise_std (sqrt(rows) + sqrt(columns))`` of the
        calibration matrix, are dropped.
    kernel
        Side of a patch, or its height and width.
    threshold
        Singular values below ``threshold`` times the largest are dropped too.
    crop
        Maps are zero where the eigenvalue is below it: outside the object, and where one map cannot explain the data.

    Returns
    -------
    maps, eigenvalues
        ``(B, C, H, W)`` and ``(B, H, W)``, the largest eigenvalue of G, between 0 and 1. Both are zero for a sample
        whose signal does not rise above the noise.

    Notes
    -----
    Any device. Beyond the maps it takes (C kernel^2)^2 numbers and bounded workspace. The sums over kernels are done on
    their correlations h, (2 kernel - 1)^2 C^2 numbers, not on images of every kernel.
    """
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    _check(calibration, shape, least=sides, name="kernel")
    if not (min(sides) >= 1 and 0 < threshold < 1 and 0 <= crop <= 1 and noise_std >= 0):
        raise ValueError(
            f"kernel, threshold, crop, noise_std: {kernel}, {threshold}, {crop}, {noise_std} out of range, "
            "expected >= 1, in (0, 1), in [0, 1] and >= 0"
        )
    coils = calibration.shape[1]
    maps = calibration.new_empty(len(calibration), coils, *shape)
    eigenvalues = calibration.real.new_empty(len(calibration), *shape)
    for b, sample in enumerate(calibration):
        h = _correlations(sample, sides, threshold, noise_std)
        y, x = (_fourier_rows(side, n, sample) for side, n in zip(sides, shape, strict=True))
        along_x = torch.einsum("cCde,xe->cCdx", h, x)

        def matrices(rows: slice, along_x: Tensor = along_x, y: Tensor = y) -> Tensor:
            return torch.einsum("yd,cCdx->yxcC", y[rows], along_x)

        maps[b], eigenvalues[b] = _maps_from(matrices, _principal_coil(sample), shape, crop)
        maps[b] *= eigenvalues[b] >= crop
    return maps, eigenvalues


def walsh_maps(calibration: Tensor, shape: tuple[int, int], *, window: int = 7) -> Tensor:
    """Adaptive combination (Walsh et al., Magn Reson Med 43:682, 2000).

    The dominant eigenvector of the coils' covariance over ``window`` x ``window`` pixels of the low-resolution image
    that the calibration data give (Hann-weighted against ringing). Parameters and result as in :func:`espirit_maps`;
    maps are not cropped: outside the object they point anywhere.
    """
    _check(calibration, shape, least=(1, 1), name="window")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: {window}, expected an odd number of pixels")
    maps = calibration.new_empty(*calibration.shape[:2], *shape)
    for b, sample in enumerate(calibration):
        coils, height, width = sample.shape
        padded = sample.new_zeros(coils, *shape)
        taper = (
            torch.hann_window(n + 2, periodic=False, device=sample.device)[1:-1].to(sample.dtype)
            for n in (height, width)
        )
        ty, tx = taper
        padded[:, centered_slice(shape[0], height), centered_slice(shape[1], width)] = ty[:, None] * tx * sample
        half = window // 2
        image = F.pad(ifft_centered(padded), (half, half, half, half))

        def matrices(rows: slice, image: Tensor = image) -> Tensor:
            part = image[:, rows.start : rows.stop + window - 1]
            products = torch.view_as_real(part[:, None] * part[None].conj()).permute(0, 1, 4, 2, 3)
            mean = F.avg_pool2d(products.flatten(0, 2)[None], window, stride=1)[0].unflatten(0, products.shape[:3])
            return torch.view_as_complex(mean.permute(3, 4, 0, 1, 2).contiguous())

        maps[b], _ = _maps_from(matrices, _principal_coil(sample), shape, 0.0)
    return maps


def in_phase(maps: Tensor, calibration: Tensor) -> Tensor:
    """``maps`` ``(B, C, H, W)`` with the phase that makes one combination of the coils real and positive in all of
    them: the principal one of ``calibration`` ``(B, C, h, w)`` as a whole."""
    along = torch.einsum("c,bcyx->byx", _principal_coil(calibration.transpose(0, 1)).conj(), maps)
    return maps * torch.where(along == 0, 1.0, along.conj() / along.abs())[:, None]


def _check(calibration: Tensor, shape: tuple[int, int], *, least: tuple[int, int], name: str) -> None:
    check_dtype("calibration", calibration, COMPLEX)
    check_shape("calibration", calibration, (None, None, None, None), "(B, C, h, w)")
    height, width = calibration.shape[2:]
    if height > shape[0] or width > shape[1]:
        raise ValueError(f"calibration: shape {tuple(calibration.shape)} exceeds the maps' shape {shape}")
    if height < least[0] or width < least[1]:
        raise DataError(
            f"calibration: {height} x {width} samples are fewer than the {name} of {least[0]} x {least[1]}; acquire "
            "more autocalibration lines, or give coil maps"
        )


def _correlations(sample: Tensor, kernel: tuple[int, int], threshold: float, noise_std: float) -> Tensor:
    """h of the formula, ``(C, C, 2 height - 1, 2 width - 1)``, divided by the samples of the kernel."""
    coils = sample.shape[0]
    height, width = kernel
    with one_thread_if_small(coils**2 * (height * width) ** 2 // 2):  # of each of the many steps of eigh
        return _correlated(sample, kernel, threshold, noise_std)


def _correlated(sample: Tensor, kernel: tuple[int, int], threshold: float, noise_std: float) -> Tensor:
    coils = sample.shape[0]
    height, width = kernel
    patches = sample.unfold(1, height, 1).unfold(2, width, 1).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    # Eigenvectors of the Gram matrix: its condition is squared, but threshold^2 is far above the precision.
    energy, vectors = torch.linalg.eigh(patches.mT @ patches.conj())
    # Pure noise of unit variance has singular values up to sqrt(rows) + sqrt(columns) (Marchenko and Pastur), Hankel
    # structure or not: measured within 2 %. The quarter above it costs nothing and is safe.
    edge = 1.25 * noise_std * (patches.shape[0] ** 0.5 + patches.shape[1] ** 0.5)
    span = vectors[:, energy > max(threshold**2 * float(energy[-1]), edge**2)]
    projector = (span @ span.mH).view(coils, height, width, coils, height, width)
    h = sample.new_zeros(coils, coils, 2 * height - 1, 2 * width - 1)
    for i in range(height):  # p' = (i, j): lags from -p' to (height, width) - 1 - p'
        for j in range(width):
            rows, columns = slice(height - 1 - i, 2 * height - 1 - i), slice(width - 1 - j, 2 * width - 1 - j)
            h[:, :, rows, columns] += projector[:, :, :, :, i, j].permute(0, 3, 1, 2)
    return h / (height * width)


def _fourier_rows(side: int, n: int, like: Tensor) -> Tensor:
    """``exp(2 pi i lag q / n)`` for the pixels q of a centred axis, ``(n, 2 side - 1)``."""
    lags = torch.arange(1 - side, side, device=like.device)
    q = torch.arange(n, device=like.device, dtype=torch.float64) - n // 2
    angle = 2 * torch.pi * torch.outer(q, lags.double()) / n
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype)


def _principal_coil(sample: Tensor) -> Tensor:
    """The combination of coils with most energy, ``(C,)``."""
    flat = sample.flatten(1)
    vectors: Tensor = torch.linalg.eigh(flat @ flat.mH)[1]
    return vectors[:, -1]


def _maps_from(
    matrices: Callable[[slice], Tensor], principal: Tensor, shape: tuple[int, int], crop: float
) -> tuple[Tensor, Tensor]:
    """Dominant eigenvectors ``(C, H, W)`` and eigenvalues ``(H, W)``; ``matrices(rows)`` gives ``(rows, W, C, C)``."""
    coils = len(principal)
    maps = principal.new_empty(coils, *shape)
    eigenvalues = principal.real.new_empty(shape)
    chunk = _CHUNK_BYTES.get(principal.device.type, _CHUNK_BYTES["cuda"])
    step = max(1, chunk // (shape[1] * coils * coils * principal.element_size()))

    def find(rows: slice) -> None:
        vectors, values = _dominant(matrices(rows), crop)
        along = torch.einsum("c,yxc->yx", principal.conj(), vectors)
        vectors *= torch.where(along == 0, 1.0, along.conj() / along.abs())[..., None]
        maps[:, rows], eigenvalues[rows] = vectors.permute(2, 0, 1), values

    parts = [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
    if principal.device.type == "cpu" and not principal.requires_grad:
        shared_out(find, parts)
    else:
        for rows in parts:
            find(rows)
    return maps, eigenvalues


def _dominant(matrices: Tensor, crop: float) -> tuple[Tensor, Tensor]:
    """Dominant eigenvectors ``(..., C)``, of norm 1, and eigenvalues ``(...)`` of Hermitian semidefinite matrices.

    Squared until rank one is left: the matrices to the power of 16, then, where an eigenvalue that counts (not below
    ``crop``) leaves a residual, of 64, 256, ... A batched eigh takes twice (15 coils) to ten times (32) as long.
    """
    coils = matrices.shape[-1]
    flat = matrices.reshape(-1, coils, coils)
    vectors = flat.new_zeros(len(flat), coils)
    values = flat.real.new_zeros(len(flat))
    tolerance = 0.3 * torch.finfo(flat.dtype).eps ** 0.5
    left, power = torch.arange(len(flat), device=flat.device), _squared(_squared(flat))
    for _ in range(6):
        power = _squared(_squared(power))
        strongest = power.diagonal(dim1=-2, dim2=-1).real.argmax(dim=-1)
        vector = power.gather(2, strongest[:, None, None].expand(-1, coils, 1))
        vector = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
        image = flat[left] @ vector
        value = (vector.conj() * image).real.sum(dim=(1, 2))
        residual = torch.linalg.vector_norm(image - value[:, None, None] * vector, dim=(1, 2))
        vectors[left], values[left] = vector[..., 0], value
        more = (residual > tolerance * value) & (value + residual >= crop)
        if not bool(more.any()):
            break
        left, power = left[more], power[more]
    return vectors.view(matrices.shape[:-1]), values.view(matrices.shape[:-2])


def _squared(power: Tensor) -> Tensor:
    """``power^2`` of matrices ``(n, C, C)``, each divided by its norm first: of one that is nothing but rounding the
    trace may be negative, or zero with numbers beside it."""
    # As real numbers: torch's norm of complex ones takes 50 times as long as the product.
    parts = torch.view_as_real(power) if power.is_complex() else power
    size = torch.linalg.vector_norm(parts.flatten(1), dim=1).clamp_min(torch.finfo(power.dtype).tiny)
    power = power / size[:, None, None]
    return power @ power
