"""What a preference step says about itself: metrics of its pairs, and alarms in words."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ft2.flow import sigma_quantiles
from ft2.tlpo.dpo import implicit_accuracy
from ft2.tlpo.options import SigmaConfig
from ft2.tlpo.step import Stats

NUM_BINS = 10
"""Noise-level bins: tenths of the training distribution."""

WINDOW = 20
"""Steps that an alarm looks back on."""

LN_2 = 0.6931472
"""The preference loss of a policy that equals its reference."""


def step_metrics(stats: Stats, sigma: SigmaConfig) -> dict[str, object]:
    """Return the metrics of one optimiser step from the stats of all its pairs.

    Returns:
        ``loss`` (the mean, as it is minimised), ``implicit_accuracy`` (ties count one half),
        ``margin`` with ``margin_std``, ``margin_p5``, ``margin_p95`` and ``margin_max`` (of |z|),
        ``gradient_factor`` (mean sigmoid(-z), 0.5 at the start), ``d_chosen``, ``d_rejected``,
        ``chosen_worse`` (share of D_chosen > 0), ``rejected_share`` (D_rejected over D_rejected -
        D_chosen: 1 means that only the rejected side moves), ``kl_proxy`` (and ``_outside`` the
        mask), ``safeguard`` where they are known, ``dropped`` (pairs of weight 0), and ``bins``:
        the count of draws, and means of what is known of each draw, by tenth of the noise levels.
    """
    whole = {name: value.double().cpu() for name, value in stats.items()}
    kept = whole["weight"] > 0
    z = whole["margin"][kept]
    d_chosen, d_rejected = (whole[n][kept].mean(1) for n in ("d_chosen", "d_rejected"))
    metrics: dict[str, object] = {"loss": float(whole["loss"].mean())}
    if not len(z):
        return {**metrics, "gradient_factor": 0.5, "dropped": len(kept)}
    gap = float((d_rejected - d_chosen).mean())
    quantiles = torch.quantile(z, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    metrics |= {
        "implicit_accuracy": float(implicit_accuracy(d_chosen, d_rejected).mean()),
        "margin": float(z.mean()),
        "margin_std": float(z.std(unbiased=False)),
        "margin_p5": quantiles[0],
        "margin_p95": quantiles[1],
        "margin_max": float(z.abs().max()),
        "gradient_factor": float(torch.sigmoid(-z).mean()),
        "d_chosen": float(d_chosen.mean()),
        "d_rejected": float(d_rejected.mean()),
        "chosen_worse": float((d_chosen > 0).double().mean()),
        "rejected_share": float(d_rejected.mean()) / gap if gap else None,
        "dropped": int((~kept).sum()),
    }
    for name in ("kl_proxy", "kl_proxy_outside", "safeguard"):
        if name in whole:
            metrics[name] = float(whole[name][kept].mean())
    return {**metrics, "bins": noise_bins(whole, kept, sigma)}


def noise_bins(stats: Stats, kept: Tensor, sigma: SigmaConfig) -> dict[str, list[float | None]]:
    """Return the count of draws and means over them by tenth of the noise-level distribution.

    Of ``d_chosen``, ``d_rejected``, ``implicit_accuracy`` (of single draws) and what else the stats
    have of each draw; None where there is no draw.
    """
    quantile = sigma_quantiles(
        stats["sigma"][kept].flatten(), mean=sigma.mean, std=sigma.std, shift=sigma.shift
    )
    place = (quantile * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    count = torch.bincount(place, minlength=NUM_BINS)
    found: dict[str, list[float | None]] = {"count": count.tolist()}
    draws = {name: value[kept].flatten() for name, value in stats.items() if value.ndim == 2}
    draws["implicit_accuracy"] = implicit_accuracy(draws["d_chosen"], draws["d_rejected"]).double()
    del draws["sigma"]
    for name, values in draws.items():
        total = torch.zeros(NUM_BINS, dtype=torch.float64).index_add_(0, place, values)
        found[name] = [
            value / n if n else None
            for value, n in zip(total.tolist(), count.tolist(), strict=True)
        ]
    return found


@dataclass(frozen=True)
class Alarm:
    """Something in a training's metrics that a person should look at."""

    name: str
    step: int
    """First step at which it was seen."""
    text: str
    """What was seen, with the numbers."""
    advice: str
    """What to change."""

    def __str__(self) -> str:
        """Return the alarm as one line."""
        return f"step {self.step}: {self.text}; {self.advice}"


class AlarmWatch:
    """Says each kind of alarm once, when it first appears in a run's metrics."""

    def __init__(self) -> None:
        """Start without metrics."""
        self._window: deque[Mapping[str, object]] = deque(maxlen=WINDOW)
        self._seen: set[str] = set()

    def update(self, line: Mapping[str, object]) -> list[Alarm]:
        """Add the metrics of a step, with its ``step``, and return what is new."""
        self._window.append(line)
        fresh = [a for a in _alarms_at(list(self._window)) if a.name not in self._seen]
        self._seen |= {alarm.name for alarm in fresh}
        return fresh


def find_alarms(history: Iterable[Mapping[str, object]]) -> list[Alarm]:
    """Return every kind of alarm that a run's metrics give, each at its first step, in order.

    Args:
        history: Lines of ``metrics.jsonl``, in order.
    """
    watch = AlarmWatch()
    return [alarm for line in history for alarm in watch.update(line)]


