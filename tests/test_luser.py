"""LUSER and its rivals: counts of weights, equations, gradients, physics of any kind, memory of a stage, files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrecon._errors import DataError
from pyrecon.implicit import ImplicitGradient, JacobianFree, Unrolled
from pyrecon.linops import Blur, Fourier, Identity, LinearOperator
from pyrecon.models import DEQ4IP, LUSER, DEProx, UnrolledDnCNN
from pyrecon.models._data_step import Reconstructor, pulled_back
from pyrecon.models.luser import load
from pyrecon.models.weights import Card
from pyrecon.nn import DnCNN, ResidualUNet, ShallowBlock
from pyrecon.physics.mri import gaussian_lines
from pyrecon.solvers import ConvergenceWarning, Picard, Status

SHAPE = (10, 8)
TIGHT: dict[str, Any] = {"tol": 1e-12, "max_iter": 400}


def exact() -> ImplicitGradient:
    return ImplicitGradient(**TIGHT)


def seeded(kind: type[Any], *args: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(*args, **options).double()


def small(**options: Any) -> LUSER:
    """A model whose equilibria exist: few channels leave little spread of biases to stand beside a small r."""
    model: LUSER = seeded(LUSER, **{"stages": 3, "width": 4, "groups": 1, "gradient": exact(), **TIGHT} | options)
    return damped(model)


def damped(model: LUSER) -> LUSER:
    with torch.no_grad():
        for block in model.blocks:
            block.mix_norms[-1].weight.fill_(0.03)  # type: ignore[index,union-attr,operator]
    return model


def rival(kind: str, channels: int = 1, **options: Any) -> Reconstructor:
    if kind == "lu-dncnn":
        return seeded(UnrolledDnCNN, channels, stages=3, layers=4, width=6, **options)  # type: ignore[no-any-return]
    # A step above 0.2 and the skip around D leave unsampled k-space as it is: no contraction.
    model = seeded(DEQ4IP, channels, layers=4, width=6, **{"gradient": exact(), **TIGHT} | options)
    model.denoiser.residual = False
    return model  # type: ignore[no-any-return]


def images(count: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def smoothing() -> LinearOperator:
    """A blur with periodic borders, norm 1."""
    weights = [(0.6, 0), (0.2, 1), (0.2, -1)]

    class Smoothing(LinearOperator):
        domain_shape = range_shape = SHAPE

        def forward(self, x: Tensor) -> Tensor:
            return sum(w * x.roll(n, 2) for w, n in weights)  # type: ignore[return-value]

        def adjoint(self, y: Tensor) -> Tensor:
            return sum(w * y.roll(-n, 2) for w, n in weights)  # type: ignore[return-value]

    return Smoothing()


# --- counts ----------------------------------------------------------------------------------------------------------
KERNEL = torch.full((3, 9, 9), 1 / 81)
PUBLISHED = [
    (lambda: LUSER(shared=True), 93_954),
    (lambda: LUSER(), 751_625),
    (lambda: LUSER(2, shared=True), 95_107),
    (lambda: LUSER(2), 760_849),
    (lambda: LUSER(3, shared=True, kernel=KERNEL), 96_503),
    (lambda: LUSER(3), 770_073),
    *((lambda kind=kind: kind(1), 556_033) for kind in (UnrolledDnCNN, DEQ4IP)),
    *((lambda kind=kind: kind(2), 557_185) for kind in (UnrolledDnCNN, DEQ4IP)),
    *((lambda kind=kind: kind(3, kernel=KERNEL), 558_580) for kind in (UnrolledDnCNN, DEQ4IP)),
]


@pytest.mark.parametrize(("make", "expected"), PUBLISHED)
def test_models_have_the_published_numbers_of_weights(make: Any, expected: int) -> None:
    """Of what is trained; the 243 of the blur kernel where the paper counts it."""
    assert sum(value.numel() for value in make().parameters() if value.requires_grad) == expected


# --- equations -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shared", [True, False])
def test_a_stage_is_the_published_equation(shared: bool) -> None:
    """From the block's own forward, spectral norms as they are in evaluation."""
    model, A = small(shared=shared, step=0.7).eval(), smoothing()
    y = A(images())
    stages = model(y, A, return_stages=True)
    x = A.adjoint(y)
    for i, found in enumerate(stages):
        d = x + 0.7 * (A.adjoint(y) - A.adjoint(A(x)))
        r = found - d
        again = model.blocks[0 if shared else i](r[:, None], d[:, None])[:, 0]
        torch.testing.assert_close(again, r, rtol=0, atol=1e-8)
        x = found
    torch.testing.assert_close(model.reconstruct(y, A).value, stages[-1], rtol=0, atol=1e-12)


