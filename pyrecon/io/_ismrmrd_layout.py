"""How ISMRMRD lays out a readout: its flags and counters, and the records of the file's table."""

from __future__ import annotations

import h5py
import numpy as np

COUNTERS = ("slice", "contrast", "phase", "repetition", "set")
OTHER_COUNTERS = ("segment", *(f"user {i}" for i in range(8)))

NOISE, CALIBRATION, CALIBRATION_AND_IMAGE, REVERSE, PHASE_CORRECTION = (1 << (bit - 1) for bit in (19, 20, 21, 22, 24))
# Readouts that no image is made of, by the flag's bit; bits 1 to 18 and 25 mark firsts and lasts.
OTHER_KINDS = {
    23: "navigator", 26: "feedback", 27: "dummy", 28: "feedback", 29: "surface-coil correction",
    30: "phase stabilisation", 31: "phase stabilisation",
}  # fmt: skip
NOT_IMAGE = PHASE_CORRECTION | sum(1 << (bit - 1) for bit in OTHER_KINDS)
COMPRESSED = sum(1 << (bit - 1) for bit in (53, 54, 55, 56))
# What bits 57 to 64 mean only their writer knows, and 32 to 52 are not defined.
UNKNOWN = sum(1 << (bit - 1) for bit in (*range(32, 53), *range(57, 65)))

INDEX = np.dtype(
    [(name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", *COUNTERS[:3])]
    + [("repetition", "<u2"), ("set", "<u2"), ("segment", "<u2"), ("user", "<u2", (8,))]
)
INDEX_NAMES = ("kspace_encode_step_1", "kspace_encode_step_2", *COUNTERS)
HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        *((name, "<f4", (3,)) for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")),
        ("idx", INDEX),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
RECORD = np.dtype([("head", HEAD), ("traj", h5py.vlen_dtype("<f4")), ("data", h5py.vlen_dtype("<f4"))])
NEEDED = (
    "flags", "number_of_samples", "active_channels", "discard_pre", "discard_post", "center_sample",
    "encoding_space_ref", "idx",
)  # fmt: skip
