"""Model cards of the weights that ship, from what their files say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyrecon import plotting
from pyrecon.models import DEQMPI
from pyrecon.models.weights import Card, shipped_weights
from pyrecon.nn import BallConsistency, ExactConsistency

_HEADS = ("name", "for", "SNR, dB", "voxels", "data step", "penalty", "steps x batch", "validation, dB", "began with")
_KINDS = {BallConsistency: "l2-ball", ExactConsistency: "y itself"}


def markdown() -> str:
    """A table with a line for each file."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
    for name, model, card in _shipped():
        used = card.role in ("equilibrium", "unrolled")
        layout = getattr(model.consistency, "layout", None)
        step = f"learned, {len(layout.rows)} rows" if layout is not None else _KINDS[type(model.consistency)]
        cells = [
            f"`{name}`",
            card.role,
            f"{card.data['snr_db']:g}" if card.role != "denoiser" else "",
            f"{card.shape[0]} x {card.shape[1]}",
            step if used else "",
            f"{model.penalty:g}" if used else "",
            _schedule(card.training),
            ", ".join(f"{quality:.2f}" for quality in card.training["quality_db"].values()),
            "; ".join(_schedule(facts) for facts in _ancestors(card.training)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curves() -> Any:
    """Quality on the validation set against the steps of the last stage."""
    lines = {}
    for name, _, card in _shipped():
        (*_, stage) = card.training.get("curves", {"": []})
        points = card.training.get("curves", {}).get(stage, [])
        if points and card.role == "equilibrium":
            lines[name] = [(float(step), quality) for step, quality in points]
    return plotting.curves(lines, "steps of the equilibrium's stage", "validation pSNR, dB")


def _shipped() -> Iterator[tuple[str, DEQMPI, Card]]:
    for name, path in shipped_weights(DEQMPI.system).items():
        model = DEQMPI.load(path)
        assert model.card is not None
        yield name, model, model.card


def _schedule(facts: dict[str, Any]) -> str:
    """``denoiser 1800 x 64``: the stages that were run."""
    config = facts["config"]
    stages = [f"{name} {config[name]['steps']} x {config[name]['batch']}" for name in facts["quality_db"]]
    return ", ".join(stages) + f" at {config['snr_db']:g} dB"


def _ancestors(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    while "initial" in facts:
        facts = facts["initial"]
        yield facts
