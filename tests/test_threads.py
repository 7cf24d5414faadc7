"""Threads: kernels wait for nobody who has not begun, and loops give torch back what they took."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from pyrecon import _core
from pyrecon._threads import SMALL, all_threads, kernel_threads, one_thread_if_small, outside, shared_out
from pyrecon.data.coil_maps import espirit_maps
from pyrecon.ops import langevin_step, sense_normal, tv_prox


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    _core.hold_helpers(False)
    _core.delay_helpers(0)
    torch.set_num_threads(before)


def work() -> list[torch.Tensor]:
    """Kernels of one region and of many, several of their shares nested."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 80, 80, generator=g)  # below what torch shares out itself: a forked child of that hangs
    image, maps = (
        torch.view_as_complex(torch.randn(1, 64, 60, 2, generator=g)),
        torch.randn(1, 6, 64, 60, 2, generator=g),
    )
    mask = (torch.rand(1, 1, 64, 60, generator=g) > 0.5).float()
    return [
        langevin_step(x, x, 0.01, seed=1, counter=2),
        tv_prox(x[:1], 0.1, iterations=20),
        tv_prox(x, 0.1, iterations=20),
        sense_normal(image, torch.view_as_complex(maps), mask),
    ]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(u, v) for u, v in zip(a, b, strict=True))


def wait_for_help(seconds: float = 60.0) -> bool:
    """Whether helpers took shares; on a busy machine they come when they get a processor."""
    before, end = _core.helpers()[1], time.monotonic() + seconds
    while time.monotonic() < end:
        work()
        if _core.helpers()[1] > before:
            return True
    return False


def test_a_kernel_does_not_wait_for_helpers_that_do_not_come_and_takes_them_back() -> None:
    assert wait_for_help()
    assert _core.helpers()[0] >= 2
    expected = work()
    _core.hold_helpers(True)  # as if other processes held their processors
    before = _core.helpers()[1]
    for _ in range(100):  # more than the regions after which the pool rarely calls
        assert same(work(), expected)
    assert _core.helpers()[1] == before
    _core.hold_helpers(False)
    assert wait_for_help()
    assert same(work(), expected)


def test_helpers_that_stall_are_left_alone_for_a_while() -> None:
    assert wait_for_help()
    expected, before = work(), _core.helpers()[1]
    _core.delay_helpers(20_000)  # as if they lost their processors in the middle of every share
    for _ in range(100):
        assert same(work(), expected)
    assert _core.helpers()[1] - before < 100  # of some 1,500 shares, each of which would have cost 20 ms
    _core.delay_helpers(0)
    assert wait_for_help()


def test_a_forked_child_computes_the_same() -> None:
    """OpenMP's threads are gone in a child that is forked after their first region, and the next waits for ever."""
    expected = work()
    child = os.fork()
    if child == 0:
        os._exit(0 if same(work(), expected) else 1)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def test_python_threads_share_the_helpers() -> None:
    expected, results = work(), []

    def run() -> None:
        torch.set_num_threads(3)
        results.extend(same(work(), expected) for _ in range(10))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(results)


def test_small_loops_leave_torch_one_thread_and_kernels_theirs() -> None:
    with one_thread_if_small(SMALL):
        assert (torch.get_num_threads(), kernel_threads()) == (1, 3)
        with one_thread_if_small(1):
            assert (torch.get_num_threads(), kernel_threads()) == (1, 3)
        assert (torch.get_num_threads(), kernel_threads()) == (1, 3)
        with all_threads():
            assert (torch.get_num_threads(), kernel_threads()) == (3, 3)
        assert (torch.get_num_threads(), kernel_threads()) == (1, 3)
    assert (torch.get_num_threads(), kernel_threads()) == (3, 3)
    with one_thread_if_small(SMALL + 1):
        assert torch.get_num_threads() == 3


def test_an_exception_gives_the_threads_back() -> None:
    with pytest.raises(ZeroDivisionError), one_thread_if_small(1):
        raise ZeroDivisionError
    assert (torch.get_num_threads(), kernel_threads()) == (3, 3)
    with one_thread_if_small(1):
        with pytest.raises(ZeroDivisionError), all_threads():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_other_python_threads_keep_their_count() -> None:
    """torch.set_num_threads(1) would be what a thread begins with that uses torch for the first time meanwhile."""
    seen: list[int] = []
    with one_thread_if_small(1):
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert seen == [3]


def test_a_count_set_within_stays() -> None:
    with one_thread_if_small(1):
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 2


def test_parts_are_shared_out_once_each_with_one_thread_of_torch() -> None:
    done, seen = torch.zeros(1000), set[tuple[int, bool, bool, str]]()

    def work(part: slice) -> None:
        time.sleep(1e-4)  # so that others get some
        done[part] += 1
        threads = torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        seen.add((*threads, threading.current_thread().name))

    parts = [slice(i, i + 10) for i in range(0, 1000, 10)]
    shared_out(work, parts)
    assert torch.equal(done, torch.ones(1000))
    assert {known[:3] for known in seen} == {(1, True, False)}
    assert 2 <= len(seen) <= 3
    seen.clear()
    with torch.inference_mode(), one_thread_if_small(1):  # of the caller, whose threads it still has
        done = torch.zeros(1000)
        shared_out(work, parts)
    assert torch.equal(done, torch.ones(1000))
    assert {known[:3] for known in seen} == {(1, False, True)}
    assert len(seen) >= 2
    assert torch.get_num_threads() == 3


def test_an_error_in_a_part_is_raised_and_ends_the_others() -> None:
    done: list[int] = []

    def work(part: slice) -> None:
        if part.start == 3:
            raise ZeroDivisionError
        time.sleep(1e-3)
        done.append(part.start)

    with pytest.raises(ZeroDivisionError):
        shared_out(work, [slice(i, i + 1) for i in range(1000)])
    assert len(done) < 100
    assert torch.get_num_threads() == 3


def test_coil_maps_are_the_same_on_any_number_of_threads() -> None:
    g = torch.Generator().manual_seed(0)
    block = torch.view_as_complex(torch.randn(1, 4, 24, 24, 2, generator=g)) * torch.hann_window(24)
    found = espirit_maps(block, (230, 180), noise_std=0.0)
    torch.set_num_threads(1)
    for one, other in zip(found, espirit_maps(block, (230, 180), noise_std=0.0), strict=True):
        assert torch.equal(one, other)


def test_a_users_function_runs_with_the_threads_of_its_caller() -> None:
    f = outside(torch.get_num_threads)
    with one_thread_if_small(1):
        assert f() == 3
        assert torch.get_num_threads() == 1
        assert outside(torch.get_num_threads)() == 1
    assert f() == 3
