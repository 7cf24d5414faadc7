"""Wrong uses of the public functions, made by hypothesis: run by test_misuse.py in a process of its own.

A function is drawn from a table, with arguments that work, of which one to three are replaced: by another dtype, shape,
layout or device, freed or shared memory, foreign types, numbers that mean nothing, callables that return nonsense. The
call may give a result, or raise an error that names an argument. Anything else is a fault, and so is a signal.

``python tests/misuse.py EXAMPLES LOG [SEED [NAME]]`` writes each case to LOG before it is run, so that the last line
tells what ended the process.
"""

from __future__ import annotations

import inspect
import re
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from misuse_values import BATCH as B
from misuse_values import TENSORS, Boom, misuses
from torch import Tensor

import pyrecon
from pyrecon import implicit, linops, ops, solvers
from pyrecon.models import DEQMPI, mpi
from pyrecon.models.mpi import system as mpi_system

SECONDS = 20  # for one case; SIGALRM then ends the process, whatever it is in


@dataclass(frozen=True)
class Target:
    """A call, and for every argument a maker of a value that works."""

    call: Callable[..., Any]
    arguments: dict[str, Callable[[], Any]]
    names: tuple[str, ...] = ()  # further words that an error may name


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def value(fixed: Any) -> Callable[[], Any]:
    return lambda: fixed