def _alarms_at(window: Sequence[Mapping[str, object]]) -> list[Alarm]:
    """Return the alarms of the last step of a window."""
    last = window[-1]
    step = int(_number(last, "step"))
    alarms: list[Alarm] = []

    def alarm(name: str, text: str, advice: str) -> None:
        alarms.append(Alarm(name, step, text, advice))

    if _number(last, "margin_max") > 20:
        alarm("spike", f"a margin of {_number(last, 'margin_max'):.0f}",
              "lower dpo.beta or engine.learning_rate")  # fmt: skip
    if _number(last, "dropped") > 0:
        alarm("dropped pairs", f"{_number(last, 'dropped'):.0f} pairs with latents that are not "
              "finite", "look at the clips, and encode the dataset anew")  # fmt: skip
    alarms += _collapsed_gate(step, last)
    if len(window) < WINDOW:
        return alarms
    mean = {
        name: sum(_number(line, name) for line in window) / len(window)
        for name in ("d_chosen", "d_rejected", "gradient_factor", "implicit_accuracy")
    }
    losses = [_number(line, "loss") for line in window]
    if mean["d_chosen"] > 0 and mean["d_rejected"] > 0:
        alarm(
            "both errors rise",
            f"both sides fit worse than the reference (D chosen {mean['d_chosen']:.2g}, rejected "
            f"{mean['d_rejected']:.2g})",
            "set dpo.positive_weight, dpo.safeguard or dpo.anchor, or raise dpo.beta",
        )
    if mean["gradient_factor"] < 0.1:
        alarm("saturated", f"sigmoid(-z) is {mean['gradient_factor']:.2f}: pairs teach no more",
              "train fewer steps (dpo.min_gradient_factor) or lower dpo.beta")  # fmt: skip
    if max(abs(loss - LN_2) for loss in losses) < 1e-4:
        alarm("dead expert", "the loss has stayed at ln 2",
              "raise engine.learning_rate or dpo.beta; look at lora.targets")  # fmt: skip
    if step <= 2 * WINDOW and mean["implicit_accuracy"] > 0.95:
        alarm("too easy", f"implicit accuracy {mean['implicit_accuracy']:.2f} from the start",
              "look for a leak, or for pairs that differ trivially")  # fmt: skip
    scales = [_number(line, "safeguard") for line in window if "safeguard" in line]
    if len(scales) == WINDOW and sum(scales) / WINDOW < 0.05:
        alarm("sides conflict", f"dpo.safeguard leaves {sum(scales) / WINDOW:.2f} of the rejected "
              "side's gradient: more would raise the chosen error",
              "lower dpo.safeguard, or use clearer pairs (pairing.min_margin)")  # fmt: skip
    alarms += _carried_over(step, mean["implicit_accuracy"], last)
    return alarms


def _carried_over(step: int, accuracy: float, line: Mapping[str, object]) -> list[Alarm]:
    """Return the alarm of an expert that knows its training pairs and no others."""
    held_out = _number(line, "held_out_implicit_accuracy")
    enough = _number(line, "held_out_pairs") >= 24
    if not enough or held_out >= 0.55 or accuracy <= held_out + 0.25:
        return []
    text = f"implicit accuracy {accuracy:.2f} on training pairs, {held_out:.2f} on held-out ones"
    advice = "use more conditions or clearer pairs (pairing.min_margin); more steps do not help"
    return [Alarm("does not carry over", step, text, advice)]


def _collapsed_gate(step: int, line: Mapping[str, object]) -> list[Alarm]:
    """Return the alarm of a gate in training, from what `ft2.tlpo.probes.GateProbe` saw."""
    if "gate_entropy" not in line:
        return []
    entropy, share = _number(line, "gate_entropy"), _number(line, "gate_share")
    return gate_alarms(step, entropy, str(line["gate_share_of"]), share)


def gate_alarms(step: int, entropy: float, name: str, share: float) -> list[Alarm]:
    """Return the alarm of a gate whose softmax leaves one expert only, nearly everywhere.

    Sharp weights somewhere are no fault: at nano the gates that validation chose have them.

    Args:
        step: Step at which it was looked at.
        entropy: Of the softmax part over ln K; 1 is uniform.
        name: The expert with the greatest mean share.
        share: Its mean softmax part over layers and noise levels.
    """
    if share <= 0.9 and entropy >= 0.2:
        return []
    text = f"the {name} expert has {share:.0%} of the softmax (entropy {entropy:.2f} of 1)"
    advice = "lower engine.learning_rate or train fewer steps"
    return [Alarm("collapsed gate", step, text, advice)]


def latent_alarms(std: float) -> list[Alarm]:
    """Return the alarm of an encoded dataset whose latents are far from the noise's scale.

    Args:
        std: Standard deviation of the clips' latents; NaN where there are none.
    """
    if not (std < 0.5 or std > 2):
        return []
    text = f"the clips' latents have a standard deviation of {std:.2g}, about 1 is meant"
    advice = "look at the codec's mean and std in the base weights, and at the clips"
    return [Alarm("latent scale", 0, text, advice)]


def _number(line: Mapping[str, object], name: str) -> float:
    value = line.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
