"""Frames in, images out: one factorisation, then batches or an endless stream, with a report."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyrecon._check import (
    FLOATING,
    check_count,
    check_dtype,
    check_flag,
    check_number,
    check_shape,
    check_size,
    described,
)
from pyrecon._errors import DataError
from pyrecon._threads import one_thread_if_small
from pyrecon.data.mpi import MatrixError, MPIFrames, MPISystem
from pyrecon.models.method import Progress, check_method, silent
from pyrecon.models.mpi.admm import L1ADMM, TVADMM, HybADMM
from pyrecon.models.mpi.deq import DEQ, EndToEnd, Unrolled
from pyrecon.models.mpi.dip import DeepImagePrior
from pyrecon.models.mpi.linear import ART, PRECISION, Tikhonov
from pyrecon.models.mpi.method import MPIMethod
from pyrecon.models.mpi.pnp import PnP
from pyrecon.models.mpi.system import SIGNAL_RMS, FactoredSystem
from pyrecon.report import Recorder, Report
from pyrecon.solvers import Solution, Status

METHODS: dict[str, type[MPIMethod]] = {
    "l1": L1ADMM,
    "tv": TVADMM,
    "hyb": HybADMM,
    "art": ART,
    "tikhonov": Tikhonov,
}
# Those that need trained weights, and one that trains a network on every frame, for minutes.
LEARNED: dict[str, type[MPIMethod]] = {"deq-mpi": DEQ, "pp-mpi": PnP, "unrolled": Unrolled, "end-to-end": EndToEnd}
UNTRAINED: dict[str, type[MPIMethod]] = {"dip": DeepImagePrior}

_PASSES = 2  # images in which the matrix's noise is looked at
_DOMINANT = 1.5  # the noise of the matrix over that of the data that calls for advice
_MISMATCH = 0.15  # share of the signal outside the range of the matrix that calls for a warning


class Reconstructor:
    """Reconstructs frames with one system matrix and one method.

    >>> system = prepare_system(calibration, scan)
    >>> reconstruct = Reconstructor(system, HybADMM())
    >>> images, report = reconstruct(prepare_frames(system, scan))

    Parameters
    ----------
    system
        What :func:`pyrecon.data.mpi.prepare_system` gives, or a real matrix ``(M, N)`` with ``shape``.
    method
        An instance of :class:`L1ADMM`, :class:`TVADMM`, :class:`HybADMM`, :class:`ART`, :class:`Tikhonov`;
        :class:`DEQ`, :class:`PnP`, :class:`Unrolled`, :class:`EndToEnd`; or :class:`DeepImagePrior`.
    shape
        Shape of an image, for a bare matrix.
    normalise
        State the problem in the scale that the methods' settings are meant for: the matrix is scaled to a mean row
        energy of 0.34, every frame to a root mean square signal of 0.41, and the image scaled back. So settings carry
        over between scanners, tracers and doses. False solves the problem in the numbers as given.
    model_error
        Count what the system matrix gets wrong as noise, for an image that explains its errors too is worse: what the
        noise of its calibration does to a frame's signal (:attr:`MPISystem.error`, of an image found in a first pass),
        and what the data hold beyond noise that no image explains. False trusts the noise given, as does a method that
        needs no factorisation (:class:`ART`).
    batch
        Frames that :meth:`stream` collects before it reconstructs them together.
    warm_start
        Start from the image (and duals) of the last frame before. Saves iterations where images change slowly and the
        method runs to a tolerance; with a fixed number of iterations the result follows the data more closely.
    device
        Where to compute; default where the matrix is.
    """

    def __init__(
        self,
        system: MPISystem | Tensor,
        method: MPIMethod,
        *,
        shape: tuple[int, ...] | None = None,
        normalise: bool = True,
        model_error: bool = True,
        batch: int = 64,
        warm_start: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.method = check_method(method, MPIMethod, "HybADMM()")
        source = system if isinstance(system, MPISystem) else None
        spacing, rank, noisy = None, None, False
        if source is not None:
            matrix, shape, spacing = source.matrix, source.grid.shape, source.grid.spacing
            rank, noisy = source.rank, source.noisy
        elif not isinstance(system, Tensor):
            raise TypeError(f"system: expected an MPISystem or a real matrix, got {described(system)}")
        elif shape is None:
            raise ValueError("shape: give the shape of an image along with a bare matrix")
        else:
            matrix = system
        if matrix.is_complex():
            raise TypeError("system: is complex; stack its parts with SystemMatrix.stacked(matrix).matrix")
        check_dtype("system", matrix, FLOATING)
        shape = check_size("shape", shape)
        if not method.volumes and sum(n > 1 for n in shape) > 2:
            others = ", ".join(name for name, kind in METHODS.items() if kind.volumes)
            raise DataError(
                f"{method.name}: is for images of two axes, the system matrix has a grid of "
                f"{' x '.join(map(str, shape))}; for volumes there are {others}"
            )
        check_shape("system", matrix, (None, math.prod(shape)), "(M, N) with N the size of an image")
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError("system: holds NaN or infinite values")
        for name, flag in (("normalise", normalise), ("model_error", model_error), ("warm_start", warm_start)):
            check_flag(name, flag)
        batch = check_count("batch", batch)
        matrix = matrix.to(device)
        if normalise:
            self.system, self._gain = FactoredSystem.normalised(matrix, shape, spacing, rank, noisy)
        else:
            self.system, self._gain = FactoredSystem(matrix, shape, spacing, rank, noisy), 1.0
        self._error = None if source is None else source.error
        start = time.perf_counter()
        # One that has to load and check something does so once, here.
        self._solver = method.prepare(self.system, source)
        self.normalise, self.model_error = normalise, model_error
        self.batch, self.warm_start = batch, warm_start
        self._mismatch, self._iterations, self._advised = False, 0, False
        self._energies = torch.zeros(2, dtype=torch.float64)  # of the noise of data and matrix, over all rows so far
        if method.factors:
            self.system.factorise()
        self._setup = time.perf_counter() - start
        self._run = self._recorder()

    @property
    def report(self) -> Report:
        """Report of the latest call, or of the latest stream so far."""
        return self._run.report()

    def __call__(
        self,
        frames: MPIFrames | Tensor,
        *,
        noise_std: Tensor | float | None = None,
        progress: Callable[[float, int], None] = lambda done, total: None,
    ) -> tuple[Tensor, Report]:
        """Reconstruct a set of frames, ``batch`` at a time.

        Parameters
        ----------
        frames
            What :func:`pyrecon.data.mpi.prepare_frames` gives, or data ``(B, M)``.
        noise_std
            Standard deviation of the noise in every element, a number or ``(B,)``. Default what the frames know, else
            what the part of the data says that no image explains.
        progress
            Called with how many frames are done (of those at work, a share) and how many there are.

        Returns
        -------
        tuple[Tensor, Report]
            Images ``(B, *shape)`` and the account of this call.
        """
        if noise_std is None and isinstance(frames, MPIFrames):
            noise_std = frames.noise_std
        y = self._data(frames.y if isinstance(frames, MPIFrames) else frames)
        std = None if noise_std is None else _noise(noise_std, y)
        self._run = self._recorder()
        if isinstance(frames, MPIFrames):
            with self._run:
                for note in frames.notes:
                    warnings.warn(note, stacklevel=2)
        images = [y.new_zeros((0, *self.system.shape))]
        for first in range(0, len(y), self.batch):
            part = slice(first, min(first + self.batch, len(y)))

            def share(done: float, part: slice = part) -> None:
                progress(part.start + done * (part.stop - part.start), len(y))

            image, _ = self._reconstruct(y[part], None if std is None else std[part], None, share)
            images.append(image)
            progress(part.stop, len(y))
        return torch.cat(images), self._run.report()

    def stream(self, frames: Iterable[Tensor], *, noise_std: float | None = None) -> Iterator[Tensor]:
        """Reconstruct frames as they come, each ``(M,)``, and yield an image ``(*shape)`` for each one, in order.

        Frames are collected until there are ``batch`` of them (``batch=1`` for the shortest delay). ``report`` tells
        the frame rate at any time; waiting for frames does not count.
        """
        self._run = self._recorder()
        state = None
        remaining = iter(frames)
        while waiting := list(itertools.islice(remaining, self.batch)):
            y = self._data(torch.stack(waiting))
            std = None if noise_std is None else y.new_full((len(y),), noise_std)
            images, state = self._reconstruct(y, std, state if self.warm_start else None)
            yield from images

    def _data(self, y: Tensor) -> Tensor:
        """``(B, M)`` real numbers as the matrix has them; TypeError or ValueError for what is none."""
        if not isinstance(y, Tensor):
            advice = ": torch.from_numpy(data)" if type(y).__module__ == "numpy" else ""
            raise TypeError(f"frames: expected MPIFrames or a tensor (B, M), got {described(y)}{advice}")
        if y.is_complex():
            raise TypeError("frames: are complex, the matrix is real; stack their parts with SystemMatrix.stack(data)")
        check_dtype("frames", y, FLOATING)
        check_shape("frames", y, (None, self.system.matrix.shape[0]), "(B, M)")
        return y

    def _reconstruct(
        self, y: Tensor, noise_std: Tensor | None, state: Any, progress: Progress = silent
    ) -> tuple[Tensor, Any]:
        """Images of one batch, and the state to start the next one from."""
        system, first = self.system, self._run.report().samples
        with self._run, one_thread_if_small(y.numel()):
            y = y.to(system.matrix)
            system.check_data(y)
            scaled = y * self._gain
            # Kaczmarz with known noise needs no factors, which are dear for a large matrix.
            coordinates = system.coordinates(scaled) if self.method.factors or noise_std is None else None
            expected = self._noise(scaled, coordinates, noise_std, first)
            noise, wrong = expected, torch.zeros_like(expected)
            if coordinates is not None and self.model_error:
                noise, wrong = with_model_error(system, coordinates, expected, self._error, self._gain)
            scale = (
                _signal_scale(scaled, coordinates, noise, scaled.shape[1]) if self.normalise else torch.ones_like(noise)
            )
            solution, state = self._solver.solve(
                system,
                scaled / scale[:, None],
                noise / scale,
                coordinates=None if coordinates is None else coordinates / scale[:, None],
                start=state if state is None else self._solver.carry(state[0], state[1], len(y)),
                progress=progress,
            )
            images = solution.value * scale[:, None]
            residual = system.residual(images, scaled) / self._gain
            _warn_of_status(self.method, solution, y, first)
            self._tell_noise(expected, wrong)
        self._run.add(solution, residual=residual, noise_level=expected / self._gain)
        self._iterations += int(solution.iterations.sum())
        report = self._run.report()
        report.details["iterations_per_image"] = self._iterations / max(report.samples, 1)
        last = torch.nonzero(solution.status != Status.NONFINITE)[-1:, 0]  # the state of the last that came out well
        return images.view(-1, *system.shape), (state, last) if state is not None and len(last) else None

    def _noise(self, y: Tensor, coordinates: Tensor | None, std: Tensor | None, first: int) -> Tensor:
        """``(B,)`` norm of the noise in scaled data: as given, else as estimated."""
        if std is None:
            assert coordinates is not None
            return self.system.noise_std(coordinates) * math.sqrt(y.shape[1])
        if bool((std < 0).any()):
            raise ValueError(f"noise_std: {float(std.min()):g} is negative")
        noise = std.to(y) * (self._gain * math.sqrt(y.shape[1]))
        if coordinates is not None and not self._mismatch:
            self._mismatch = _warn_of_mismatch(coordinates, noise, torch.linalg.vector_norm(y, dim=1), first)
        return noise

    def _tell_noise(self, data: Tensor, matrix: Tensor) -> None:
        """How strong the noise of a row of data is, so far, and what the matrix's makes of the signal beside it."""
        energies = self._energies
        energies += torch.stack([part[torch.isfinite(part)].double().square().sum() for part in (data, matrix)]).cpu()
        if self._error is None or not self.model_error or not self.method.factors:
            return
        report = self._run.report()
        frames = report.samples + len(data)
        stds = (energies / max(frames * len(self.system.matrix), 1)).sqrt() / self._gain
        report.details |= {"data_noise": float(stds[0]), "matrix_noise": float(stds[1])}
        if stds[1] > _DOMINANT * stds[0] > 0 and not self._advised:
            self._advised = True
            ratio = float(stds[1] / stds[0])
            warnings.warn(
                f"system matrix: the noise of its calibration weighs {ratio:.1f} times as much in these images as the "
                f"data's own; a calibration with {ratio**2:.0f} times the averages, empty frames too, would even them",
                stacklevel=5,
            )

    def _recorder(self) -> Recorder:
        self._mismatch, self._iterations, self._advised = False, 0, False
        self._energies = torch.zeros(2, dtype=torch.float64)
        rows, voxels = self.system.matrix.shape
        details: dict[str, Any] = {"matrix": f"{rows} x {voxels}", "setup_seconds": self._setup}
        if self._error is not None and self._error.rank is not None:
            details["matrix"] += f", {self._error.removed_db:.1f} dB of its noise taken out, rank {self._error.rank}"
        return Recorder(self.method.name, self.method, device=self.system.matrix.device, details=details)


