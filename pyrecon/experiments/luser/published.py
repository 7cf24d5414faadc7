"""Figures printed in the paper on LUSER, to stand beside ours.

Guan, Jin, Romberg and Davenport, Loop unrolled shallow equilibrium regularizer (LUSER), 2022: CelebA with a 9x9 blur,
LoDoPaB-CT with 200 of 1000 angles, single-coil knees of fastMRI with 4 and 8 times fewer columns.
"""

from __future__ import annotations

# Table 2: PSNR in dB and SSIM by task, network and loss.
QUALITY: dict[str, dict[tuple[str, str], tuple[float, float]]] = {
    "deblur": {
        ("lu-dncnn", "final"): (29.93, 0.862),
        ("lu-dncnn", "aux"): (30.39, 0.871),
        ("deq4ip", "final"): (31.57, 0.895),
        ("luser-sw", "final"): (30.30, 0.869),
        ("luser-sw", "aux"): (30.65, 0.878),
        ("luser-dw", "final"): (31.40, 0.891),
        ("luser-dw", "aux"): (31.15, 0.888),
    },
    "ct": {
        ("lu-dncnn", "final"): (30.59, 0.844),
        ("lu-dncnn", "aux"): (31.59, 0.859),
        ("deq4ip", "final"): (31.79, 0.868),
        ("luser-sw", "final"): (28.82, 0.801),
        ("luser-sw", "aux"): (28.04, 0.797),
        ("luser-dw", "final"): (31.83, 0.860),
        ("luser-dw", "aux"): (31.66, 0.859),
    },
    "mri-4x": {
        ("lu-dncnn", "final"): (29.01, 0.668),
        ("lu-dncnn", "aux"): (29.02, 0.671),
        ("deq4ip", "final"): (29.01, 0.678),
        ("luser-sw", "final"): (28.82, 0.662),
        ("luser-sw", "aux"): (29.18, 0.685),
        ("luser-dw", "final"): (29.86, 0.740),
        ("luser-dw", "aux"): (29.37, 0.713),
    },
    "mri-8x": {
        ("lu-dncnn", "final"): (27.50, 0.576),
        ("lu-dncnn", "aux"): (27.65, 0.572),
        ("deq4ip", "final"): (27.51, 0.570),
        ("luser-sw", "final"): (27.42, 0.562),
        ("luser-sw", "aux"): (27.42, 0.560),
        ("luser-dw", "final"): (28.06, 0.630),
        ("luser-dw", "aux"): (27.55, 0.596),
    },
}

# Table 3: weights by task and network, and the largest even batch (or 1; None: not even that) in 8, 10 and 24 GB.
WEIGHTS: dict[str, dict[str, int]] = {
    "deblur": {"lu-dncnn": 558_580, "deq4ip": 558_580, "luser-sw": 96_503, "luser-dw": 770_073},
    "ct": {"lu-dncnn": 556_033, "deq4ip": 556_033, "luser-sw": 93_954, "luser-dw": 751_625},
    "mri": {"lu-dncnn": 557_185, "deq4ip": 557_185, "luser-sw": 95_107, "luser-dw": 760_849},
}
MEMORIES = (8, 10, 24)
BATCHES: dict[str, dict[str, tuple[int | None, int | None, int | None]]] = {
    "deblur": {"lu-dncnn": (1, 1, 4), "deq4ip": (16, 16, 68), "luser-sw": (10, 14, 34), "luser-dw": (10, 14, 34)},
    "ct": {"lu-dncnn": (None, None, 2), "deq4ip": (4, 6, 20), "luser-sw": (2, 4, 10), "luser-dw": (2, 4, 10)},
    "mri": {"lu-dncnn": (None, 2, 4), "deq4ip": (4, 6, 16), "luser-sw": (4, 4, 12), "luser-dw": (4, 4, 12)},
}

# Table 4: words, by network.
PROPERTIES: dict[str, dict[str, str]] = {
    "lu-dncnn": {"training": "fast", "evaluation": "fast", "stability": "stable", "memory": "large"},
    "deq4ip": {"training": "slow", "evaluation": "slow", "stability": "unstable", "memory": "small"},
    "luser-sw": {"training": "moderate", "evaluation": "moderate", "stability": "stable", "memory": "moderate"},
    "luser-dw": {"training": "moderate", "evaluation": "moderate", "stability": "stable", "memory": "moderate"},
}
