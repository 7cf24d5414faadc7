"""The average brain of 152 people for quantitative MRI: axial slices of MNI152's tissue maps, T1 and M0 of each tissue.

Nothing of it is drawn by the package, so models that were trained on generated brains are tested on it. The maps of
1 mm (ICBM 2009a, nonlinear, symmetric; V. S. Fonov et al., NeuroImage 54 (2011)) come in nilearn's wheel; nothing is
fetched. They are of many brains: pixels are mixed more than one brain's are, and there is no skull.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pyrecon._check import check_count, check_size
from pyrecon._errors import MissingDependency
from pyrecon.data._slices import averaged, frame_of, seen, with_brain
from pyrecon.data.brains import CLASSES, Brains, fill, nothing

__all__ = ["mni_brains"]

_STREAM = 10
_STEP = 2 / (1 + 5**0.5)  # multiples of the golden ratio, modulo one, are spread evenly however many are taken
_TISSUES = ("grey matter", "white matter", "fluid")


def mni_brains(shape: tuple[int, int], count: int = 16, *, seed: int = 0, first: int = 0) -> Brains:
    """Slices of the average brain with random T1 and M0 of its tissues, as those of :mod:`pyrecon.data.brains`.

    Parameters
    ----------
    shape, count
        Maps ``(count, H, W)``: grey and white matter in their shares, and fluid in the rest of the brain's mask; the
        brain with a margin in the frame, pixels square.
    seed, first
        Brain i depends on ``(seed, first + i)`` alone, its slice on ``first + i``: a few are spread over the brain.
        Slices with less than a tenth of the largest slice's brain are left out.

    Raises
    ------
    MissingDependency
        without nilearn, which the extra ``atlas`` brings.
    """
    for name, value in (("count", count), ("seed", seed), ("first", first)):
        check_count(name, value, 0)
    check_size("shape", shape, 2)
    tissues = _tissues()
    frame = frame_of((tissues.sum(0) > 0.5).any(0), shape)
    chosen = with_brain(tissues.sum((0, 2, 3)))
    places = [next(k for k, tissue in enumerate(CLASSES) if tissue.name == name) for name in _TISSUES]
    found = nothing(count, shape)
    for i in range(count):
        rng = np.random.default_rng((seed, _STREAM, first + i))
        slice_ = chosen[int((0.5 + (first + i) * _STEP) % 1 * len(chosen))]
        shares = np.zeros((len(CLASSES), *shape))
        shares[places] = averaged(seen(tissues[:, slice_], frame), shape)
        fill(found, i, shares, rng, seed=seed, number=first + i)
    return found


@lru_cache(maxsize=1)
def _tissues() -> NDArray[np.float32]:
    """Shares ``(3, Z, Y, X)`` of grey and white matter and fluid, read-only; the front is at the top."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise MissingDependency("nilearn", "atlas", "the MNI152 brain") from error
    grey, white, mask = (
        np.asarray(load(resolution=1).get_fdata(dtype=np.float32))
        for load in (
            datasets.load_mni152_gm_template, datasets.load_mni152_wm_template, datasets.load_mni152_brain_mask,
        )
    )  # fmt: skip
    matter = np.stack([grey, white]).clip(0, 1)
    matter *= mask / np.maximum(matter.sum(0), 1)
    tissues = np.concatenate([matter, (mask - matter.sum(0))[None].clip(0)])
    tissues = np.ascontiguousarray(tissues.transpose(0, 3, 2, 1)[:, :, ::-1])
    tissues.flags.writeable = False
    return tissues
