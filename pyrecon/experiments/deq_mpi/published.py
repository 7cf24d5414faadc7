"""Figures printed in DEQ-MPI (Güngör et al.), to stand beside ours."""

from __future__ import annotations

from collections.abc import Mapping

Entry = tuple[float, float, float, float]  # pSNR in dB: mean, standard deviation; SSIM in percent: the same

_SNRS = (15.0, 25.0, 35.0)


def _table(*columns: float, **rows: str) -> dict[str, dict[float, Entry]]:
    """``"18.9 3.5 16.4 9.5 | .."``: a column after the other."""
    table = {}
    for key, text in rows.items():
        entries = [tuple(float(v) for v in cell.split()) for cell in text.split("|")]
        table[_NAMES[key]] = {c: (e[0], e[1], e[2], e[3]) for c, e in zip(columns, entries, strict=True)}
    return table


_NAMES = {
    "l1": "l1-ADMM",
    "tv": "TV-ADMM",
    "hyb": "Hyb-ADMM",
    "art": "l2-ART",
    "dip": "DIP",
    "pp": "PP-MPI",
    "deq": "DEQ-MPI",
}

# Vessels 13 x 26, one system matrix at 0.5 T/m for training and test; columns are SNRs in dB.
TABLE_1 = _table(
    *_SNRS,
    l1="18.9 3.5 16.4 9.5 | 23.2 2.2 32.6 14.0 | 28.9 1.3 58.6 13.8",
    tv="27.3 6.1 56.2 20.0 | 31.2 4.4 71.9 11.3 | 35.5 3.0 84.5 6.5",
    hyb="28.7 5.1 63.9 9.5 | 31.7 3.6 74.8 7.5 | 35.9 2.7 85.6 5.6",
    art="26.7 4.3 49.6 7.8 | 28.5 5.7 64.3 8.8 | 31.9 4.3 76.1 4.4",
    dip="16.7 2.6 13.5 9.1 | 22.6 1.7 30.9 16.6 | 28.2 2.9 54.6 21.0",
    pp="30.6 5.1 70.8 11.5 | 33.4 4.1 77.8 9.6 | 35.7 3.1 82.8 8.2",
    deq="32.1 4.5 75.2 9.9 | 34.8 3.5 81.5 8.3 | 37.7 2.6 88.1 5.7",
)
# The same with training at 0.5 T/m and test at 0.6 T/m.
TABLE_2 = _table(
    *_SNRS,
    l1="19.1 3.5 17.1 9.5 | 23.3 2.2 33.4 14.1 | 29.1 1.3 59.3 13.6",
    tv="27.5 6.1 57.4 19.5 | 31.3 4.4 72.8 10.8 | 35.7 3.0 84.9 6.3",
    hyb="28.7 5.0 64.4 9.4 | 31.8 3.6 75.3 7.3 | 36.0 2.7 86.0 5.4",
    art="26.7 4.3 49.8 8.0 | 28.5 5.8 64.6 8.8 | 32.0 4.3 76.5 4.4",
    dip="16.9 2.6 13.9 9.0 | 22.5 1.8 31.0 16.7 | 28.0 3.1 54.1 21.8",
    pp="30.8 5.0 71.3 11.4 | 33.5 4.1 78.4 9.2 | 35.8 3.1 83.4 7.8",
    deq="31.9 4.5 75.0 9.8 | 34.5 3.4 81.3 8.1 | 37.6 2.6 88.0 5.7",
)
# Vessels 26 x 52, system matrices upsampled twofold, training at 0.5 T/m and test at 0.6 T/m.
TABLE_3 = _table(
    *_SNRS,
    l1="23.7 1.9 24.3 8.5 | 28.8 1.5 46.9 8.2 | 33.4 3.2 73.5 4.9",
    tv="30.8 4.6 70.0 10.5 | 33.5 4.0 78.5 6.6 | 35.3 4.0 83.8 5.5",
    hyb="29.2 2.7 56.1 7.8 | 33.3 3.4 76.9 5.3 | 35.3 4.0 84.4 5.1",
    art="28.8 4.0 55.6 5.1 | 30.3 5.4 68.7 9.3 | 33.8 4.3 78.2 5.8",
    dip="23.7 1.9 25.5 11.5 | 29.3 2.3 52.1 15.2 | 31.0 3.1 64.7 16.1",
    pp="32.6 4.3 75.7 8.8 | 35.3 3.5 81.3 6.7 | 37.1 3.1 84.8 5.9",
    deq="33.9 3.9 78.7 7.8 | 36.0 3.3 82.9 6.5 | 37.7 3.2 86.3 5.5",
)
# Tori of 4 mm tubes at 15 dB on 26 x 52; columns are the diameters of their holes in mm.
TABLE_4 = _table(
    1.0,
    2.0,
    3.0,
    l1="29.6 2.2 84.5 20.4 | 29.2 2.0 86.7 19.6 | 29.0 1.9 89.5 16.8",
    tv="30.0 0.9 81.7 20.1 | 28.2 1.2 82.3 17.9 | 27.7 1.6 81.9 14.6",
    hyb="30.5 1.2 96.0 3.1 | 30.2 1.2 96.0 3.3 | 29.8 1.2 96.4 2.9",
    art="27.6 0.2 75.6 2.2 | 26.1 0.2 70.6 2.4 | 25.4 0.1 65.7 2.7",
    dip="32.5 2.3 93.6 4.0 | 33.4 2.0 94.2 3.7 | 32.5 2.8 92.9 4.1",
    pp="31.6 2.3 90.8 5.0 | 31.9 2.0 89.4 4.9 | 31.6 2.0 90.3 4.9",
    deq="36.0 1.5 96.1 1.4 | 35.7 1.1 95.9 1.5 | 35.4 0.8 95.4 1.6",
)
# Iterations, and milliseconds for one image of 13 x 26 on a V100.
TABLE_5 = {
    "l1-ADMM": (200, 55),
    "TV-ADMM": (100, 221),
    "Hyb-ADMM": (100, 236),
    "l2-ART": (10, 6966),
    "DIP": (20_000, 235_162),
    "PP-MPI": (150, 379),
    "DEQ-MPI": (25, 64),
}
# pSNR in dB of DEQ-MPI at 35 dB by what its two networks began with (section V-A).
INITIALISATION = {
    "both pre-trained": 37.6,
    "denoiser random": 29.9,
    "consistency random": 20.2,
    "both random": 20.1,
    "consistency on noise-free data": 29.9,
}
# dB by which DEQ-MPI leads over training SNRs of 5 to 45 dB, tested at 35 dB (Fig. 3).
FIGURE_3 = {"end-to-end": 2.1, "unrolled": 3.4, "without learned consistency": 0.9}


def of_vessels(shape: tuple[int, ...], selection_field: float) -> Mapping[str, Mapping[float, Entry]]:
    """The table of vessels on a grid, tested at a selection field in T/m; nothing where the paper has none."""
    if sorted(shape) == [13, 26]:
        return TABLE_2 if selection_field == 0.6 else TABLE_1
    return TABLE_3 if sorted(shape) == [26, 52] else {}