def _noise(std: Any, y: Tensor) -> Tensor:
    """``(B,)`` of the data's type: a number, or one for each frame."""
    if not isinstance(std, Tensor):
        std = torch.full((len(y),), check_number("noise_std", std, -math.inf), dtype=y.dtype, device=y.device)
    check_dtype("noise_std", std, FLOATING)
    if std.dim() > 0:
        check_shape("noise_std", std, (len(y),), "(B,) or a number")
    per_frame: Tensor = std.to(y).expand(len(y))
    return per_frame


def with_model_error(
    system: FactoredSystem, coordinates: Tensor, noise: Tensor, error: MatrixError | None, gain: float = 1.0
) -> tuple[Tensor, Tensor]:
    """``(B,)`` norms of all that is no signal, and of what the noise of the matrix adds to it; its ``gain`` came after
    the error was known.

    An image is needed for that, but hardly a good one: least squares with a penalty, in which the noise found before
    counts.
    """
    rows = len(system.matrix)
    least, wrong = noise, torch.zeros_like(noise)
    if system.spare_rows > 0:
        least = torch.maximum(noise, system.noise_std(coordinates) * math.sqrt(rows))
    total = least
    for _ in range(_PASSES if error is not None else 0):
        scale = _signal_scale(coordinates, coordinates, total, rows)
        weight = PRECISION / rows * (total / scale).square()
        images = system.tikhonov(coordinates / scale[:, None], weight[None])[0].clamp_(min=0) * scale[:, None]
        assert error is not None
        wrong = error.variance(images).mul(rows).sqrt() * gain
        total = torch.maximum(least, torch.hypot(noise, wrong))
    return total, wrong


