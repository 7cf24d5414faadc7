"""Frames in, images out: one factorisation, then batches or an endless stream, with a report."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from pyrecon._threads import one_thread_if_small
from pyrecon.data.mpi import MPIFrames, MPISystem
from pyrecon.models.mpi.admm import L1ADMM, TVADMM, ADMMState, HybADMM
from pyrecon.models.mpi.deq import DEQ, EndToEnd, Unrolled
from pyrecon.models.mpi.dip import DeepImagePrior
from pyrecon.models.mpi.linear import ART, Tikhonov
from pyrecon.models.mpi.pnp import PnP
from pyrecon.models.mpi.system import ROW_ENERGY, SIGNAL_RMS, FactoredSystem
from pyrecon.report import Recorder, Report
from pyrecon.solvers import Solution, Status

METHODS: dict[str, type[Any]] = {
    "l1": L1ADMM,
    "tv": TVADMM,
    "hyb": HybADMM,
    "art": ART,
    "tikhonov": Tikhonov,
}
# Those that need trained weights, and one that trains a network on every frame, for minutes.
LEARNED: dict[str, type[Any]] = {"deq-mpi": DEQ, "pp-mpi": PnP, "unrolled": Unrolled, "end-to-end": EndToEnd}
UNTRAINED: dict[str, type[Any]] = {"dip": DeepImagePrior}

_MISMATCH = 0.15  # share of the signal outside the range of the matrix that calls for a warning


class Method(Protocol):
    """What a reconstruction method offers: a name, its settings as dataclass fields, and ``solve``."""

    name: ClassVar[str]
    factors: ClassVar[bool]  # whether it needs the factorisation

    def solve(
        self, system: FactoredSystem, y: Tensor, noise: Tensor, *, coordinates: Tensor | None = None, start: Any = None
    ) -> tuple[Solution[Tensor], Any]: ...


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
        Where the data hold more that no image explains than noise was measured, count that as noise: a system matrix is
        itself a noisy measurement, and an image that explains its errors too is worse. False trusts the noise given, as
        does a method that needs no factorisation (:class:`ART`).
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
        method: Method,
        *,
        shape: tuple[int, ...] | None = None,
        normalise: bool = True,
        model_error: bool = True,
        batch: int = 64,
        warm_start: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(system, MPISystem):
            matrix, shape = system.matrix, system.grid.shape
        elif shape is None:
            raise ValueError("shape: give the shape of an image along with a bare matrix")
        else:
            matrix = system
        if batch < 1:
            raise ValueError(f"batch: {batch}, expected at least one frame")
        matrix = matrix.to(device)
        self._gain = 1.0
        if normalise:
            energy = float(matrix.double().square().sum()) / matrix.shape[0]
            self._gain = math.sqrt(ROW_ENERGY / energy) if energy > 0 else 1.0
        self.system = FactoredSystem(matrix * self._gain, tuple(shape))
        self.method = method
        # One that has to load and check something does so once, here.
        prepare = getattr(method, "prepared", None)
        self._solver = method if prepare is None else prepare(system, self.system)
        self.normalise, self.model_error = normalise, model_error
        self.batch, self.warm_start = batch, warm_start
        self._mismatch, self._iterations = False, 0
        start = time.perf_counter()
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
        y = frames.y if isinstance(frames, MPIFrames) else frames
        if noise_std is None and isinstance(frames, MPIFrames):
            noise_std = frames.noise_std
        std = None if noise_std is None else torch.as_tensor(noise_std, dtype=y.dtype).expand(len(y))
        self._run = self._recorder()
        images = [y.new_zeros((0, *self.system.shape))]
        for first in range(0, len(y), self.batch):
            part = slice(first, min(first + self.batch, len(y)))
            if hasattr(self._solver, "report"):  # a method that takes minutes says where it is
                self._solver.report = lambda share, part=part: progress(
                    part.start + share * (part.stop - part.start), len(y)
                )
            image, _ = self._reconstruct(y[part], None if std is None else std[part], None)
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
            y = torch.stack(waiting)
            std = None if noise_std is None else y.new_full((len(y),), noise_std)
            images, state = self._reconstruct(y, std, state if self.warm_start else None)
            yield from images

    def _reconstruct(self, y: Tensor, noise_std: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Images of one batch, and the state to start the next one from."""
        system, first = self.system, self._run.report().samples
        with self._run, one_thread_if_small(y.numel()):
            y = y.to(system.matrix)
            system.check_data(y)
            scaled = y * self._gain
            # Kaczmarz with known noise needs no factors, which are dear for a large matrix.
            coordinates = system.coordinates(scaled) if self.method.factors or noise_std is None else None
            expected = self._noise(scaled, coordinates, noise_std, first)
            noise = expected
            if coordinates is not None and self.model_error and system.spare_rows > 0:
                noise = torch.maximum(expected, system.noise_norm(coordinates))
            scale = _signal_scale(scaled, noise) if self.normalise else torch.ones_like(noise)
            solution, state = self._solver.solve(
                system,
                scaled / scale[:, None],
                noise / scale,
                coordinates=None if coordinates is None else coordinates / scale[:, None],
                start=_repeat_last(state, len(y)),
            )
            images = solution.value * scale[:, None]
            residual = system.residual(images, scaled) / self._gain
            _warn_of_status(self.method, solution, y, first)
        self._run.add(solution, residual=residual, noise_level=expected / self._gain)
        self._iterations += int(solution.iterations.sum())
        report = self._run.report()
        report.details["iterations_per_image"] = self._iterations / max(report.samples, 1)
        return images.view(-1, *system.shape), _usable(state, solution)

    def _noise(self, y: Tensor, coordinates: Tensor | None, std: Tensor | None, first: int) -> Tensor:
        """``(B,)`` norm of the noise in scaled data: as given, else as estimated."""
        if std is None:
            assert coordinates is not None
            return self.system.noise_norm(coordinates)
        if bool((std < 0).any()):
            raise ValueError(f"noise_std: {float(std.min()):g} is negative")
        noise = std.to(y) * (self._gain * math.sqrt(y.shape[1]))
        if coordinates is not None and not self._mismatch:
            self._mismatch = _warn_of_mismatch(coordinates, noise, torch.linalg.vector_norm(y, dim=1), first)
        return noise

    def _recorder(self) -> Recorder:
        self._mismatch, self._iterations = False, 0
        rows, voxels = self.system.matrix.shape
        details = {"matrix": f"{rows} x {voxels}", "setup_seconds": self._setup}
        return Recorder(self.method.name, self.method, device=self.system.matrix.device, details=details)


