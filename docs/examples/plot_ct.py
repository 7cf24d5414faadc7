"""
CT: a fan-beam scan from all sides, and from few
================================================

A disc with holes, scanned as in the Helsinki Tomography Challenge, written to
a file and reconstructed from a full turn, from 90 and from 30 degrees.
"""

# %%
# A real scan of the challenge takes one command, the method being chosen by
# what the views cover::
#
#     $ pyrecon reconstruct htc2022_tb_full.mat --figure disc.png
#
# Here the file is simulated, with the challenge's distances, a detector of
# 192 pixels and some noise. ``pyrecon simulate ct`` does the same.
import tempfile
import warnings
from pathlib import Path

from pyrecon import io, plotting
from pyrecon.data.ct import coverage, some_views
from pyrecon.io.sinogram import write_sinogram
from pyrecon.models.ct import FBP, TV, reconstruct_ct
from pyrecon.physics import ct

geometry = ct.scanner("fan", views=360, n_det=192)
disc = ct.phantom("disc", geometry, seed=1)
file = Path(tempfile.mkdtemp()) / "disc.h5"
write_sinogram(file, ct.simulate(disc, geometry, noise_std=0.01))

# %%
# Whatever the format, reading gives line integrals with their rays.
scan = io.read(file)
print(scan.geometry)
print(scan.metadata)
panel = plotting.Panel(scan.sinogram[0].T, "detector pixels over views")
plotting.figure([[panel]], panel_size=3)

# %%
# A limited angle says what it is: which edges no ray is tangent to. Filtered
# back-projection cannot have them, and its values fall with the arc; total
# variation closes the disc and keeps its holes, less well at 30 degrees.
warnings.filterwarnings("ignore", "limited angle")  # it is printed here
truth = ct.truth(disc, geometry)[0].numpy()
window = (0.0, float(truth.max()))
rows = []
for degrees in (360, 90, 30):
    part = some_views(scan, slice(0, degrees))
    print(coverage(part.geometry))
    line = [plotting.Panel(truth, "disc", window=window)]
    for method in (FBP(), TV()):
        images, report = reconstruct_ct(part, method)
        image, note = images[0].numpy(), f"{report.seconds:.1f} s"
        title = f"{report.method}, {degrees} degrees"
        line.append(plotting.Panel(image, title, note, window))
    rows.append(line)
# sphinx_gallery_thumbnail_number = 2
plotting.figure(rows, spacing=[scan.grid.spacing] * 3)

# %%
# The report says what was assumed, how well the image explains the data, and
# what is missing.
print(report)
