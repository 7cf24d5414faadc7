"""
CT: a network that never saw an image
=====================================

Equivariant imaging trains a deep equilibrium model on sparse-view sinograms
alone: no ground truth, in a minute on one core.
"""

# %%
# Bodies of 32 x 32 pixels seen from 12 directions. Training takes 150
# sinograms; the images behind them reach neither the loss nor the choice of
# weights, which goes by the loss of held-out sinograms.
import statistics
import tempfile
import warnings
from pathlib import Path

import torch

from pyrecon import metrics, plotting
from pyrecon.models import DEGrad
from pyrecon.solvers import ConvergenceWarning
from pyrecon.train import train
from pyrecon.train.de_grad import Config, DEGradTraining
from pyrecon.train.problem import Problem, operator_of
from pyrecon.transforms import QuarterTurns, Rotations, commutes

config = Config(loss="ei", size=32, angles=12, pool=150, validation=8).changed(
    {"equilibrium.steps": 60, "equilibrium.rate": 1e-3, "validate_every": 20}
)

# %%
# Why it can work: bodies may lie in the scanner at any angle, and the scanner
# does not commute with rotations. A rotated reconstruction, measured anew,
# shows what the 12 directions do not. A quarter turn takes every one of them
# to another: from such a group nothing could be learned, and training refuses
# it.
physics = operator_of(config)
like = torch.zeros(1, 32, 32)
for group in (Rotations(), QuarterTurns()):
    print(f"commutes with {group}: {commutes(physics, group, like)}")

# %%
# The denoiser inside learns to remove noise from photographs first; then the
# equilibrium ``x = x - (A^T (A x - y) + x - D(x))`` trains on measurement
# consistency and equivariance, with implicit gradients through both passes.
losses = []
with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    denoiser = train(
        DEGradTraining,
        Path(folder) / "denoiser",
        None,
        config.changed({"equilibrium.steps": 0}),
    )
    model = train(
        DEGradTraining,
        Path(folder) / "equilibrium",
        None,
        config.changed({"denoiser.steps": 0}),
        initial=Path(folder) / "denoiser" / "weights.safetensors",
        report=lambda progress: losses.append(progress.loss),
    )
first, last = statistics.fmean(losses[:10]), statistics.fmean(losses[-10:])
print(f"loss: {first:.2e} in the first ten steps, {last:.2e} in the last")

# %%
# Images that no run has drawn, with their truth at last. Least squares is all
# that 12 directions say; the denoiser alone, put into the equilibrium as
# regularisation by denoising (RED), adds what photographs taught it.
assert isinstance(denoiser, DEGrad)
assert isinstance(model, DEGrad)
nothing = torch.zeros(0, 32, 32)
test = Problem(config, nothing, nothing, physics).test(16)
truth, y = test.images, test.y
shown = {
    "truth": truth,
    "least squares": physics.pinv(y),
    "before": denoiser.reconstruct(y, physics).value,
    "after": model.reconstruct(y, physics).value,
}
rows = []
for name, images in shown.items():
    quality = metrics.psnr(images, truth, peak=1.0)
    if name != "truth":
        print(f"{name:13} {float(quality.mean()):.1f} dB")
    notes = ["" if name == "truth" else f"{q:.1f} dB" for q in quality]
    rows.append(
        [
            plotting.Panel(image.numpy(), name, note, (0.0, 1.0))
            for image, note in zip(images[:6], notes, strict=False)
        ]
    )
plotting.figure(rows, panel_size=1.2)

# %%
# What training asked for: reconstructing a turned body is turning the
# reconstruction. PSNR of the difference, higher is more equivariant.
turn = QuarterTurns().by(1)
for name, net in (("before", denoiser), ("after", model)):
    straight = net.reconstruct(physics(truth), physics).value
    turned = net.reconstruct(physics(turn(truth)), physics).value
    error = metrics.psnr(turned, turn(straight), peak=1.0)
    print(f"{name:7} {float(error.mean()):.1f} dB")
