"""DEQ-MPI: a deep equilibrium model of ADMM with a learned denoiser and a learned data step.

Güngör, Askin, Alptekin Soydan, Top, Saritas and Çukur, DEQ-MPI: a deep equilibrium reconstruction with learned
consistency for magnetic particle imaging, IEEE Trans. Med. Imaging 43(1), 321-334 (2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pyrecon import implicit
from pyrecon._check import check_count, check_number, check_radius, described
from pyrecon._errors import DataError
from pyrecon._library import runs_kernel
from pyrecon.implicit import ImplicitGradient, fixed_point_layer
from pyrecon.models.weights import (
    UNUSABLE,
    Card,
    Header,
    find_weights,
    read_header,
    read_tensors,
    whole_number,
    whole_numbers,
    write_weights,
)
from pyrecon.nn import RDN, BallConsistency, ExactConsistency, LearnedConsistency, RowLayout
from pyrecon.ops._anderson import join
from pyrecon.ops._deq_mpi import deq_mpi
from pyrecon.solvers import Anderson, FixedPointMethod, Picard, Solution, Status
from pyrecon.solvers._fixed_point import iterate

if TYPE_CHECKING:
    from pyrecon.models.mpi.system import Problem

State = tuple[Tensor, Tensor, Tensor]
Consistency = BallConsistency | ExactConsistency | LearnedConsistency
# What weights are for: the fixed point; the denoiser of plug-and-play; one pass of the network over the least-squares
# image; a fixed number of steps.
Role = Literal["equilibrium", "denoiser", "end-to-end", "unrolled"]
ROLES: tuple[Role, ...] = get_args(Role)
_ROWS = "consistency.rows"
_KINDS = ("ball", "learned", "none")
_POINTS = 10**8


class DEQMPI(nn.Module):
    """The image at the fixed point of one ADMM step with networks in place of its proximal maps.

    State: image x, its dual d1, the dual d0 of the data (Eqs. 20-24)::

        z0 = LC(A x - d0, y)          z1 = RDN(x - d1)
        x  = M (c A^T (z0 + d0) + z1 + d1)              M = (I + c A^T A)^-1
        d0 = d0 + z0 - A x            d1 = d1 + z1 - x

    c, the penalty of the split of the data against that of the image, is 1 as published. At the fixed point z0 = A x,
    z1 = x and d1 = -c A^T d0. With the projection onto a ball another c scales the data's dual and leaves the image,
    but the iteration gets there in another time: components with singular values s far below c^(-1/2) hardly move in a
    step. On the simulated scanner two thirds of all have s < 0.3.

    Parameters
    ----------
    rdn
        Denoiser of images, :class:`pyrecon.nn.RDN`.
    consistency
        :class:`~pyrecon.nn.LearnedConsistency`, whose weights belong to one layout of rows;
        :class:`~pyrecon.nn.BallConsistency` (default) or :class:`~pyrecon.nn.ExactConsistency`, which fit any system
        matrix.
    iterations
        Steps at inference.
    memory
        Memory of Anderson mixing at inference. 0 takes plain steps, as the released program does; models trained here
        have 5, with which 25 steps come as near to the equilibrium as 100 plain ones.
    penalty
        c, above 0. Weights trained with one c serve another: only the number of steps changes.
    kappa
        Of the ball that the weights were trained with: its radius in the range of A as a multiple of the noise there
        (:meth:`pyrecon.models.mpi.method.Data.ball`), of a matrix that noise was taken out of 0.8 of it
        (:func:`~pyrecon.models.mpi.method.trained_kappa`). For those who make the radius; the model takes what it is
        given.
    solver, tol, max_iter, gradient
        Of the equilibrium in training.

    Attributes
    ----------
    card
        :class:`Card` of the weights, or None where they are nobody's.
    """

    system: ClassVar[str] = "deq-mpi"
    card: Card | None = None

    def __init__(
        self,
        rdn: RDN | None = None,
        consistency: Consistency | None = None,
        *,
        iterations: int = 25,
        memory: int = 0,
        penalty: float = 1.0,
        kappa: float = 1.0,
        solver: FixedPointMethod | None = None,
        tol: float = 1e-4,
        max_iter: int = 25,
        gradient: implicit.Gradient | None = None,
    ) -> None:
        super().__init__()
        for name, module in (("rdn", rdn), ("consistency", consistency)):
            if module is not None and not isinstance(module, nn.Module):
                raise TypeError(f"{name}: expected a module, got {described(module)}")
        iterations, max_iter = check_count("iterations", iterations), check_count("max_iter", max_iter)
        memory, penalty = check_count("memory", memory, 0), check_number("penalty", penalty, above=True)
        tol, kappa = check_number("tol", tol), check_number("kappa", kappa)
        self.rdn = RDN() if rdn is None else rdn
        self.consistency = BallConsistency() if consistency is None else consistency
        self.iterations, self.memory, self.penalty = iterations, memory, penalty
        self.tol, self.max_iter, self.kappa = tol, max_iter, kappa
        self.solver = solver or Anderson(memory=5, beta=1.0)
        self.gradient = gradient or ImplicitGradient(tol=tol, max_iter=max_iter)

    def forward(self, problem: Problem, y: Tensor, radius: Tensor | float, start: Tensor | None = None) -> Tensor:
        """Images ``(B, H, W)`` for training: the equilibrium, with gradients to the networks.

        Parameters
        ----------
        problem
            The system matrix, prepared.
        y, radius
            ``(B, M)`` stacked real data in the scale of the model (rows' mean energy 0.34, signals of rms 0.41), and
            the norm of their noise, a number or ``(B,)``.
        start
            ``(B, N)`` or ``(B, H, W)``; default truncated least squares.
        """
        state, radius = problem.start(y, start), self._radius(problem, y, radius)
        if len(y) == 0:
            return y.new_zeros(0, *problem.shape)
        step = problem.step_of(self)
        value = fixed_point_layer(
            step, state, (y, radius), solver=self.solver, tol=self.tol, max_iter=self.max_iter, gradient=self.gradient
        )
        return value[0].unflatten(1, problem.shape)  # type: ignore[no-any-return]

    def direct(self, problem: Problem, y: Tensor, start: Tensor | None = None) -> Tensor:
        """``RDN(least squares)``, ``(B, H, W)``: what weights of the role ``"end-to-end"`` are trained for."""
        return self.rdn(problem.start(y, start)[0].unflatten(1, problem.shape))  # type: ignore[no-any-return]

    @torch.no_grad()
    def reconstruct(
        self,
        problem: Problem,
        y: Tensor,
        radius: Tensor | float,
        start: Tensor | None = None,
        *,
        iterations: int | None = None,
    ) -> Solution[Tensor]:
        """Images ``(B, H, W)`` by ``iterations`` steps (default: the model's), with a status per sample."""
        steps = self.iterations if iterations is None else check_count("iterations", iterations)
        radius = self._radius(problem, y, radius)
        tol = self.tol if self.memory else 0.0
        found = self._solved(problem, problem.start(y, start), y, radius, steps, tol)
        # A sample set aside at once would show its start, an image of nothing that was measured.
        image = torch.where((found.status == Status.NONFINITE)[:, None], torch.nan, found.value[0])
        return Solution(image.unflatten(1, problem.shape), found.status, found.iterations, found.residual)

    def _radius(self, problem: Problem, y: Tensor, radius: Tensor | float) -> Tensor:
        """``(B,)`` of the data's type; the data are checked on the way."""
        from pyrecon.models.mpi.system import Problem as Expected

        if not isinstance(problem, Expected):
            raise TypeError(f"problem: expected a Problem, got {described(problem)}")
        problem.check_data(y)
        radius = check_radius("radius", radius, y)
        if bool((radius < 0).any()):
            raise ValueError(f"radius: {float(radius.min()):g} is negative")
        return radius

    def _solved(
        self, problem: Problem, state: State, y: Tensor, radius: Tensor, steps: int, tol: float
    ) -> Solution[tuple[Tensor, ...]]:
        """The fixed point by one op, or step by step where modules must run."""
        network, data = _operands(self.rdn), _operands(self.consistency, y)
        if network is None or data is None or not runs_kernel(problem.A.matrix, y, radius):
            solver = Anderson(memory=self.memory) if self.memory else Picard()
            return iterate(problem.step_of(self), state, (y, radius), solver=solver, tol=tol, max_iter=steps)  # type: ignore[return-value]  # of the state's type
        values, report = deq_mpi(
            problem.A.matrix,
            problem.inverse(self.penalty),
            join(list(state)),
            y,
            radius,
            shape=problem.shape,
            steps=steps,
            penalty=self.penalty,
            memory=self.memory,
            tol=tol,
            **network,
            **data,
        )
        count, first, last = report.unbind(dim=1)
        status = torch.where(last > first, int(Status.DIVERGED), int(Status.MAX_ITER))
        status = torch.where(last <= tol, int(Status.CONVERGED), status) if tol else status
        status = torch.where(last.isfinite(), status, int(Status.NONFINITE)).to(torch.int8)
        sizes = [part.shape[1] for part in state]
        return Solution(values.split(sizes, dim=1), status, count.to(torch.int32), last.to(values.dtype))

    def step(self, problem: Problem, state: State, y: Tensor, radius: Tensor) -> State:
        """One application of the map whose fixed point is sought."""
        x, d1, d0 = state
        z0 = self.consistency(problem.A(x) - d0, y, radius)
        z1 = self.rdn((x - d1).unflatten(1, problem.shape)).flatten(1)
        d0, d1 = d0 + z0, d1 + z1
        x = torch.add(d1, problem.A.adjoint(d0), alpha=self.penalty) @ problem.inverse(self.penalty)
        return x, d1 - x, d0 - problem.A(x)

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors with a header of their configuration; whole or not at all."""
        tensors, config = _described(self)
        write_weights(path, self.system, config, tensors, self.card)

    @classmethod
    def load(cls, path: str | Path) -> DEQMPI:
        """The model that :meth:`save` wrote, in evaluation mode.

        Raises
        ------
        DataError
            Where the file is cut off, foreign, or its tensors are not those that its header demands.
        """
        return _loaded(read_header(path))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> DEQMPI:
        """Weights that come with the package by name, or a file of :meth:`save`; an unknown name lists the known."""
        return cls.load(find_weights(name_or_path))

    @classmethod
    def from_released(cls, path: str | Path, layout: RowLayout | None = None) -> DEQMPI:
        """The model with weights that the authors released, under their names; a ``.npz``, ``.safetensors`` or ``.pt``.

        Without ``layout`` the learned consistency is left out, and the model fits any system matrix.
        """
        weights = _released(Path(path))
        model = cls(RDN(), LearnedConsistency(layout, ball="released") if layout is not None else None)
        names = {_released_name(name): name for name in model.state_dict()}
        missing = sorted(set(names) - set(weights))
        if missing:
            raise DataError(f"{path}: lacks {missing[0]!r} and {len(missing) - 1} more of the released weights")
        state = model.state_dict()
        for theirs, ours in names.items():
            value = weights[theirs]
            if value.shape != state[ours].shape:
                expected = tuple(state[ours].shape)
                raise DataError(f"{path}: {theirs} has shape {tuple(value.shape)}, expected {expected}")
            state[ours] = value
        model.load_state_dict(state)
        return model.eval()


# --- the header of its weights -------------------------------------------------------------------------------------
def _described(model: DEQMPI) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration, as they are written."""
    tensors = dict(model.state_dict())
    consistency: dict[str, Any] = {"kind": "none" if isinstance(model.consistency, ExactConsistency) else "ball"}
    if isinstance(model.consistency, LearnedConsistency):
        layout = model.consistency.layout
        tensors[_ROWS] = layout.rows
        consistency = {"kind": "learned", **model.consistency.config, "grid": layout.grid, "used": layout.used}
        consistency["digest"] = layout.digest
    inference = {name: getattr(model, name) for name in ("iterations", "memory", "penalty", "kappa")}
    return tensors, {"rdn": model.rdn.config, "consistency": consistency, **inference}


def _loaded(header: Header) -> DEQMPI:
    if header.model != DEQMPI.system:
        raise DataError(f"{header.path}: holds weights of {header.model!r}, expected {DEQMPI.system!r}")
    try:
        config = header.config
        network = whole_numbers(config["rdn"], ("features", "growth", "blocks", "layers"))
        kind = config["consistency"]["kind"]
        if kind not in _KINDS:
            raise ValueError(f"consistency: {kind!r}, expected one of {', '.join(_KINDS)}")
        # Modules are built only where the file has their tensors: a header may ask for a million of them.
        own = 2 * whole_number(config["consistency"]["layers"]) + 1 if kind == "learned" else 0
        header.expect_count(2 * (5 + network["blocks"] * (network["layers"] + 1)) + own)
        with torch.device("meta"):
            rdn = RDN(**network)
        model = DEQMPI(
            rdn,
            _consistency(config["consistency"], header),
            iterations=whole_number(config["iterations"]),
            memory=whole_number(config.get("memory", config.get("mixing", 0)), least=0),  # mixing: format 1
            penalty=config.get("penalty", 1.0),
            kappa=config.get("kappa", 1.0),  # of weights trained with the norm of all noise, on average
        )
        model.card = None if header.card is None else card_of(header.card)
    except UNUSABLE as error:
        raise header.unusable(error) from None
    expected = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    rows = {}
    if isinstance(model.consistency, LearnedConsistency):
        rows[_ROWS] = ((len(model.consistency.layout.rows),), torch.int64)
    tensors = read_tensors(header, expected | rows)
    model.load_state_dict({name: tensors[name] for name in expected}, assign=True)
    return model.eval()


def new_card(
    snr_db: float,
    shape: tuple[int, int],
    signal_range: tuple[float, float],
    training: Mapping[str, Any] | None = None,
    role: Role = "equilibrium",
) -> Card:
    """The card of weights trained on images of ``shape`` and data of that SNR and range of signals: :func:`card_of`."""
    data = {"snr_db": snr_db, "signal_range": [*signal_range]}
    return card_of({"model": "deq-mpi", "role": role, "shape": shape, "data": data, "training": training or {}})


def card_of(value: Mapping[str, Any]) -> Card:
    """The card of DEQ-MPI's weights: ``data`` holds ``snr_db``, the SNR of the training set, and ``signal_range``, 1st
    and 99th percentile of the root mean square of its signals, in the scale of the model; ValueError for others."""
    card = Card.from_dict(value)
    low, high = (float(r) for r in card.data["signal_range"])
    snr = float(card.data["snr_db"])
    if not (math.isfinite(snr) and 0 < low <= high < math.inf and len(card.shape) == 2):
        raise ValueError(f"card: SNR {snr}, signals {low} to {high}, images of shape {card.shape}")
    if card.role not in ROLES:
        raise ValueError(f"card: role {card.role!r}, expected one of {', '.join(ROLES)}")
    return card


def _consistency(config: dict[str, Any], header: Header) -> Consistency:
    if config["kind"] != "learned":
        return BallConsistency() if config["kind"] == "ball" else ExactConsistency()
    if header.tensors.get(_ROWS, ((), None))[1] != torch.int64:
        raise ValueError(f"{_ROWS} is {header.tensors.get(_ROWS)}, expected int64 rows")
    groups, frequencies = (int(n) for n in config["grid"])
    if not 0 < groups * frequencies <= _POINTS:
        raise ValueError(f"grid: {groups} x {frequencies}, expected up to {_POINTS} points")
    layout = RowLayout((groups, frequencies), read_tensors(header, [_ROWS])[_ROWS], int(config["used"]))
    if layout.digest != config["digest"]:
        raise ValueError(f"the row layout has digest {layout.digest}, expected {config['digest']}")
    names = ("width", "layers", "kernel", "dims")
    sizes = whole_numbers({name: config[name] for name in names}, names)
    with torch.device("meta"):
        return LearnedConsistency(layout, **sizes, ball=config["ball"])  # type: ignore[arg-type]


# --- parts ---------------------------------------------------------------------------------------------------------
def _operands(module: nn.Module, *inputs: Tensor) -> dict[str, Any] | None:
    """What the op takes of a part of the model; of somebody's own module, nothing."""
    ask = getattr(module, "operands", None)
    return None if ask is None else ask(*inputs)


def _released(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                names = [name for name in archive.files if name.removeprefix("w/").startswith("f.")]
                return {name.removeprefix("w/"): torch.from_numpy(archive[name]) for name in names}
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        return {str(k): v for k, v in dict(found.get("state_dict", found)).items() if isinstance(v, Tensor)}
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, EOFError) as problem:
        raise DataError(f"{path}: is no file of weights ({type(problem).__name__}: {str(problem)[:100]})") from None
    except Exception as problem:  # a hostile pickle or safetensors file has its own ways to fail
        raise DataError(f"{path}: is no file of weights that is safe to load ({type(problem).__name__})") from None


def _released_name(name: str) -> str:
    """Our name of a weight in the released program's words."""
    part, _, rest = name.partition(".")
    if part == "consistency":
        for ours, theirs in (("convs.0", "conv0"), ("convs.1", "convs.0"), ("convs.2", "convL")):
            rest = theirs + rest.removeprefix(ours) if rest.startswith(ours) else rest
            if rest.startswith(theirs):
                break
        return f"f.consistencyNet.{rest}"
    module, _, leaf = rest.rpartition(".")
    words = module.split(".")
    if words[0] == "blocks":
        inner = f"local_res_block.{words[3]}.conv" if words[2] == "layers" else "last_conv"
        return f"f.sharedNet.rdbs.{words[1]}.{inner}.{leaf}"
    numbers = {"shallow": "conv0", "deep": "conv1", "fuse": "conv2", "smooth": "conv3", "last": "conv4"}
    return f"f.sharedNet.{numbers[module]}.{leaf}"
