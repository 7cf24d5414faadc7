"""The account that comes with every reconstruction: what was run, how well it explains the data, what it cost."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrecon import __version__, _core
from pyrecon._plain import plain
from pyrecon.solvers import Solution


@dataclass
class Report:
    """What was run and how it went.

    Attributes
    ----------
    method
        The method's name, e.g. ``"Hyb-ADMM"`` or ``"CG-SENSE"``.
    parameters
        Every parameter the method ran with.
    samples, counted
        How many images were reconstructed, or voxels fitted: of what ``counted`` says.
    status
        How many samples ended how: status name to count (:class:`pyrecon.solvers.Status`).
    residual
        Per sample ``|A x - y|_2`` in the units of the (whitened) data.
    noise_level
        Per sample the ``|noise|_2`` expected in those data, or empty if unknown. A residual far above it means a model
        that does not fit (wrong system matrix, data outside what it was made for), one far below it fitted noise.
    warnings
        Text of every warning raised on the way.
    seconds, peak_memory
        Wall time, and the largest resident memory of the process meanwhile in bytes (on a GPU: allocated there).
    details
        Facts about this run that fit nowhere else: sizes, iterations, sources.
    versions
        Software that ran, the instruction set and the device.
    """

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    samples: int = 0
    status: dict[str, int] = field(default_factory=dict)
    residual: list[float] = field(default_factory=list)
    noise_level: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    counted: str = "images"

    @property
    def samples_per_second(self) -> float:
        """Images (or voxels) per second of wall time; 0 before anything ran."""
        return self.samples / self.seconds if self.seconds > 0 else 0.0

    @property
    def residual_over_noise(self) -> list[float]:
        """Per sample, residual divided by the expected noise: about 1 when the data are explained and no more."""
        return [r / n if n > 0 else math.inf for r, n in zip(self.residual, self.noise_level, strict=False)]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON; numbers that are not finite become None."""
        content = asdict(self)
        content["samples_per_second"] = self.samples_per_second
        content["residual_over_noise"] = self.residual_over_noise
        return plain(content)  # type: ignore[no-any-return]

    def to_json(self, *, indent: int | None = 2) -> str:
        """The same as a JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in plain(self.parameters).items())
        ended = ", ".join(f"{count} {name}" for name, count in self.status.items())
        lines = [
            f"method       {self.method}" + (f" ({given})" if given else ""),
            f"{self.counted:<12} {self.samples}" + (f": {ended}" if ended else ""),
            f"time         {self.seconds:.3g} s, {self.samples_per_second:.3g} {self.counted}/s",
            f"peak memory  {self.peak_memory / 2**20:.0f} MiB",
        ]
        if self.residual_over_noise:
            ratio = np.asarray(self.residual_over_noise)
            lines.append(f"residual     {np.median(ratio):.3g} x noise (median; largest {ratio.max():.3g})")
        elif self.residual:
            lines.append(f"residual     {np.median(self.residual):.3g} (median; noise level unknown)")
        lines += [f"{name:<12} {value}" for name, value in plain(self.details).items()]
        lines += [f"warning      {text}" for text in self.warnings]
        return "\n".join(lines)


class Recorder:
    """Collects a :class:`Report` while a method runs; enter it once, or once per chunk of a stream.

    >>> run = Recorder("CG-SENSE", {"iterations": 20})
    >>> with run:
    ...     solution = solve()
    >>> run.add(solution, residual=residual, noise_level=noise)
    >>> report = run.report()

    Warnings raised inside are noted and issued again on leaving, so they also reach the caller.
    """

    _entered: list[Recorder] = []  # noqa: RUF012  # the outer ones must see the peak before an inner one resets it

    def __init__(
        self,
        method: str,
        parameters: Any = (),
        *,
        device: torch.device | str = "cpu",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        values = asdict(parameters) if is_dataclass(parameters) else dict(parameters)  # type: ignore[arg-type]
        self._report = Report(method, values, details=dict(details or {}))
        self._device = torch.device(device)
        self._report.versions = versions(self._device)

    def __enter__(self) -> Recorder:
        for outer in self._entered:
            outer._note_peak()
        self._entered.append(self)
        _reset_peak_memory(self._device)
        self._catch = warnings.catch_warnings(record=True)
        self._caught = self._catch.__enter__()
        warnings.simplefilter("always")
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._report.seconds += time.perf_counter() - self._start
        self._catch.__exit__(kind, error, trace)
        self._note_peak()
        self._entered.remove(self)
        for outer in self._entered:
            outer._note_peak()
        for caught in self._caught:
            if issubclass(caught.category, DeprecationWarning | PendingDeprecationWarning):
                continue  # is for those who write programs
            text = str(caught.message)
            if text not in self._report.warnings:
                self._report.warnings.append(text)
            if error is None:
                warnings.warn_explicit(caught.message, caught.category, caught.filename, caught.lineno)

    def add(
        self,
        solution: Solution[Any] | None = None,
        *,
        samples: int | None = None,
        residual: Tensor | None = None,
        noise_level: Tensor | float | None = None,
    ) -> None:
        """Enter a batch: its solution (for status and count) and, if known, its residuals and noise level ``(B,)``."""
        count = samples if samples is not None else 0
        if solution is not None:
            count = solution.status.numel()
            for name, number in solution.counts().items():
                self._report.status[name] = self._report.status.get(name, 0) + number
        self._report.samples += count
        if residual is not None:
            self._report.residual += residual.detach().double().reshape(-1).tolist()
        if isinstance(noise_level, Tensor):
            self._report.noise_level += noise_level.detach().double().reshape(-1).tolist()
        elif noise_level is not None:
            self._report.noise_level += [float(noise_level)] * count

    def report(self) -> Report:
        """The report so far."""
        return self._report

    def _note_peak(self) -> None:
        self._report.peak_memory = max(self._report.peak_memory, _peak_memory(self._device))


def versions(device: torch.device | str = "cpu") -> dict[str, str]:
    """Versions of what computes, the instruction set of the CPU kernels, and the device."""
    device = torch.device(device)
    return {
        "pyrecon": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "isa": _core.isa(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        with open("/proc/self/clear_refs", "w") as handle:
            handle.write("5")  # Linux: the high-water mark starts again from the current size
    except OSError:
        pass  # elsewhere the peak is that of the process's whole life


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/status") as handle:
            for line in handle:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
