"""
MPI: a deep equilibrium model with the weights that ship
========================================================

DEQ-MPI against the best classical method on the same data, and what its
iteration does: the image settles, and stays where it is.
"""

# %%
# Vascular trees that no training run has drawn, measured at 25 dB with the
# calibrated system matrix and read with its blurred twin, so that data and
# model differ.
import torch

from pyrecon import metrics, plotting
from pyrecon.experiments.mpi import (
    GRID,
    Run,
    generated_images,
    measured_scenario,
    measured_system,
)
from pyrecon.implicit import residual_curve
from pyrecon.models import DEQMPI
from pyrecon.models.mpi import DEQ, HybADMM, PnP
from pyrecon.models.mpi.system import compressed
from pyrecon.physics.mpi import Scanner
from pyrecon.solvers import Anderson, Picard

system = measured_system(Scanner(gradient=0.5).calibrate(GRID, seed=0))
vessels = generated_images(test=6, validation=16)
problem = measured_scenario(system, vessels, 25.0, seed=0)
truth = problem.test.images

# %%
# Without ``weights`` each frame gets the shipped model whose SNR is nearest. A
# method runs in a :class:`~pyrecon.models.mpi.Reconstructor` (here inside
# ``Run``, which knows the test data).
rows = [[plotting.Panel(image.numpy(), "truth") for image in truth]]
for method in (HybADMM(), PnP(), DEQ()):
    images, milliseconds = Run(method, problem).timed()
    quality = metrics.psnr(images, truth)
    mean = float(quality.mean())
    print(f"{method.name:8} {mean:.1f} dB, {milliseconds:.1f} ms per image")
    rows.append(
        [
            plotting.Panel(image.numpy(), method.name, f"{q:.1f} dB")
            for image, q in zip(images, quality, strict=True)
        ]
    )
plotting.figure(rows, spacing=[GRID.spacing] * len(rows), panel_size=1.2)

# %%
# The equilibrium is what the weights were trained at: more iterations change
# little.
steps = (1, 2, 5, 10, 25, 50, 100, 200)
lines = {
    method.name: [
        (n, Run(method(iterations=n), problem).quality()) for n in steps
    ]
    for method in (DEQ, PnP)
}
plotting.curves(lines, "iterations", "pSNR, dB", log="x")

# %%
# Its step is a function of (image, image dual, data dual), and pyrecon's
# diagnostics work on it: here how the relative change falls, with Anderson
# mixing and without.
model = DEQMPI.from_pretrained("deq-mpi-25dB")
small = compressed(problem.system, 25.0)
data, radius = problem.test.ball(problem.system, model.kappa)
step, start = small.step_of(model), small.start(data)
lines = {}
for solver in (Picard(), Anderson(memory=5)):
    with torch.no_grad():
        curve = residual_curve(
            step, start, (data, radius), solver=solver, max_iter=60
        )
    lines[type(solver).__name__] = list(enumerate(curve.mean(1).tolist(), 1))
plotting.curves(lines, "iterations", "relative change", log="y")