def test_the_injected_half_of_the_mix_is_the_same_as_side_by_side() -> None:
    block = seeded(ShallowBlock, 2, width=4, groups=2).eval()
    r, d = (torch.randn(2, 2, *SHAPE, dtype=torch.float64) for _ in range(2))

    def run(x: Tensor, convs: Any, norms: Any = None) -> Tensor:
        for i, conv in enumerate(convs):
            x = conv(x)
            x = nn.functional.leaky_relu(x if norms is None else norms[i](x), 0.01)
        return x

    both = torch.cat([run(r, block.data, block.data_norms), run(d, block.inject)], dim=1)
    expected = block.mix[2](run(both, block.mix[:2], block.mix_norms))
    torch.testing.assert_close(block(r, d), expected, rtol=0, atol=1e-12)


def test_the_rivals_are_their_equations() -> None:
    A = smoothing()
    y = A(images())
    model = rival("lu-dncnn", step=0.5).train()
    model(y, A)  # the running statistics of every stage
    model.eval()
    x = A.adjoint(y)
    for k, found in enumerate(model(y, A, return_stages=True)):
        for i, norm in enumerate(model.denoiser.norms):
            norm.running_mean.copy_(model.running_mean[k, i])
            norm.running_var.copy_(model.running_var[k, i])
        x = model.denoiser(x + 0.5 * (A.adjoint(y) - A.gram(x)))
        torch.testing.assert_close(found, x, rtol=0, atol=1e-12)
    model = rival("deq4ip", step=0.5).eval()
    solution = model.reconstruct(y, A)
    assert (solution.status == Status.CONVERGED).all()
    x = solution.value
    torch.testing.assert_close(model.denoiser(x + 0.5 * (A.adjoint(y) - A.gram(x))), x, rtol=0, atol=1e-8)


def test_complex_images_are_two_channels() -> None:
    A = Fourier(gaussian_lines(SHAPE, 2.0, acl=4, batch=3).double(), SHAPE)
    y = A(torch.complex(images(), images(seed=2)))
    for model in (small(channels=2), rival("lu-dncnn", 2), rival("deq4ip", 2)):
        value = model.eval().reconstruct(y, A).value
        assert value.dtype == torch.complex128
        assert torch.isfinite(torch.view_as_real(value)).all()


def test_new_models_start_near_the_data_step_and_their_equilibria_exist() -> None:
    """What follows the step is a tenth of the image at most: a start that loses no more than the data do."""
    y = images().float()
    torch.manual_seed(0)
    for make in (LUSER, UnrolledDnCNN):
        model = make(stages=1)
        change = model(y[:, :], Identity(SHAPE)) - y
        assert 0 < float(change.detach().abs().mean()) < 0.1
    model = LUSER(stages=8, tol=1e-2, max_iter=20)
    assert model.reconstruct(y, Identity(SHAPE)).status.tolist() == [Status.CONVERGED] * 3


