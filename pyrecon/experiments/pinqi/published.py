"""What the paper says: nRMSE and MAE (s) of T1, Figure 5, and the tubes of Table 1."""

# By method: nRMSE as the text gives it, and MAE in s.
METHODS: dict[str, tuple[str, str]] = {
    "pinqi": ("< 0.10", "0.05"),
    "deept1": ("0.13", "0.07"),
    "mantis": ("> 0.2", "0.15"),
    "dopamine": ("> 0.2", "0.13"),
}
# nRMSE of end-to-end regression is lower than that of a separate one by more than this share.
END_TO_END = 0.20

# Table 1, tube by tube: mean and deviation in s, and the root mean square of the differences in ms, as the text has it.
TUBES: dict[str, tuple[tuple[float, float], ...]] = {
    "reference": (
        (0.28, 0.01), (0.38, 0.01), (0.39, 0.03), (0.45, 0.01), (0.59, 0.02), (0.60, 0.02), (1.15, 0.04), (1.42, 0.06),
        (1.76, 0.13),
    ),
    "PINQI": (
        (0.29, 0.02), (0.36, 0.02), (0.43, 0.05), (0.47, 0.03), (0.60, 0.02), (0.59, 0.04), (1.12, 0.03), (1.47, 0.12),
        (1.78, 0.08),
    ),
}  # fmt: skip
TUBES_RMS = 25
