"""Arrays and operators of other packages. Those that are not installed are skipped by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrecon import interop, linops, ops
from pyrecon._errors import MissingDependency
from pyrecon.interop.denoisers import deepinv_dncnn
from pyrecon.testing import assert_adjoint


def randn(*shape: int, dtype: torch.dtype = torch.complex128, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# --- arrays ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_numpy_shares_memory(dtype: str) -> None:
    array = np.zeros((3, 4), dtype=dtype)
    tensor = interop.as_tensor(array.T)
    assert tensor.shape == (4, 3)
    tensor[1, 2] = 5
    assert array[2, 1] == 5


def test_what_cannot_be_shared_is_copied_or_refused() -> None:
    array = np.arange(4.0)
    array.flags.writeable = False
    interop.as_tensor(array)[0] = 7
    assert array[0] == 0
    assert interop.as_tensor(np.arange(4.0)[::-1]).tolist() == [3, 2, 1, 0]
    with pytest.raises(TypeError, match="byte order"):
        interop.as_tensor(np.arange(4.0).astype(">f8"))
    with pytest.raises(TypeError, match="list is no array"):
        interop.as_tensor([1.0])


def test_an_op_takes_numpy_and_gives_numpy() -> None:
    v, center = randn(3, 5, dtype=torch.float32), randn(3, 5, dtype=torch.float32, seed=1)
    project = interop.on_arrays(ops.project_l2_ball)
    out = np.empty((3, 5), dtype=np.float32)
    result = project(v.numpy(), center.numpy(), 0.5, out=out)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, ops.project_l2_ball(v, center, 0.5).numpy())
    assert result.ctypes.data == out.ctypes.data
    a, x, d, y = (t.numpy() for t in (randn(7, 5), randn(2, 5), randn(2, 7), randn(2, 7)))
    z, r, ax = interop.on_arrays(ops.sm_consistency)(a, x, d, y, 1.0)
    np.testing.assert_allclose(ax, x @ a.T)
    assert all(isinstance(value, np.ndarray) for value in (z, r))


def test_tensors_pass_through_with_their_gradients() -> None:
    v = randn(2, 5, dtype=torch.float64).requires_grad_()
    result = interop.on_arrays(ops.project_l2_ball)(v, torch.zeros_like(v), 0.5)
    assert isinstance(result, Tensor)
    assert result.requires_grad


@pytest.mark.gpu
def test_cupy_shares_memory_on_its_own_stream() -> None:
    cupy = pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    v = randn(3, 5, dtype=torch.float32)
    with cupy.cuda.Stream(non_blocking=True):
        array = cupy.asarray(v.numpy())
        assert interop.as_tensor(array).data_ptr() == array.data.ptr
        result = interop.on_arrays(ops.project_l2_ball)(array, cupy.zeros_like(array), 0.5)
        assert isinstance(result, cupy.ndarray)
        np.testing.assert_allclose(result.get(), ops.project_l2_ball(v, torch.zeros_like(v), 0.5), rtol=1e-5)


# --- operators ---------------------------------------------------------------------------------------------------
def sense() -> linops.Sense:
    return linops.Sense(randn(1, 3, 8, 6), torch.rand(1, 1, 8, 6, dtype=torch.float64) > 0.4)


def _import_peer(name: str) -> object:
    """deepinv and mrpro import torchvision, which wants two operators that a CPU build may lack."""
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip(name, exc_type=ImportError)


def parts(x: Tensor) -> Tensor:
    return torch.stack((x.real, x.imag), dim=1)


def test_sense_as_deepinv_physics() -> None:
    deepinv = _import_peer("deepinv")
    operator = sense()
    physics, x, y = interop.to_deepinv(operator), randn(2, 8, 6), randn(2, 3, 8, 6)
    torch.testing.assert_close(physics.A(parts(x)), parts(operator(x)))
    torch.testing.assert_close(physics.A_adjoint(parts(y)), parts(operator.adjoint(y)))
    torch.testing.assert_close(physics.A_adjoint_A(parts(x)), parts(operator.gram(x)))
    gradient = deepinv.optim.data_fidelity.L2().grad(parts(x), parts(y), physics)
    torch.testing.assert_close(gradient, parts(operator.adjoint(operator(x) - y)))


def test_real_operator_as_deepinv_physics() -> None:
    _import_peer("deepinv")
    operator = linops.Gradient((5, 4))
    physics, x = interop.to_deepinv(operator), randn(2, 1, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(physics.A(x), operator(x[:, 0])[:, None])


def test_deepinv_physics_as_operator() -> None:
    deepinv = _import_peer("deepinv")
    kernel = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    operator = interop.from_deepinv(deepinv.physics.Blur(filter=kernel, padding="circular"), (1, 8, 6))
    assert operator.range_shape == (1, 8, 6)
    x, y = randn(2, 1, 8, 6, dtype=torch.float32), randn(2, 1, 8, 6, dtype=torch.float32, seed=1)
    assert_adjoint(operator, operator.H, x, y, rtol=1e-6)
    assert (0.5 * operator @ linops.Identity((1, 8, 6))).adjoint_error() < 1e-6


def test_sense_as_mrpro_operator() -> None:
    _import_peer("mrpro")
    operator = sense()
    theirs, x, y = interop.to_mrpro(operator), randn(2, 8, 6), randn(2, 3, 8, 6)
    torch.testing.assert_close(theirs(x)[0], operator(x))
    torch.testing.assert_close(theirs.H(y)[0], operator.adjoint(y))
    torch.testing.assert_close(theirs.gram(x)[0], operator.gram(x))


def test_mrpro_operator_as_ours() -> None:
    mrpro = _import_peer("mrpro")
    operator = interop.from_mrpro(mrpro.operators.FastFourierOp(dim=(-2, -1)), (3, 1, 8, 6))
    assert operator.range_shape == (3, 1, 8, 6)
    x, y = randn(2, 3, 1, 8, 6), randn(2, 3, 1, 8, 6, seed=1)
    assert_adjoint(operator, operator.H, x, y, rtol=1e-13)
    torch.testing.assert_close(operator.pinv(y), operator.adjoint(y))


@pytest.mark.parametrize(("convert", "package"), [(interop.to_deepinv, "deepinv"), (interop.to_mrpro, "mrpro")])
def test_a_missing_package_is_named(convert: object, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("sys").modules, f"{package}.{'physics' if package == 'deepinv' else 'operators'}", None
    )
    with pytest.raises(MissingDependency, match=package):
        convert(linops.Identity((3,)))  # type: ignore[operator]


def test_deepinvs_denoiser_is_taken_where_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert deepinv_dncnn() is None
    deepinv = _import_peer("deepinv")
    net = deepinv.models.DnCNN(in_channels=1, out_channels=1, pretrained=None)
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints" / "dncnn_sigma2_gray.pth")
    found, x = deepinv_dncnn(), randn(2, 3, 8, 8, dtype=torch.float32)
    assert found is not None
    with torch.no_grad():
        torch.testing.assert_close(found(x), torch.cat([net(x[:, i : i + 1]) for i in range(3)], dim=1))