def map_(function: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: function


C = torch.complex64
M, N, H, W = 6, 4, 2, 2


# --- the table -----------------------------------------------------------------------------------------------------
def contract(x: Any, *_: Any) -> Any:
    return tuple(0.5 * part + 1 for part in x) if isinstance(x, tuple) else 0.5 * x + 1


def positive(x: Tensor) -> Tensor:
    """Its own adjoint, without negative entries."""
    return 2 * x + x.sum(dim=-1, keepdim=True)


def cg_matrix(x: Tensor) -> Tensor:
    return 2 * x


IMAGE = {"image": randn(B, 4, 4, dtype=C), "maps": randn(1, 2, 4, 4, dtype=C), "mask": randn(1, 1, 1, 4)}
KSPACE = {"kspace": randn(B, 2, 4, 4, dtype=C), "maps": randn(1, 2, 4, 4, dtype=C), "mask": randn(1, 1, 1, 4)}
KACZMARZ = {
    "A": randn(M, N), "y": randn(B, M), "x0": randn(B, N), "dual": randn(B, M), "weight": value(0.1),
    "sweeps": value(2), "nonneg": value(False), "order": lambda: torch.tensor([0, 2, 5]), "seed": value(None),
}  # fmt: skip
BEAM = {
    "angles": lambda: torch.tensor([0.1, 1.0, 2.2]), "shape": value((4, 4)), "n_det": value(7),
    "det_spacing": value(1.0), "det_offset": value(0.2), "pixel_size": value(1.0), "unit": value(None),
}  # fmt: skip
FAN = BEAM | {"source_to_axis": value(9.0), "source_to_detector": value(12.0), "curved": value(True)}
VIEWS = {
    "detectors": lambda: torch.tensor([[0.0, 9.0]]), "axes": lambda: torch.tensor([[1.0, 0.0]]), "shape": value((4, 4)),
    "n_det": value(7), "pixel_size": value(1.0), "sources": lambda: torch.tensor([[0.0, -9.0]]), "curved": value(False),
}  # fmt: skip
LEARNED = {
    "v": randn(B, M), "y": randn(B, M), "radius": value(0.3), "weights": randn(354), "points": value(9),
    "places": lambda: torch.tensor([0, 3, 7]), "width": value(8), "layers": value(3), "kernel": value(3),
    "released": value(False), "out": lambda: torch.empty(B, M),
}  # fmt: skip
TV = {
    "x": randn(B, 4, 3), "weight": value(0.1), "dual": randn(B, 2, 4, 3), "iterations": value(6), "tol": value(0.1),
    "isotropic": value(True), "nonneg": value(False),
}  # fmt: skip
STEP = {
    "x": randn(B, 5), "grad": randn(B, 5), "step": value(0.1), "noise_std": value(0.1), "seed": value(1),
    "counter": value(2), "offset": value(0), "nonneg": value(False),
}  # fmt: skip
FIXED = {
    "f": map_(contract), "x0": randn(B, N), "args": lambda: (torch.ones(B, 2),), "solver": solvers.Anderson,
    "tol": value(1e-3), "max_iter": value(9),
}  # fmt: skip


def pair_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same with a state of two tensors."""
    return lambda x0, **others: function(x0=(x0, torch.ones(B, 2, 2)), **others)


def layer(gradient: Any) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        value = implicit.fixed_point_layer(gradient=gradient(), **arguments)
        if value.requires_grad:
            value.abs().square().sum().backward()
        return value

    return call


def operator(make: Callable[..., linops.LinearOperator], shape: tuple[int, ...]) -> Callable[..., Any]:
    """Make the operator, apply it and its adjoint to ``x``."""

    def call(x: Any, **arguments: Any) -> Any:
        A = make(**arguments)
        y = A(x)
        return A.adjoint(y), A.gram(x), A.pinv(y, max_iter=2), repr(A), A.norm(max_iter=2)

    return call


def tiny_problem() -> mpi_system.Problem:
    return mpi_system.Problem(randn(M, N)(), (H, W))


def reconstruct(frames: Any, noise_std: Any, **arguments: Any) -> Any:
    return mpi.Reconstructor(**arguments)(frames, noise_std=noise_std)


def deq(problem: Any, y: Any, radius: Any, start: Any, iterations: Any) -> Any:
    return DEQMPI().reconstruct(problem, y, radius, start, iterations=iterations)


WEIGHTS = pyrecon.nn.RDN(2, 2, 1, 1).packed().detach()


def scan(kind: Callable[..., ops.Beam]) -> Callable[..., Any]:
    def call(image: Any, sino: Any, out: Any, views: Any, filter: Any, short_scan: Any, **a: Any) -> Any:
        geometry = kind(**a)
        part = geometry.subset(views)
        return (
            ops.radon(image, geometry, out=out), ops.radon_adjoint(sino, geometry),
            ops.fbp(sino, geometry, filter, short_scan=short_scan), linops.Radon(part)(image),
        )  # fmt: skip

    return call


def scanned(views: int) -> dict[str, Callable[[], Any]]:
    return {
        "image": randn(B, 4, 4), "sino": randn(B, views, 7), "out": lambda: torch.empty(B, views, 7),
        "views": value([0]), "filter": value("hann"), "short_scan": value(None),
    }  # fmt: skip


TARGETS: dict[str, Target] = {
    "ops.radon, parallel": Target(scan(ops.ParallelBeam), BEAM | scanned(3), ("geometry", "x", "detector")),
    "ops.radon, fan": Target(scan(ops.FanBeam), FAN | scanned(3), ("geometry", "x", "source", "detector")),
    "ops.radon, views": Target(scan(ops.ViewBeam), VIEWS | scanned(1), ("geometry", "x", "source", "detector")),
    "ops.project_l2_ball": Target(
        ops.project_l2_ball,
        {"v": randn(B, M), "center": randn(B, M), "radius": value(0.3), "out": lambda: torch.empty(B, M)},
    ),
    "ops.sm_consistency": Target(
        ops.sm_consistency,
        {"A": randn(M, N), "x": randn(B, N), "d": randn(B, M), "y": randn(B, M), "radius": randn(B), "Ax": randn(B, M)}
        | {"out": lambda: (torch.empty(B, M), torch.empty(B, N), torch.empty(B, M))},
    ),
    "ops.anderson_mix": Target(
        ops.anderson_mix,
        {"X": randn(B, 3, N), "G": randn(B, 3, N), "gram": randn(B, 3, 3), "count": lambda: torch.tensor([1, 2, 3])}
        | {"beta": value(1.0), "ridge": value(1e-4), "absolute_ridge": value(False), "out": lambda: torch.empty(B, N)},
    ),
    "ops.anderson_mix, one count": Target(
        ops.anderson_mix,
        {"X": randn(B, 3, N), "G": randn(B, 3, N), "gram": randn(B, 3, 3), "count": value(2), "ridge": value(1e-4)},
    ),
    "ops.sense_forward": Target(ops.sense_forward, IMAGE | {"out": lambda: torch.empty(B, 2, 4, 4, dtype=C)}),
    "ops.sense_adjoint": Target(ops.sense_adjoint, KSPACE | {"out": lambda: torch.empty(B, 4, 4, dtype=C)}),
    "ops.sense_normal": Target(ops.sense_normal, IMAGE | {"out": lambda: torch.empty(B, 4, 4, dtype=C)}),
    "ops.sense_maps_adjoint": Target(
        ops.sense_maps_adjoint, {"kspace": KSPACE["kspace"], "image": IMAGE["image"], "mask": IMAGE["mask"]}
    ),
    "ops.dst1": Target(ops.dst1, {"x": randn(B, 5, 3), "dims": value((-2, -1)), "out": lambda: torch.empty(B, 5, 3)}),
    "ops.dst1, one axis": Target(ops.dst1, {"x": randn(B, 5, 3), "dims": value(1)}),
    "ops.prox_smooth_maps": Target(
        ops.prox_smooth_maps,
        {"maps": randn(B, 5, 3, dtype=C), "weight": value(0.3), "dims": value((-2, -1))}
        | {"out": lambda: torch.empty(B, 5, 3, dtype=C)},
    ),
    "ops.joint_coils": Target(
        ops.joint_coils,
        {"image": randn(B, 4, 4), "maps": KSPACE["kspace"], "out": lambda: torch.empty(B, 2, 4, 4, dtype=C)},
    ),
    "ops.charbonnier": Target(
        ops.charbonnier,
        {"u": randn(B, 4, 4), "epsilon": value(0.1), "out": lambda: (torch.empty(B), torch.empty(B, 4, 4))},
    ),
    "ops.kaczmarz": Target(ops.kaczmarz, KACZMARZ | {"out": lambda: torch.empty(B, N)}),
    "ops.kaczmarz, dual": Target(
        lambda **a: ops.kaczmarz(return_dual=True, **a),
        KACZMARZ | {"out": lambda: (torch.empty(B, N), torch.empty(B, M))},
    ),
    "ops.kaczmarz_order": Target(ops.kaczmarz_order, {"A": randn(M, N), "sweeps": value(2), "seed": value(1)}),
    "ops.langevin_step": Target(ops.langevin_step, STEP | {"out": lambda: torch.empty(B, 5)}),
    "ops.langevin_step, moments": Target(
        ops.langevin_step, STEP | {"moments": lambda: ops.Moments.zeros_like(torch.ones(B, 5))}
    ),
    "ops.Moments": Target(
        lambda x, mean, m2, count: ops.Moments(mean, m2, count).update(x),
        {"x": randn(B, 5), "mean": randn(B, 5), "m2": randn(B, 5), "count": lambda: torch.tensor(3)},
    ),
    "ops.learned_consistency": Target(ops.learned_consistency, LEARNED),
    "ops.rdn": Target(
        ops.rdn,
        {"image": randn(B, 4, 3), "weights": WEIGHTS.clone, "features": value(2), "growth": value(2)}
        | {"blocks": value(1), "layers": value(1), "out": lambda: torch.empty(B, 4, 3)},
    ),
    "ops.soft_threshold": Target(
        ops.soft_threshold,
        {"x": randn(B, 5), "threshold": value(0.3), "nonneg": value(False), "out": lambda: torch.empty(B, 5)},
    ),
    "ops.tv_prox": Target(ops.tv_prox, TV | {"out": lambda: torch.empty(B, 4, 3)}),
    "ops.tv_prox, dual": Target(
        lambda **a: ops.tv_prox(return_dual=True, **a),
        TV | {"out": lambda: (torch.empty(B, 4, 3), torch.empty(B, 2, 4, 3))},
    ),
    "ops.tv_gap": Target(ops.tv_gap, {k: TV[k] for k in ("x", "weight", "dual", "isotropic", "nonneg")}),
    "solvers.fixed_point": Target(solvers.fixed_point, FIXED | {"check_every": value(1), "observe": map_(print)}),
    "solvers.fixed_point, Picard": Target(solvers.fixed_point, FIXED | {"solver": solvers.Picard}),
    "solvers.fixed_point, Broyden": Target(solvers.fixed_point, FIXED | {"solver": solvers.Broyden}),
    "solvers.fixed_point, two tensors": Target(pair_of(solvers.fixed_point), FIXED),
    "solvers.Anderson": Target(
        solvers.Anderson, {"memory": value(5), "beta": value(1.0), "ridge": value(0.1), "safeguard": value(0.0)}
    ),
    "solvers.Picard": Target(solvers.Picard, {"damping": value(1.0)}),
    "solvers.Broyden": Target(solvers.Broyden, {"memory": value(5)}),
    "solvers.conjugate_gradient": Target(
        solvers.conjugate_gradient,
        {"A": map_(cg_matrix), "b": randn(B, N), "x0": randn(B, N), "rtol": value(1e-3), "atol": value(0.0)}
        | {"max_iter": value(9), "preconditioner": map_(lambda x: 0.5 * x)},
    ),
    "solvers.cgls": Target(
        solvers.cgls,
        {"A": map_(positive), "A_adjoint": map_(positive), "y": randn(B, N), "x0": randn(B, N), "damping": value(0.1)}
        | {"atol": value(0.1), "rtol": value(1e-3), "max_iter": value(9)},
    ),
    "solvers.sirt": Target(
        solvers.sirt,
        {"A": map_(positive), "A_adjoint": map_(positive), "y": randn(B, N), "x0": randn(B, N), "nonneg": value(True)}
        | {"relaxation": value(1.5), "atol": value(0.1), "tol": value(1e-3), "max_iter": value(9)},
    ),
    "solvers.fista": Target(
        solvers.fista,
        {"gradient": map_(cg_matrix), "prox": map_(lambda v, step: v), "x0": randn(B, N), "step": value(0.4)}
        | {"max_iter": value(9), "tol": value(1e-3), "restart": value(True)},
    ),
    "solvers.primal_dual": Target(
        solvers.primal_dual,
        {"gradient": map_(cg_matrix), "prox": map_(lambda v, step: v), "K": map_(lambda x: 0.5 * x), "x0": randn(B, N)}
        | {"K_adjoint": map_(lambda u: 0.5 * u), "dual_prox": map_(lambda u, step: u), "step": value(0.2)}
        | {"dual_step": value(0.2), "max_iter": value(9), "tol": value(1e-3)},
    ),
    "solvers.ipalm": Target(
        solvers.ipalm,
        {k: KSPACE[k] for k in ("kspace", "mask")}
        | {"prior": solvers.Charbonnier, "lam": value(0.1), "mu": value(0.1), "continuation": value(2.0)}
        | {"decay": value(0.9), "retraction": value(True), "inertia": value(True), "jitter": value(0.0)}
        | {"seed": value(1), "max_iter": value(2), "tol": value(0.0), "maps": KSPACE["kspace"]}
        | {"start": lambda: (torch.ones(B, 4, 4), torch.ones(B, 2, 4, 4, dtype=C))},
    ),
    "solvers.nlinv": Target(
        solvers.nlinv,
        {k: KSPACE[k] for k in ("kspace", "mask")}
        | {"steps": value(2), "tol": value(0.0), "alpha": value(1.0), "reduction": value(0.5), "rtol": value(0.1)}
        | {"smoothness": value(220.0), "order": value(32.0), "max_iter": value(5)},
    ),
    "solvers.Charbonnier": Target(solvers.Charbonnier, {"epsilon": value(0.1)}),
    "solvers.Denoised": Target(
        lambda denoiser, u: solvers.Denoised(denoiser).energy_and_gradient(u),
        {"denoiser": map_(lambda u: 0.5 * u), "u": randn(B, 4, 4)},
    ),
    "solvers.CenterCrop": Target(
        solvers.CenterCrop, {"prior": solvers.Charbonnier, "shape": value((4, 4))}
    ),
    "solvers.langevin": Target(
        solvers.langevin,
        {"gradient": map_(cg_matrix), "x0": randn(B, N), "args": value(()), "step": value(0.1), "iterations": value(5)}
        | {"burn_in": value(1), "thinning": value(2), "noise_std": value(0.1), "nonneg": value(False), "seed": value(1)}
        | {"first_sample": value(0), "sampler": value(None), "batches": value(8), "draws": value(4)},
    ),
    "solvers.langevin, MALA": Target(
        solvers.langevin,
        {"gradient": map_(lambda x: ((x * x).reshape(len(x), -1).sum(1) / 2, x)), "x0": randn(B, N), "step": value(0.1)}
        | {"iterations": value(5), "burn_in": value(1), "sampler": value(solvers.MALA()), "seed": value(1)},
    ),
    "solvers.langevin, preconditioned": Target(
        lambda solve, perturb, **a: solvers.langevin(sampler=solvers.PreconditionedULA(solve, perturb), **a),
        {"gradient": map_(cg_matrix), "x0": randn(B, N), "step": value(0.1), "iterations": value(5)}
        | {"solve": map_(lambda v: 0.5 * v), "perturb": map_(lambda draw: draw(N))},
    ),
    "solvers.largest_curvature": Target(
        solvers.largest_curvature,
        {"gradient": map_(cg_matrix), "x": randn(B, N), "solve": map_(lambda v: 0.5 * v), "iterations": value(3)},
    ),
    "solvers.split_rhat": Target(solvers.split_rhat, {"draws": randn(B, 9, N)}),
    "solvers.effective_sample_size": Target(solvers.effective_sample_size, {"draws": randn(B, 9, N)}),
    **{
        f"implicit.{kind.__name__}": Target(layer(kind), FIXED)
        for kind in (
            implicit.ImplicitGradient, implicit.JacobianFree, implicit.PhantomGradient, implicit.Unrolled,
        )
    },
    "implicit.ImplicitGradient, two tensors": Target(
        pair_of(lambda **a: implicit.fixed_point_layer(**a)), FIXED
    ),
    "implicit.PhantomGradient()": Target(implicit.PhantomGradient, {"steps": value(2), "damping": value(0.5)}),
    "implicit.jacobian_penalty": Target(
        implicit.jacobian_penalty, {"f": map_(contract), "z": randn(B, N), "probes": value(2)}
    ),
    "implicit.contraction": Target(
        implicit.contraction, {"f": map_(contract), "z": randn(B, N), "steps": value(2), "seed": value(1)}
    ),
    "implicit.residual_curve": Target(
        implicit.residual_curve, {"f": map_(contract), "x0": randn(B, N), "args": value(()), "max_iter": value(4)}
    ),
    "linops.SystemMatrix": Target(operator(linops.SystemMatrix, (N,)), {"matrix": randn(M, N), "x": randn(B, N)}),
    "linops.Sense": Target(
        operator(linops.Sense, (4, 4)),
        {"maps": randn(1, 2, 4, 4, dtype=C), "mask": randn(1, 1, 1, 4), "x": randn(B, 4, 4, dtype=C)},
    ),
    "linops.SoftSense": Target(
        operator(linops.SoftSense, (2, 4, 4)),
        {"maps": randn(1, 2, 3, 4, 4, dtype=C), "mask": randn(1, 1, 1, 4), "x": randn(B, 2, 4, 4, dtype=C)},
    ),
    "linops.Sense3D": Target(
        operator(linops.Sense3D, (3, 4, 4)),
        {"maps": randn(1, 2, 3, 4, 4, dtype=C), "mask": randn(1, 1, 1, 4, 4), "x": randn(B, 3, 4, 4, dtype=C)},
    ),
    "linops.Fourier": Target(
        operator(linops.Fourier, (4, 4)),
        {"mask": randn(1, 1, 1, 4), "shape": value((4, 4)), "x": randn(B, 4, 4, dtype=C)},
    ),
    "linops.Gradient": Target(operator(linops.Gradient, (4, 4)), {"shape": value((4, 4)), "x": randn(B, 4, 4)}),
    "linops.Identity": Target(operator(linops.Identity, (4, 4)), {"shape": value((4, 4)), "x": randn(B, 4, 4)}),
    "linops.Wavelet": Target(
        operator(linops.Wavelet, (8, 8)),
        {"shape": value((8, 8)), "wavelet": value("db1"), "levels": value(1), "x": randn(B, 8, 8)},
    ),
    "linops.Blur": Target(
        operator(linops.Blur, (4, 4)),
        {"kernel": randn(3, 2), "shape": value((4, 4)), "border": value("reflect"), "method": value("direct")}
        | {"x": randn(B, 4, 4)},
    ),
    "linops.Blur by FFT": Target(
        operator(linops.Blur, (2, 4, 4)),
        {"kernel": randn(2, 3, 2), "shape": value((4, 4)), "channels": value(2), "method": value("fft")}
        | {"x": randn(B, 2, 4, 4)},
    ),
    "linops.Whitened": Target(
        lambda rtol, x: operator(lambda: linops.Whitened(linops.SystemMatrix(randn(M, N)()), rtol=rtol), (N,))(x),
        {"rtol": value(0.1), "x": randn(B, N)},
    ),
    "linops.Whitened.transform": Target(
        lambda y: linops.Whitened(linops.SystemMatrix(randn(M, N)())).transform(y), {"y": randn(B, M)}
    ),
    "linops.pinv": Target(
        lambda **a: (linops.SystemMatrix(randn(M, N)())).pinv(**a),
        {"y": randn(B, M), "rtol": value(0.1), "rank": value(2), "max_iter": value(3)},
    ),
    "linops.Fourier.pinv": Target(
        lambda **a: linops.Fourier(torch.ones(1, 1, 2, 3), (2, 3)).pinv(**a),
        {"y": randn(B, 2, 3), "rtol": value(0.1), "max_iter": value(3)},
    ),
    "linops.algebra": Target(
        lambda factor: (factor * linops.Gradient((2, 2)), linops.Gradient((2, 2)) / factor),
        {"factor": value(2.0)},
        ("unsupported operand", "multiply"),
    ),
    "linops.Stack": Target(
        lambda operators: linops.Stack(operators), {"operators": lambda: [linops.Gradient((2,)), linops.Identity((2,))]}
    ),
    "models.Problem": Target(
        mpi_system.Problem,
        {"matrix": randn(M, N), "shape": value((H, W)), "cutoff": value(1e-3), "rank": value(2)},
    ),
    "models.Reconstructor": Target(
        reconstruct,
        {"system": randn(M, N), "method": mpi.Tikhonov, "shape": value((H, W)), "normalise": value(True)}
        | {"batch": value(2), "frames": randn(B, M), "noise_std": value(0.1)},
    ),
    "models.L1ADMM": Target(
        lambda **a: mpi.Reconstructor(randn(M, N)(), mpi.L1ADMM(**a), shape=(H, W))(randn(B, M)()),
        {"iterations": value(3)},
    ),
    "models.DEQMPI": Target(
        deq,
        {"problem": tiny_problem, "y": randn(B, M), "radius": lambda: torch.ones(B), "start": randn(B, N)}
        | {"iterations": value(2)},
    ),
}  # fmt: skip


# --- a case --------------------------------------------------------------------------------------------------------
def words(target: Target) -> set[str]:
    """What an error may name."""
    found = {*target.arguments, *target.names, "y", "image", "kspace", "meta", "device"}
    with suppress(TypeError, ValueError):
        found |= {name for name in inspect.signature(target.call).parameters if len(name) > 1}
    return found


def shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


@st.composite
def cases(draw: Any, names: list[str]) -> tuple[str, dict[str, Any], str]:
    name = draw(st.sampled_from(names))
    target = TARGETS[name]
    arguments = {key: make() for key, make in target.arguments.items()}
    wrong, told = {}, []
    chosen = draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=3, unique=True))
    for key in chosen:
        what, made = draw(misuses(arguments[key], arguments))
        if callable(made) and what in TENSORS:
            try:
                made = made()
            except Exception:  # torch has no such tensor
                made = None
        wrong[key] = made
        told.append(f"{key}: {what}")
    if draw(st.booleans()):  # the optional ones left out
        parameters = inspect.signature(target.call).parameters
        for key in ("out", "dual", "x0", "order", "Ax", "noise_std"):
            given = key in arguments and key not in wrong
            if given and (key not in parameters or parameters[key].default is not inspect.Parameter.empty):
                arguments.pop(key)
    return name, arguments | wrong, f"{name}({', '.join(told)})"


def judge(name: str, arguments: dict[str, Any], told: str) -> None:
    """Run a case; AssertionError where it ends in neither a result nor an error that names an argument."""
    try:
        TARGETS[name].call(**arguments)
    except Boom:
        return
    except (ValueError, TypeError, RuntimeError) as error:
        if any(re.search(rf"\b{re.escape(word)}\b", str(error)) for word in words(TARGETS[name])):
            return
        raise AssertionError(f"{told}: names no argument: {shown(error)}") from error
    except Exception as error:
        raise AssertionError(f"{told}: raw {shown(error)}") from error


def main(examples: int, log: Path, seed: int | None = None, only: str = "") -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    count = 0
    names = [name for name in sorted(TARGETS) if only in name]

    @settings(
        max_examples=examples,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(case=cases(names))
    def run(case: tuple[str, dict[str, Any], str]) -> None:
        nonlocal count
        count += 1
        print(case[2], file=out, flush=True)
        signal.alarm(SECONDS)
        judge(*case)
        signal.alarm(0)

    with log.open("w") as out:
        (run if seed is None else seeded(seed)(run))()
    print(count)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]), *sys.argv[4:])
