"""LUSER: loop-unrolled reconstruction with a shallow equilibrium in every stage, for any physics.

Guan, Jin, Romberg and Davenport, Loop unrolled shallow equilibrium regularizer (LUSER): a memory-efficient inverse
problem solver, 2022. Its rivals are in :mod:`pyrecon.models.unrolled`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from pyrecon import implicit
from pyrecon._check import check_count, check_flag, check_number
from pyrecon._errors import DataError
from pyrecon.implicit import ImplicitGradient, fixed_point_layer
from pyrecon.models._data_step import Physics, Reconstructor, Start
from pyrecon.models.unrolled import DEQ4IP, UnrolledDnCNN
from pyrecon.models.weights import check_role, find_weights, read_header, which_weights, whole_number
from pyrecon.nn._channels import from_channels, to_channels
from pyrecon.nn.shallow import ShallowBlock
from pyrecon.solvers import Anderson, FixedPointMethod, Solution
from pyrecon.solvers._fixed_point import iterate


class LUSER(Reconstructor):
    """``stages`` steps, each followed by the equilibrium of a shallow block::

        d = x + lambda A^H (y - A x),    r = Mix(Data(r) ++ Inject(d)),    x+ = d + r

    r from zero by Anderson mixing, with exact gradients by implicit differentiation in every stage.
    ``forward(y, physics)`` takes a :class:`~pyrecon.linops.LinearOperator`, or any function of images, whose adjoint is
    that of its derivative at x; such a function needs ``x0`` or ``start="data"``.

    Parameters
    ----------
    channels
        1 for real images ``(B, H, W)``, 2 for complex ones, C for ``(B, C, H, W)``.
    stages, shared
        Stages K, and whether one block serves all of them (SW, 93,954 weights with one channel) or each has its own
        (DW, 751,625).
    width, groups, spread
        Of :class:`pyrecon.nn.ShallowBlock`; a larger ``spread`` begins further from equilibria that are lost.
    step
        lambda at the start; ``1 / |A|^2`` or less.
    start
        ``"adjoint"``: from ``A^H y``; ``"data"``: from y, for blurred images.
    kernel
        ``(channels, rows, columns)``: a blur to begin with that is learned too. It stands in where no physics is given:
        data are images ``(B, channels, H, W)`` convolved with it, :class:`pyrecon.linops.Blur`.
    solver, tol, max_iter
        Of the equilibria, in training and at inference.
    gradient
        How gradients pass them; default :class:`~pyrecon.implicit.ImplicitGradient` to 1e-2 within ``max_iter``.
    recompute
        With implicit gradients: keep a stage's image and residual only, and repeat its one recorded application in the
        backward pass, so one stage's activations are held at a time in place of K. It costs one application a stage
        beside the ten to forty of its solves.
    """

    network: ClassVar[str] = "luser"

    def __init__(
        self,
        channels: int = 1,
        *,
        stages: int = 8,
        shared: bool = False,
        width: int = 32,
        groups: int = 1,
        spread: float = 1.0,
        step: float = 1.0,
        start: Start = "adjoint",
        kernel: Tensor | None = None,
        solver: FixedPointMethod | None = None,
        tol: float = 1e-2,
        max_iter: int = 20,
        gradient: implicit.Gradient | None = None,
        recompute: bool = True,
    ) -> None:
        super().__init__(channels, step, start, kernel)
        self.stages, self.shared = check_count("stages", stages), shared
        check_flag("shared", shared)
        check_flag("recompute", recompute)
        self.tol, self.max_iter = check_number("tol", tol), check_count("max_iter", max_iter)
        self.solver = Anderson() if solver is None else solver
        self.gradient = ImplicitGradient(tol=1e-2, max_iter=max_iter) if gradient is None else gradient
        if recompute and gradient is not None and not isinstance(gradient, ImplicitGradient):
            raise ValueError(f"recompute: is for ImplicitGradient, not for {type(gradient).__name__}; say False")
        self.recompute = recompute
        self.blocks = nn.ModuleList(
            ShallowBlock(channels, width=width, groups=groups, spread=spread) for _ in range(1 if shared else stages)
        )

    def _stages(self, y: Tensor, physics: Physics | None, x0: Tensor | None) -> list[Tensor]:
        x, step = self._begin(y, physics, x0)
        known = [block.weights() for block in self.blocks]  # type: ignore[operator]  # once: see ShallowBlock
        self.solves, images = [], []
        for i in range(self.stages):
            block, weights = self.blocks[i % len(known)], known[i % len(known)]
            d = step(x)
            r = self._equilibrium(block, to_channels(d), weights)  # type: ignore[arg-type]
            x = d + from_channels(r, d)
            images.append(x)
        return images

    def _equilibrium(self, block: ShallowBlock, d: Tensor, weights: list[Tensor]) -> Tensor:
        def f(r: Tensor, injected: Tensor) -> Tensor:
            return block.residual(r, injected, weights)

        recording = torch.is_grad_enabled()
        if recording and not self.recompute:
            injected = block.injected(d, weights)
            found = fixed_point_layer(
                f, torch.zeros_like(d), (injected,), solver=self.solver, tol=self.tol, max_iter=self.max_iter,
                gradient=self.gradient, return_solution=True,
            )  # fmt: skip
            self._note(found)
            value: Tensor = found.value
            return value
        with torch.no_grad():
            injected = block.injected(d, weights)
            found = iterate(f, torch.zeros_like(d), (injected,), self.solver, self.tol, self.max_iter)
            self._note(found)
            residual = found.value
            assert isinstance(residual, Tensor)
            if not recording:
                return residual
            image = f(residual, injected)
        return _Recomputed.apply(self.gradient, block, image, residual, d, *weights)  # type: ignore[no-any-return,no-untyped-call]

    def _note(self, found: Solution[Any]) -> None:
        self.solves.append(Solution(None, found.status, found.iterations, found.residual))

    @property
    def config(self) -> dict[str, Any]:
        own = {"stages": self.stages, "shared": self.shared, "tol": self.tol, "max_iter": self.max_iter}
        return own | self.blocks[0].config  # type: ignore[operator,no-any-return]

    @classmethod
    def _tensors(cls, config: dict[str, Any]) -> int:
        return 36 * (1 if config["shared"] is True else whole_number(config["stages"]))

    @classmethod
    def _built(cls, config: dict[str, Any], kernel: Tensor | None) -> Self:
        numbers: dict[str, Any] = {
            name: whole_number(config[name]) for name in ("stages", "width", "groups", "max_iter")
        }
        return cls(
            config["channels"], shared=config["shared"], tol=config["tol"], start=config["start"], kernel=kernel,
            **numbers,
        )  # fmt: skip


ROLE = "reconstruction"  # of weights, on their cards
KINDS: dict[str, type[Reconstructor]] = {kind.network: kind for kind in (LUSER, UnrolledDnCNN, DEQ4IP)}


def load(path: str | Path) -> Reconstructor:
    """Weights of LUSER or of a rival, whichever the file holds."""
    header = read_header(path)
    network = header.config.get("network")
    if header.model != Reconstructor.system or network not in KINDS:
        raise DataError(f"{path}: holds weights of {header.model!r}, network {network!r}; expected {', '.join(KINDS)}")
    return KINDS[network].load(path)


def load_for(task: str, weights: str | Path | None) -> Reconstructor:
    """Weights that were trained for raw data of a task, ``"mri"`` or ``"ct"``; DataError where they were not."""
    if weights is None:
        raise which_weights(Reconstructor.system, task, f"pyrecon train luser -p task={task}")
    model = load(find_weights(weights))
    check_role(str(weights), model.card, ROLE, "LUSER", task)
    return model


class _Recomputed(torch.autograd.Function):
    """The residual at an equilibrium; its backward records the one application there, solves, and lets go of it."""

    @staticmethod
    def forward(
        ctx: Any, method: ImplicitGradient, block: ShallowBlock, value: Tensor, r: Tensor, d: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.method, ctx.block = method, block
        ctx.save_for_backward(r, d, *weights)
        return value.view_as(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        r, *others = ctx.saved_tensors
        with torch.enable_grad():
            r = r.detach().requires_grad_()
            leaves = [
                t.detach().requires_grad_(needed) for t, needed in zip(others, ctx.needs_input_grad[4:], strict=True)
            ]
            taped = ctx.block.residual(r, ctx.block.injected(leaves[0], leaves[1:]), leaves[1:])
        u = ctx.method.adjoint_solve((r,), (taped,), (grad,))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(taped, wanted, u))
        return None, None, None, None, *(next(found) if leaf.requires_grad else None for leaf in leaves)
