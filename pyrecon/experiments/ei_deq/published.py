"""Figures printed in the paper on equivariant deep equilibrium models, to stand beside ours."""

from __future__ import annotations

# Table 1, test PSNR in dB: 128 x 128 CT of 50 angles without noise; 320 x 320 single-coil MRI at 8x, noise 0.05.
TABLE_1: dict[tuple[str, str], dict[str, float]] = {
    ("mri", "supervised"): {
        "id": 32.61, "jfb": 32.51, "unet": 30.587, "unrolled-1": 29.16, "unrolled-3": 29.45, "unrolled-5": 29.33,
        "unrolled-7": 29.57, "denoiser": 25.07,
    },
    ("mri", "self"): {
        "id": 31.34, "jfb": 29.39, "unet": 28.02, "unrolled-1": 27.35, "unrolled-3": 27.56, "unrolled-5": 27.12,
        "unrolled-7": 27.24,
    },
    ("ct", "supervised"): {
        "id": 36.77, "jfb": 32.80, "unet": 36.33, "unrolled-1": 35.14, "unrolled-3": 34.57, "unrolled-5": 34.99,
        "unrolled-7": 35.80, "denoiser": 31.90,
    },
    ("ct", "self"): {
        "id": 35.41, "jfb": 33.52, "unet": 34.03, "unrolled-1": 31.73, "unrolled-3": 32.01, "unrolled-5": 32.34,
        "unrolled-7": 34.66,
    },
}  # fmt: skip

# Table 2, PSNR in dB of the difference of f(A T x) and T f(A x), mean and standard deviation over images.
TABLE_2: dict[tuple[str, str], dict[str, tuple[float, float]]] = {
    ("mri", "id"): {"self": (34.64, 2.449), "supervised": (34.66, 2.340)},
    ("mri", "unet"): {"self": (28.01, 1.311), "supervised": (25.62, 1.244)},
    ("ct", "id"): {"self": (47.57, 1.268), "supervised": (39.24, 2.734)},
    ("ct", "unet"): {"self": (42.55, 1.449), "supervised": (36.48, 1.989)},
}

# Table 3, the same of T F(x, A x) and F(T x, A T x).
TABLE_3: dict[str, dict[str, tuple[float, float]]] = {
    "mri": {"self": (39.96, 2.333), "supervised": (32.59, 2.062), "initial": (37.50, 0.564)},
    "ct": {"self": (52.44, 1.412), "supervised": (46.75, 2.056), "initial": (33.94, 0.768)},
}
