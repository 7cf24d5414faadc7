"""Threads of torch's own operations in the loops of solvers.

Kernels of this package share out their work so that they lose little beside other busy processes
(csrc/cpu/threads.cpp). torch's operations are regions of OpenMP with a barrier at the end. Beside one busy process on
two cores a thread comes there some 3 ms late, a time slice, and a loop of operations that take microseconds takes 50
times as long. What a second thread could save is known before: a loop whose operations are small leaves torch one
thread, and its kernels theirs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import torch

from pyrecon import _core

# Numbers that an operation goes through. A sum of 131,072 complex ones takes 35 us on one thread and 20 on two, of
# 41,400 (230 x 180) 13 and 7 (Zen 4). In a matrix product 64 multiplications count as one number: 150 us at most.
SMALL = 1 << 17
PRODUCTS = 64

P = ParamSpec("P")
R = TypeVar("R")


class _Here(threading.local):
    before: tuple[int, int] | None = None  # threads of OpenMP and MKL where torch is down to one


_here = _Here()


def kernel_threads() -> int:
    """Threads for a kernel: as many as torch has, or had where a loop has taken all but one from it."""
    return _here.before[0] if _here.before is not None else torch.get_num_threads()


@contextlib.contextmanager
def one_thread_if_small(work: int) -> Iterator[None]:
    """Give torch's operations one thread where ``work``, in the numbers that one goes through, is at most ``SMALL``.

    Holds for the calling Python thread and nests; on the way out, by an exception too, all is as it was. A thread count
    that somebody sets within stays.
    """
    if work > SMALL or _here.before is not None or torch.get_num_threads() == 1:
        yield
        return
    # Not torch.set_num_threads: other Python threads that use torch for the first time just now would keep that one.
    before = _here.before = _core.limit_threads(1, 1)
    try:
        yield
    finally:
        _here.before = None
        within = _core.limit_threads(*before)
        if within[0] != 1:
            _core.limit_threads(*within)


@contextlib.contextmanager
def all_threads() -> Iterator[None]:
    """Within :func:`one_thread_if_small`, as it was before."""
    before = _here.before
    if before is None:
        yield
        return
    limit, _here.before = _core.limit_threads(*before), None
    try:
        yield
    finally:
        _here.before = before
        _core.limit_threads(*limit)


def shared_out(work: Callable[[slice], None], parts: Sequence[slice]) -> None:
    """``work`` of all parts, by as many Python threads as torch has, each with one of torch's.

    For parts of a millisecond and more on the CPU, of which each writes what is its own. Threads take parts as they are
    done with others, so one that waits for a processor delays one part, not every operation.
    """
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    waiting = iter(parts)
    lock, errors = threading.Lock(), list[BaseException]()

    def help_out() -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad), one_thread_if_small(0):
            while not errors:
                with lock:
                    part = next(waiting, None)
                if part is None:
                    return
                try:
                    work(part)
                except BaseException as error:
                    errors.append(error)

    helpers = [threading.Thread(target=help_out) for _ in range(min(kernel_threads(), len(parts)) - 1)]
    for helper in helpers:
        helper.start()
    help_out()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]


def outside(f: Callable[P, R]) -> Callable[P, R]:
    """``f``, a user's function, for calls within :func:`one_thread_if_small`, with the threads of this place."""
    if _here.before is not None:
        return f

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with all_threads():
            return f(*args, **kwargs)

    return call