# --- gradients -------------------------------------------------------------------------------------------------------
def check_gradient(loss: Any, value: nn.Parameter, name: str = "") -> None:
    """Along a random direction of all entries: central differences over one of two lengths, for a kink of a ReLU within
    the longer one moves its slope (seen: by half a per cent)."""
    direction = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(7))
    assert value.grad is not None, name
    slopes = []
    with torch.no_grad():
        for h in (1e-7, 1e-8):
            found = []
            for sign in (1, -1):
                value += sign * h * direction
                found.append(float(loss()))
                value -= sign * h * direction
            slopes.append((found[0] - found[1]) / (2 * h))
    ours = float((value.grad * direction).sum())
    assert any(ours == pytest.approx(slope, rel=1e-4, abs=1e-8) for slope in slopes), (name, ours, slopes)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_all_stages_are_those_of_finite_differences(shared: bool, recompute: bool) -> None:
    """lambda, weights of every layer, raw behind the spectral norms; all stages in one loss."""
    model, A = small(stages=2, shared=shared, recompute=recompute).eval(), smoothing()
    y, truth = A(images()), images()

    def loss() -> Tensor:
        return sum((x - truth).square().mean() for x in model(y, A, return_stages=True))  # type: ignore[return-value]

    loss().backward()
    for name, value in model.named_parameters():
        check_gradient(loss, value, name)


@pytest.mark.parametrize("kind", ["lu-dncnn", "deq4ip"])
def test_gradients_of_the_rivals_are_those_of_finite_differences(kind: str) -> None:
    model, A = rival(kind, step=0.5).eval(), smoothing()
    y, truth = A(images()), images()

    def loss() -> Tensor:
        return (model(y, A) - truth).square().mean()  # type: ignore[no-any-return]

    loss().backward()
    for name, value in model.named_parameters():
        check_gradient(loss, value, name)


def test_training_has_one_spectral_norm_for_solve_and_record() -> None:
    """In training mode each look at a weight moves its power iteration: one look a call, shared by all stages."""
    model, y = small(shared=True).train(), images()
    conv = model.blocks[0].data[1]
    norm = conv.parametrizations.weight[0]
    before = norm._u.clone(), norm._v.clone()
    model(y, Identity(SHAPE)).sum().backward()
    moved = norm._u.clone()
    assert not torch.equal(moved, before[0])
    norm._u.copy_(before[0])
    norm._v.copy_(before[1])
    _ = conv.weight  # the same look by hand
    assert torch.equal(norm._u, moved)
    model.eval()
    assert torch.equal(model(y, Identity(SHAPE)), model(y, Identity(SHAPE)))


def kept_bytes(model: Reconstructor, y: Tensor, A: LinearOperator) -> int:
    """Of all tensors that the recorded graph holds for the backward pass, each storage once, weights aside."""
    held: dict[int, int] = {}
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    keep = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        keep.append(model(y, A))
    return sum(held.values())


@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
def test_one_application_a_stage_is_kept_and_none_where_it_is_recomputed() -> None:
    """Activations of a large image: what the layers of one application hold, by hand, and nothing for the solve."""
    shape, width = (64, 64), 4
    y, A = torch.rand(2, *shape, dtype=torch.float64), Identity(shape)
    image = y.numel() * 8
    # Convolutions and group norms hold their inputs: Inject's second convolution and Mix's injected half 2 width; Data
    # 3 width; Mix's three convolutions and two norms: width + 8 width. Some single images beside, r and d among them.
    channels = 2 * width + 3 * width + 9 * width
    kept = {
        (stages, recompute): kept_bytes(small(stages=stages, recompute=recompute, max_iter=8, tol=1e-2), y, A)
        for stages in (1, 3)
        for recompute in (True, False)
    }
    taped = (kept[3, False] - kept[1, False]) / 2 / image
    again = (kept[3, True] - kept[1, True]) / 2 / image
    assert channels <= taped <= channels + 6
    assert again <= 6


@pytest.mark.filterwarnings("ignore::pyrecon.solvers.ConvergenceWarning")
@pytest.mark.parametrize("gradient", [JacobianFree(), Unrolled(4)])
def test_other_gradients_may_pass_the_equilibria(gradient: Any) -> None:
    model = small(gradient=gradient, recompute=False)
    model(images(), Identity(SHAPE)).square().sum().backward()
    assert all(value.grad is not None for value in model.parameters())
    with pytest.raises(ValueError, match="recompute: is for ImplicitGradient"):
        small(gradient=gradient)


