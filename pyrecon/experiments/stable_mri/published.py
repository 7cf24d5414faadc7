"""Tables 1 and 2 as printed: PSNR in dB, NMSE in hundredths, SSIM, by mask and method."""

from __future__ import annotations

Cell = tuple[float, float, float]


def _of(methods: tuple[str, ...], psnr: str, nmse: str, ssim: str) -> dict[str, Cell]:
    columns = [[float(value) for value in text.split()] for text in (psnr, nmse, ssim)]
    return {name: (p, n, s) for name, p, n, s in zip(methods, *columns, strict=True)}


_SINGLE = ("zf", "tv", "unet", "map", "mmse")
TABLE_1: dict[str, dict[str, Cell]] = {
    "random-3x": _of(
        _SINGLE, "12.93 20.81 19.52 30.87 32.44", "64.24 10.22 12.83 1.34 1.02", "0.48 0.73 0.57 0.86 0.90"
    ),
    "cartesian-4x": _of(
        _SINGLE, "24.16 31.47 34.16 35.53 36.17", "5.96 0.88 0.44 0.32 0.28", "0.70 0.85 0.89 0.89 0.91"
    ),
    "spiral-5x": _of(_SINGLE, "21.21 31.25 27.76 35.35 36.21", "10.24 0.92 1.90 0.34 0.28", "0.62 0.85 0.78 0.88 0.90"),
    "radial-6x": _of(_SINGLE, "27.02 32.86 31.76 35.04 35.47", "3.29 0.64 0.76 0.36 0.33", "0.48 0.71 0.65 0.86 0.89"),
}

_PARALLEL = ("zf", "tv", "varnet", "map", "mmse")
TABLE_2_IN: dict[str, dict[str, Cell]] = {
    "cartesian-4x": _of(
        _PARALLEL, "27.19 31.87 36.92 35.23 35.28", "2.24 0.79 0.24 0.36 0.36", "0.74 0.81 0.92 0.89 0.89"
    ),
    "cartesian-4x-swapped": _of(
        _PARALLEL, "31.13 33.03 24.72 36.23 36.01", "0.93 0.59 4.01 0.28 0.30", "0.81 0.83 0.67 0.90 0.90"
    ),
    "cartesian-4x-acl4": _of(
        _PARALLEL, "24.14 25.81 32.16 35.33 35.22", "4.51 3.48 0.70 0.35 0.36", "0.69 0.70 0.89 0.89 0.89"
    ),
    "radial-11x": _of(
        _PARALLEL, "28.76 32.47 20.56 34.46 34.16", "1.57 0.67 10.13 0.42 0.45", "0.75 0.81 0.69 0.86 0.86"
    ),
    "gaussian-8x": _of(
        _PARALLEL, "32.10 34.14 20.74 35.35 35.41", "0.74 0.45 9.95 0.34 0.34", "0.84 0.85 0.68 0.88 0.89"
    ),
}
# Out of distribution, fat-suppressed knees: "map" with the weight of the plain ones (the paper's dagger), "map*" with
# one of their own.
_OUTSIDE = ("zf", "tv", "varnet", "map", "map*")
TABLE_2_OUT: dict[str, dict[str, Cell]] = {
    "cartesian-4x": _of(
        _OUTSIDE, "26.09 31.30 30.00 30.60 31.71", "5.35 1.48 2.38 1.95 1.35", "0.68 0.73 0.77 0.73 0.73"
    ),
    "cartesian-4x-swapped": _of(
        _OUTSIDE, "26.58 31.56 28.57 30.89 31.65", "5.15 1.40 2.90 2.24 1.37", "0.71 0.73 0.71 0.75 0.73"
    ),
    "cartesian-4x-acl4": _of(
        _OUTSIDE, "24.98 29.91 29.12 29.93 31.26", "6.65 2.09 2.79 2.92 1.53", "0.65 0.71 0.76 0.73 0.72"
    ),
    "radial-11x": _of(
        _OUTSIDE, "25.06 31.15 26.26 31.43 31.36", "7.37 1.53 4.97 1.45 1.57", "0.62 0.71 0.69 0.73 0.70"
    ),
    "gaussian-8x": _of(
        _OUTSIDE, "26.75 31.52 23.46 31.87 32.09", "5.46 1.42 9.93 1.43 1.25", "0.71 0.75 0.68 0.76 0.75"
    ),
}
