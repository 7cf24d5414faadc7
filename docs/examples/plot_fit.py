"""
T2 maps with honest errors
==========================

Twelve magnitude images of a head whose last echoes are as dark as the noise.
Least squares takes what noise leaves of a magnitude for signal, the Rician
likelihood does not.
"""

# %%
# A head with a T2 in every pixel, scanned at twelve echo times. Magnitudes of
# a complex signal with noise in both of its parts.
import torch

from pyrecon import ops, plotting
from pyrecon.physics.mri import head_phantom

NOISE = 0.025
head = head_phantom((128, 128)).abs()
inside = head[0] > 0.05
t2 = 0.03 + 0.05 * head
times = torch.arange(1, 13) * 0.015
clean = head[:, None] * torch.exp(-times[:, None, None] / t2[:, None])
generator = torch.Generator().manual_seed(0)
noise = NOISE * torch.randn(2, *clean.shape, generator=generator)
images = torch.hypot(clean + noise[0], noise[1])

# %%
# One call fits every pixel; the second knows the noise.
mask = inside[None]
squares = ops.fit_voxels("t2", images, times, mask=mask)
rician = ops.fit_voxels("t2", images, times, mask=mask, noise_std=NOISE)
print(rician.counts())

# %%
# How far from the truth, in standard errors: no bias, and two thirds within
# one of them, is what a fit with honest errors has.
found = {"least squares": squares, "Rician": rician}
bright = inside & (head[0] > 0.15)
for name, fit in found.items():
    z = (fit.maps()["T2"] - t2)[0] / fit.errors()["T2"][0]
    z = z[bright & z.isfinite()]
    share = (z.abs() < 1).float().mean()
    print(f"{name:14s} median {z.median():+.2f}, {share:.0%} within one")

# %%
# The maps.
WINDOW = (0.0, 0.1)
panels = [
    plotting.Panel(image, title, window=window, colormap=colors, bar=unit)
    for image, title, window, colors, unit in (
        (images[0, -1], "last echo", None, "gray", " "),
        (t2[0] * inside, "T2, truth", WINDOW, "viridis", "s"),
        (squares.maps()["T2"][0], "least squares", WINDOW, "viridis", "s"),
        (rician.maps()["T2"][0], "Rician", WINDOW, "viridis", "s"),
        (rician.errors()["T2"][0], "its error", (0.0, 0.02), "magma", "s"),
    )
]
plotting.figure([panels], panel_size=2.4)