# --- physics of any kind ---------------------------------------------------------------------------------------------
def phase(x: Tensor) -> Tensor:
    """A phase model: what is measured is complex, the image is not."""
    return torch.exp(1j * x)


def saturation(x: Tensor) -> Tensor:
    return 1 - torch.exp(-2 * x)


@pytest.mark.parametrize("A", [phase, saturation])
def test_non_linear_physics_descends_by_the_adjoint_of_its_derivative(A: Any) -> None:
    truth, x = images(), images(seed=5)
    y = A(truth)
    found = pulled_back(A, x, y).detach()
    h = 1e-6
    for entry in ((0, 1, 2), (2, 3, 4)):
        shifted = [x.clone(), x.clone()]
        for sign, value in zip((1, -1), shifted, strict=True):
            value[entry] += sign * h
        misfit = [float((y - A(value)).abs().square().sum() / 2) for value in shifted]
        assert float(found[entry]) == pytest.approx(-(misfit[0] - misfit[1]) / (2 * h), rel=1e-6)


def test_gradients_through_a_saturating_measurement_are_exact() -> None:
    """Second derivatives of the physics are in lambda's and the weights' gradients."""
    model = small(start="data", step=0.3).eval()
    y, truth = saturation(images()), images()

    def loss() -> Tensor:
        return (model(y, saturation) - truth).square().mean()  # type: ignore[no-any-return]

    loss().backward()
    for name in ("step_size", "blocks.0.data.0.parametrizations.weight.original", "blocks.2.mix.2.bias"):
        value = model.get_parameter(name)
        check_gradient(loss, value, name)


def test_a_linear_function_is_the_operator_it_is() -> None:
    A, model = smoothing(), small().eval()
    y = A(images())
    by_function = model(y, lambda x: A(x), x0=A.adjoint(y))
    torch.testing.assert_close(by_function, model(y, A), rtol=0, atol=1e-9)


def test_a_learned_kernel_stands_in_for_the_physics() -> None:
    """It is the physics where none is given, and its gradient is exact."""
    kernel = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(3)).double()
    model = small(channels=2, kernel=kernel, start="data", stages=2).eval()
    truth, A = torch.rand(2, 2, *SHAPE, dtype=torch.float64), Blur(kernel, SHAPE, channels=2)
    y = A(truth)
    torch.testing.assert_close(model(y), model(y, A), rtol=0, atol=1e-9)

    def loss() -> Tensor:
        return (model(y) - truth).square().mean()  # type: ignore[no-any-return]

    loss().backward()
    check_gradient(loss, model.kernel)  # type: ignore[arg-type]


