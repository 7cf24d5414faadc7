"""
MPI: from a calibration and a scan to images
============================================

A field-free-line scanner is calibrated, real vessels (from a retina
photograph) are scanned on a grid four times finer than the system matrix's,
and two methods reconstruct them from the same whitened rows.
"""

# %%
# Calibrate and scan. The calibration is itself a measurement: noise, drifting
# background, a sample of finite size.
import torch

from pyrecon import metrics, plotting
from pyrecon.data.mpi import box_downsample, prepare_frames, prepare_system
from pyrecon.data.phantoms import retina_vessels
from pyrecon.experiments.demo import MPI_GRID, OVERSAMPLING, fine_grid
from pyrecon.models.mpi import METHODS, Reconstructor
from pyrecon.physics.mpi import Scanner

scanner = Scanner(gradient=0.5)
calibration = scanner.calibrate(MPI_GRID, seed=0)
vessels = torch.as_tensor(
    retina_vessels(fine_grid().shape, 4, seed=0), dtype=torch.float32
)
scan = scanner.measure(vessels, fine_grid(), snr_db=30.0, seed=1)

# %%
# Preprocess: background subtraction, rows with an SNR above 5, whitening. What
# is left is a real linear system with white noise of standard deviation one.
# The calibration's own noise is taken out of the matrix, as far as it is known
# to be noise: a few dozen singular values remain.
system = prepare_system(calibration, scan, snr_threshold=5.0)
frames = prepare_frames(system, scan)
print(system.matrix.shape, frames.y.shape, system.rank)

# %%
# Rows of the system matrix: the higher the harmonic, the finer the pattern.
amplitude = calibration.spectrum[0, 0].real
panels = []
for n in (2, 3, 4, 5):
    row = amplitude[abs(calibration.frequencies - n * 26e3).argmin()]
    pattern, peak = row.reshape(system.grid.shape), float(abs(row).max())
    panels.append(
        plotting.Panel(
            pattern, f"harmonic {n}", colormap="RdBu", window=(-peak, peak)
        )
    )
plotting.figure([panels], spacing=[MPI_GRID.spacing])

# %%
# Reconstruct. The matrix is factorised once; frames then come in batches or as
# an endless stream.
truth = box_downsample(vessels, OVERSAMPLING)
rows = [[plotting.Panel(image.numpy(), "truth") for image in truth]]
for name in ("tikhonov", "hyb"):
    images, report = Reconstructor(system, METHODS[name]())(frames)
    quality = metrics.psnr(images, truth)
    rows.append(
        [
            plotting.Panel(image.numpy(), report.method, f"{q:.1f} dB")
            for image, q in zip(images, quality, strict=True)
        ]
    )
    print(report, end="\n\n")
# sphinx_gallery_thumbnail_number = 2
plotting.figure(rows, spacing=[MPI_GRID.spacing] * len(rows))
