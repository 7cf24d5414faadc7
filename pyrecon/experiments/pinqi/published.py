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