# --- what a user gets wrong ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: LUSER(0), "channels: 0"),
        (lambda: LUSER(stages=0), "stages: 0"),
        (lambda: LUSER(shared=1), "shared: 1, expected True or False"),
        (lambda: LUSER(groups=5), "groups: 5 does not divide the width, 32"),
        (lambda: LUSER(step=0.0), "step: 0.0"),
        (lambda: LUSER(start="zero"), "start: 'zero', expected adjoint or data"),
        (lambda: LUSER(kernel=torch.ones(3, 3, 3)), "kernel: shape"),
        (lambda: DnCNN(layers=1), "layers: 1"),
        (lambda: DnCNN(2)(images().float()), "image: has 1 channels, the network takes 2"),
        (lambda: small()(images(), None), "physics: expected a LinearOperator or a function of images, got None"),
        (lambda: small()(images(), nn.Identity), "physics: expected a function or a module, got the class Identity"),
        (lambda: small()(images(), saturation), "x0: physics that is no LinearOperator has no"),
        (lambda: small()(images().float(), Identity(SHAPE)), "y: dtype torch.float32 does not fit the model's"),
        (lambda: small(channels=2)(images(), Identity(SHAPE)), "make images of 1 channels, the model takes 2"),
        (lambda: small(start="data")(images(), lambda x: x[:, :5]), "physics: returned shape"),
        (lambda: small(start="data")(images(), lambda x: 3), "physics: returned 3"),
        (lambda: small(start="data")(images(), lambda x: x.detach()), "does not depend on the image"),
        (lambda: small()(images(), Identity((3, 3))), "y: shape"),
    ],
)
def test_wrong_arguments_are_named(call: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        call()


# --- equilibria that are not reached ---------------------------------------------------------------------------------
def test_what_did_not_converge_is_said_and_one_sample_does_not_spoil_the_others() -> None:
    y, A = images(), Identity(SHAPE)
    model = small(max_iter=1).eval()
    with pytest.warns(ConvergenceWarning, match="luser: the equilibrium of stage 1: 3 of 3 samples"):
        model(y, A)
    found = model.reconstruct(y, A)
    assert found.iterations.tolist() == [3, 3, 3]
    assert not bool(found.converged.any())
    assert (found.residual > 1e-12).all()
    y[1] = math.nan
    for model in (small().eval(), rival("deq4ip", step=0.5).eval(), rival("lu-dncnn").eval()):
        found = model.reconstruct(y, A)
        assert found.status[1] == Status.NONFINITE
        assert found.value[1].isnan().all()
        for b in (0, 2):
            alone = model.reconstruct(y[b : b + 1], A).value
            torch.testing.assert_close(found.value[b : b + 1], alone, rtol=0, atol=1e-8)


def test_an_equilibrium_that_does_not_exist_has_a_status() -> None:
    """D(x) = 2 x runs away: no error, no warning of numbers, and the residual says so."""
    model = rival("deq4ip", max_iter=30, solver=Picard(), tol=1e-3).eval()

    class Twice(nn.Module):
        def weights(self) -> list[Tensor]:
            return []

        def denoised(self, x: Tensor, weights: Any, how: str) -> Tensor:
            return 2 * x

    model.denoiser = Twice()
    status = model.reconstruct(images(), smoothing()).status
    assert all(value in (Status.MAX_ITER, Status.DIVERGED) for value in status.tolist())


# --- batch norm ------------------------------------------------------------------------------------------------------
def test_checkpointing_changes_nothing_but_memory() -> None:
    """Gradients and running statistics: the second time, batch norm must not move them again."""
    A, y = smoothing(), images()
    results = []
    for checkpointing in (False, True):
        model = rival("lu-dncnn", checkpointing=checkpointing).train()
        with torch.no_grad():
            model.denoiser.norms[-1].weight.fill_(1.0)
        model(y, A).square().mean().backward()
        grads = {name: value.grad for name, value in model.named_parameters()}
        results.append((grads, {name: value.clone() for name, value in model.named_buffers()}))
        moved = model.running_var != 1
        assert moved.all(), "every stage has statistics of its own"
        assert not torch.equal(model.running_mean[0], model.running_mean[1])
        if checkpointing:
            assert kept_bytes(model, y, A) < 0.3 * kept_bytes(rival("lu-dncnn").train(), y, A)
    for one, other in zip(*results, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)


def test_an_equilibrium_takes_running_statistics_and_leaves_them() -> None:
    """Each sample by itself, in training as in evaluation."""
    A, y = smoothing(), images()
    model = rival("deq4ip", step=0.5).train()
    before = [value.clone() for name, value in model.named_buffers() if "running" in name]
    together = model(y, A)
    after = [value for name, value in model.named_buffers() if "running" in name]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    torch.testing.assert_close(model.eval()(y[:1], A), together[:1], rtol=0, atol=5e-3)


# --- options ---------------------------------------------------------------------------------------------------------
def test_options_have_their_effects() -> None:
    A, y = smoothing(), images()
    base = small(**{"max_iter": 6, "tol": 1e-12}).eval().reconstruct(y, A).value
    changes: list[dict[str, Any]] = [
        {"stages": 2}, {"width": 8}, {"groups": 2}, {"step": 0.5}, {"start": "data"}, {"max_iter": 2}, {"tol": 0.5},
        {"solver": Picard()}, {"shared": True},
    ]  # fmt: skip
    for change in changes:
        model = small(**{"max_iter": 6, "tol": 1e-12} | change).eval()
        assert not torch.equal(model.reconstruct(y, A).value, base), change
    for change in (
        {"layers": 3},
        {"width": 8},
        {"norm": False},
        {"bias": True},
        {"spectral": True},
        {"residual": False},
    ):
        nets = [seeded(DnCNN, **{"layers": 4, "width": 4} | options).eval() for options in ({}, change)]
        assert not torch.equal(nets[0](y), nets[1](y)), change
    assert float(seeded(ShallowBlock, gain=0.0)(y[:, None], y[:, None]).detach().abs().max()) == 0.0
    spread = [seeded(ShallowBlock, spread=value).data[0].bias.detach().abs().max() for value in (0.5, 4.0)]
    assert spread[0] < 0.5 < spread[1] < 4


# --- files -----------------------------------------------------------------------------------------------------------
def every_model() -> list[Reconstructor]:
    torch.manual_seed(0)
    kernel = torch.rand(1, 3, 5)
    return [
        damped(LUSER(stages=2, width=4, groups=2, shared=True, kernel=kernel, tol=0.03, max_iter=7)),
        damped(LUSER(2, stages=2, width=4, groups=1, start="data")),
        UnrolledDnCNN(stages=2, layers=3, width=4),
        DEQ4IP(2, layers=3, width=4, kernel=torch.rand(2, 3, 3), tol=0.02),
    ]


@pytest.mark.parametrize("number", range(4))
def test_weights_come_back_whole(tmp_path: Path, number: int) -> None:
    path, model = tmp_path / "w.safetensors", every_model()[number].eval()
    model.card = Card("luser", model.network, (10, 8), {"task": "ct"}, {})
    model.save(path)
    for back in (load(path), type(model).from_pretrained(path)):
        assert type(back) is type(model)
        assert back.config == model.config
        assert (back.start, back.channels, back.card) == (model.start, model.channels, model.card)
        y = images().float()
        y = torch.complex(y, y) if model.channels == 2 else y
        expected = model.reconstruct(y, Identity(SHAPE)).value
        torch.testing.assert_close(back.reconstruct(y, Identity(SHAPE)).value, expected, rtol=0, atol=1e-6)
    before = path.read_bytes()
    load(path).save(path)
    assert path.read_bytes() == before
    other = DEQ4IP if not isinstance(model, DEQ4IP) else LUSER
    with pytest.raises(DataError, match=f"network: '{model.network}', expected '{other.network}'"):
        other.load(path)


def test_files_of_other_systems_and_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    DEProx(ResidualUNet(1, 4, 1)).save(path)
    for read in (load, LUSER.load):
        with pytest.raises(DataError, match="holds weights of 'de-prox'"):
            read(path)
    model = every_model()[0]
    with torch.no_grad():
        model.blocks[0].mix[2].bias.fill_(math.nan)  # type: ignore[index,union-attr,operator]
    with pytest.raises(DataError, match="not written"):
        model.save(tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"stages": 2000}, {"width": 5}, {"tol": -1}, {"max_iter": 0}, {"start": "x"}, {"network": "lu-dncnn"},
        {"shared": 1}, {"channels": 10**9}, {"kernel": [3, 4]}, {"kernel": 7},
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "w.safetensors"
    every_model()[0].save(path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + size])
    header = json.loads(table["__metadata__"]["pyrecon"])
    header["config"] |= change
    table["__metadata__"]["pyrecon"] = json.dumps(header)
    text = json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with pytest.raises(DataError, match=r"w\.safetensors: "):
        LUSER.load(path)
