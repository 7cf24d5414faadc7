"""
MRI: undersampled multi-coil data
=================================

An eight-coil scan of a head phantom, three-fold undersampled along the
phase-encoding axis, reconstructed with coil maps estimated from its own
calibration lines.
"""

# %%
# Simulate. ``simulate`` gives what a reader of a raw-data file gives, noise
# scan included.
from pyrecon import plotting
from pyrecon.models.mri import METHODS, reconstruct_mri
from pyrecon.physics.mri import (
    acceleration,
    coil_maps,
    head_phantom,
    random_lines,
    simulate,
)

shape = (192, 192)
phantom = head_phantom(shape)
mask = random_lines(shape, 3, acl=24, seed=0)
scan = simulate(phantom, coil_maps(shape, 8), mask, noise_std=0.03, seed=0)
print(f"acceleration {acceleration(mask):.2f}")

# %%
# Every method sees whitened data and the same maps; regularisation weights are
# in units of the noise.
panels = [plotting.Panel(phantom[0].abs().numpy(), "truth")]
for method in METHODS.values():
    images, report = reconstruct_mri(scan, method())
    image, note = images[0].abs().numpy(), f"{report.seconds:.1f} s"
    panels.append(plotting.Panel(image, report.method, note))
rows = [panels[:3], panels[3:]]
plotting.figure(rows, spacing=[(0.22 / 192, 0.22 / 192)] * 2)

# %%
# The report says what was run and how well it explains the data.
print(report)