def _signal_scale(y: Tensor, coordinates: Tensor | None, noise: Tensor, rows: int) -> Tensor:
    """``(B,)`` by which to divide frames so that their signal, less the noise, has the standard strength."""
    if coordinates is None:
        signal = y.square().sum(dim=1) - noise.square()
    else:  # in the range of the matrix, where signal is
        inside = coordinates[:, :-1]
        signal = inside.square().sum(dim=1) - noise.square() * (inside.shape[1] / rows)
    # A frame of nothing but noise must not be blown up: at least a tenth of the noise is taken for signal.
    signal = torch.maximum(signal, 0.01 * noise.square())
    scale = torch.sqrt(signal / rows) / SIGNAL_RMS
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _warn_of_mismatch(coordinates: Tensor, noise: Tensor, size: Tensor, first: int) -> bool:
    """Whether a frame of this batch does not fit the matrix, with a warning for the first one."""
    outside = coordinates[:, -1]
    signal = torch.sqrt((size.square() - noise.square()).clamp(min=0))
    frames = torch.nonzero((outside > 2 * noise) & (outside > _MISMATCH * signal))[:, 0]
    if len(frames) == 0:
        return False
    i = int(frames[0])
    warnings.warn(
        f"data: no image explains {float(outside[i] / signal[i]):.0%} of the signal in frame {first + i}, "
        f"{float(outside[i] / noise[i]):.1f} times the noise: the system matrix does not fit (another session or "
        "scanner setting, a drifted background) or the noise is underestimated; later frames are not listed",
        stacklevel=5,
    )
    return True


def _warn_of_status(method: MPIMethod, solution: Solution[Tensor], y: Tensor, first: int) -> None:
    for what, frames in (
        ("NaN or infinite values", solution.status == Status.NONFINITE),
        ("nothing but zeros", ~y.any(dim=1)),
    ):
        numbers = (torch.nonzero(frames)[:, 0] + first).tolist()
        if numbers:
            listed = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
            warnings.warn(f"data: {what} in frames {listed}", stacklevel=4)
    if method.tol > 0:
        solution.warn_unless_converged(method.name, "Allow more iterations or a larger tol.")
