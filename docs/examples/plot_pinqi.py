"""
T1 maps straight from undersampled k-space
==========================================

Five saturation-recovery images of a brain, a quarter of the lines of each. A
fit of images that were reconstructed one by one shows their artefacts; PINQI
finds images and maps together.
"""

# %%
# A generated brain whose T1 is known, and its scan: six coils, lines of their
# own for every image, noise. It is none that the weights were trained on.
import numpy as np
import torch

from pyrecon import plotting
from pyrecon.metrics import t1_errors
from pyrecon.models.mri import PINQIMRI, SenseFit, reconstruct_maps
from pyrecon.physics.t1 import TIMES, scan_brains, unseen_brains

known = unseen_brains(1, 96, seed=1)
scan = scan_brains(known, TIMES["five"], acceleration=4.0, noise=0.01, seed=1)
print(scan.kspace.shape, f"{scan.mask.mean():.0%} of the samples")

# %%
# CG-SENSE and a fit of every voxel, which comes with standard errors; then
# PINQI with the weights that ship. Both estimate the coil maps from the scan.
methods = {"CG-SENSE + fit": SenseFit(), "PINQI": PINQIMRI("pinqi-t1")}
found = {}
for name, method in methods.items():
    found[name], report = reconstruct_maps(scan, method)
    print(name, f"{report.seconds:.2f} s")

# %%
# How far from the truth, inside the brain.
truth, inside = torch.from_numpy(known.t1), torch.from_numpy(known.inside)
for name, maps in found.items():
    errors = t1_errors(torch.from_numpy(maps.values["T1"]), truth, inside)
    numbers = ", ".join(f"{k} {float(v):.3f}" for k, v in errors.items())
    print(f"{name:15s} {numbers}")

# %%
# The maps, and how far off they are.
shown, errors = [], []
images = {name: maps.values["T1"][0] for name, maps in found.items()}
for name, t1 in (images | {"truth": known.t1[0]}).items():
    t1 = np.where(known.inside[0], t1, np.nan)
    off = np.abs(t1 - known.t1[0])
    shown.append(plotting.Panel(t1, name, "", (0.0, 3.0), "viridis", "s"))
    errors.append(plotting.Panel(off, "", "", (0.0, 0.5), "magma", "s"))
plotting.figure([shown, errors], panel_size=2.6)
