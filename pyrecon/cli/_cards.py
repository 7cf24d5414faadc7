"""Model cards of the weights that ship, from what their files say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pyrecon import plotting
from pyrecon.models import DEQMPI, deq, generative, luser, map_rivals, supervised_mri
from pyrecon.models.weights import Card, read_header, shipped_weights
from pyrecon.nn import BallConsistency, ExactConsistency

_HEADS = ("name", "for", "SNR, dB", "voxels", "data step", "penalty", "steps x batch", "validation, dB", "began with")
_OTHER_HEADS = ("name", "network", "weights", "trained on", "pixels", "steps x batch", "validation", "began with")
_LOADERS: dict[str, Callable[..., Any]] = {
    "generative": generative.GenerativePrior.load,
    "luser": luser.load,
    "pinqi": map_rivals.load,
    "supervised-mri": supervised_mri.load,
}
_KINDS = {BallConsistency: "l2-ball", ExactConsistency: "y itself"}


def markdown() -> str:
    """Tables with a line for each file: those of MPI, and those of CT, MRI and blur if there are any."""
    others = _others()
    return _mpi() + (f"\n\n{others}" if others else "")


def _mpi() -> str:
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


def _others() -> str:
    lines = []
    for name, path in shipped_weights().items():
        system = read_header(path).model
        if system == DEQMPI.system:
            continue
        model: Any = _LOADERS.get(system, deq.load)(path)
        card = model.card
        assert card is not None
        data, ways = card.data, [card.training, *_ancestors(card.training)]
        task = f"{data['task']}: " if "task" in data else ""
        noise = f", noise {data['noise_std']:g}" if "noise_std" in data else ""
        arc = f" of {data['angles']} {data['beam']}-beam views over {data['arc']:g} degrees" if "arc" in data else ""
        cells = [
            f"`{name}`",
            _network(card),
            f"{sum(weights.numel() for weights in model.parameters()):,}",
            f"{task}{data['images']}{arc}{noise}",
            " x ".join(map(str, card.shape)),
            _stages(ways[0]),
            ", ".join(_qualities(card)),
            "; ".join(_stages(facts) for facts in ways[1:]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    head = ["| " + " | ".join(_OTHER_HEADS) + " |", "|" + "---|" * len(_OTHER_HEADS)]
    return "\n".join(head + lines) if lines else ""


def _network(card: Card) -> str:
    """The rival that it is, or the system; and whether it has seen ground truth."""
    loss = card.training["config"].get("loss", "supervised")
    return str(card.data.get("network", card.model)) + ("" if loss == "supervised" else f", {loss}: no ground truth")


def _qualities(card: Card) -> list[str]:
    """dB, nRMSE of maps, or the loss of measurements where there was no ground truth: a denoiser's is in dB."""
    facts = card.training
    if card.role == "maps":
        return [f"nRMSE {value:.3f}" for value in _reached(facts).values()]
    blind = facts["config"].get("loss", "supervised") != "supervised"
    return [
        f"loss {value:.2g}" if blind and stage != "denoiser" else f"{value:.2f}"
        for stage, value in _reached(facts).items()
    ]


def _reached(facts: dict[str, Any]) -> dict[str, float]:
    """By stage."""
    found: dict[str, float] = facts["quality_db"] if "quality_db" in facts else facts["quality"]
    return found


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
    return _stages(facts) + f" at {facts['config']['snr_db']:g} dB"


def _stages(facts: dict[str, Any]) -> str:
    config = facts["config"]
    return ", ".join(f"{name} {config[name]['steps']} x {config[name]['batch']}" for name in _reached(facts))


def _ancestors(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    while "initial" in facts:
        facts = facts["initial"]
        yield facts