def _signal_scale(y: Tensor, noise: Tensor) -> Tensor:
    """``(B,)`` by which to divide frames so that their signal, less the noise, has the standard strength."""
    power = y.square().sum(dim=1)
    # A frame of nothing but noise must not be blown up: at least a tenth of the noise is taken for signal.
    signal = torch.maximum(power - noise.square(), 0.01 * noise.square())
    scale = torch.sqrt(signal / y.shape[1]) / SIGNAL_RMS
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


def _warn_of_status(method: Method, solution: Solution[Tensor], y: Tensor, first: int) -> None:
    for what, frames in (
        ("NaN or infinite values", solution.status == Status.NONFINITE),
        ("nothing but zeros", ~y.any(dim=1)),
    ):
        numbers = (torch.nonzero(frames)[:, 0] + first).tolist()
        if numbers:
            listed = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
            warnings.warn(f"data: {what} in frames {listed}", stacklevel=4)
    if getattr(method, "tol", 0) > 0:
        solution.warn_unless_converged(method.name, "Allow more iterations or a larger tol.")


def _repeat_last(state: Any, count: int) -> Any:
    """A state with one sample, for a batch of ``count``."""
    if isinstance(state, ADMMState):
        return ADMMState(state.x.repeat(count, 1), state.duals.repeat(1, count, 1), state.data_dual.repeat(count, 1))
    return state.repeat(count, 1) if isinstance(state, Tensor) else None


def _usable(state: Any, solution: Solution[Tensor]) -> Any:
    """The state of the last sample that is all numbers."""
    finite = torch.nonzero(solution.status != Status.NONFINITE)[:, 0]
    if len(finite) == 0:
        return None
    last = finite[-1:]
    if isinstance(state, ADMMState):
        return ADMMState(state.x[last], state.duals[:, last], state.data_dual[last])
    return state[last] if isinstance(state, Tensor) else None
