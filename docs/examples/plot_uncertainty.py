"""
One prior, three samplings, and what the data leave open
========================================================

A generative prior knows magnitude images, not how they were measured: the same
weights serve any sampling, with coil maps that are estimated together with the
image. Samples of the posterior show which pixels the data do not determine.
"""

# %%
# A generated knee that the prior has not seen, through four coils.
import torch

from pyrecon import plotting
from pyrecon.data.magnitudes import draw_magnitudes
from pyrecon.data.mri import undersample
from pyrecon.models import GenerativePrior
from pyrecon.models.mri import JointMRI, reconstruct_with_maps, sample_mri
from pyrecon.physics.masks import named_mask
from pyrecon.physics.mri import coil_maps, simulate

size = 64
drawn = draw_magnitudes(size, 3, 1, 7, kinds=("knees",), part="test")
truth = torch.from_numpy(drawn)
full = torch.ones(1, 1, size, 1, dtype=torch.bool)
maps = coil_maps((size, size), 4)
scan = simulate(truth.to(torch.complex64), maps, full, noise_std=0.02, seed=1)

# %%
# Lines with a few in the centre, spokes, and points of a Gaussian density. The
# maps are found with the image, from the same data, and then held while the
# posterior is sampled.
prior = GenerativePrior.from_pretrained("generative-64")
method = JointMRI(prior="generative", weights="generative-64")
rows = []
for name in ("cartesian-4x", "radial-6x", "gaussian-8x"):
    mask = named_mask(name, (size, size), seed=2)
    part = undersample(scan, mask)
    images, found_maps, report = reconstruct_with_maps(part, method)
    options = {"sampler": "ula", "chains": 2, "burn_in": 200, "samples": 1000}
    found, told = sample_mri(part, prior, joint=True, **options)
    image = images[0].abs()
    print(f"{name:13s} {report.seconds:4.1f} s, samples {told.seconds:4.1f} s")
    rows.append([
        plotting.Panel(mask[0, 0].expand(size, size).float().numpy(), name),
        plotting.Panel(image.numpy(), "joint image"),
        plotting.Panel(found_maps[0, 0].abs().numpy(), "map of a coil"),
        plotting.Panel(found.mean[0].numpy(), "posterior mean"),
        plotting.Panel(found.std[0].numpy(), "deviation", "", None, "magma"),
    ])  # fmt: skip

# %%
# Fewer data, more that is left open, and in other places.
plotting.figure(rows, panel_size=2.0)
