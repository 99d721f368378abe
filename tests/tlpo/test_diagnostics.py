"""Metrics of a step against numpy, noise-level bins, alarms in words, pair weights."""

import math

import numpy as np
import pytest
import torch

from ft2.flow import sample_sigmas, sigma_quantiles
from ft2.tlpo.data import pair_weights
from ft2.tlpo.diagnostics import find_alarms, gate_alarms, step_metrics
from ft2.tlpo.draws import draw_numbers, levels, stored_draws, use_mask
from ft2.tlpo.options import SigmaConfig


def stats(pairs: int = 40, draws: int = 3) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    d_w, d_l = (torch.randn(pairs, draws, generator=g) * 0.1 for _ in range(2))
    z = -2.0 * (d_w - d_l).mean(1)
    return {
        "sigma": torch.rand(pairs, draws, generator=g),
        "loss": -torch.nn.functional.logsigmoid(z),
        "margin": z,
        "weight": torch.ones(pairs),
        "d_chosen": d_w,
        "d_rejected": d_l,
        "kl_proxy": torch.rand(pairs, draws, generator=g),
    }


def test_metrics_equal_numpy() -> None:
    whole = stats()
    found = step_metrics(whole, SigmaConfig())
    z = whole["margin"].double().numpy()
    d_w, d_l = (whole[n].double().numpy().mean(1) for n in ("d_chosen", "d_rejected"))
    wanted = {
        "margin": z.mean(), "margin_std": z.std(), "margin_max": np.abs(z).max(),
        "margin_p5": np.quantile(z, 0.05), "margin_p95": np.quantile(z, 0.95),
        "gradient_factor": (1 / (1 + np.exp(z))).mean(), "implicit_accuracy": (d_w < d_l).mean(),
        "d_chosen": d_w.mean(), "d_rejected": d_l.mean(), "chosen_worse": (d_w > 0).mean(),
        "rejected_share": d_l.mean() / (d_l.mean() - d_w.mean()), "dropped": 0,
        "loss": np.log1p(np.exp(-z)).mean(), "kl_proxy": whole["kl_proxy"].double().mean(),
    }  # fmt: skip
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), rel=1e-6), name


def test_dropped_pairs_are_counted_and_left_out() -> None:
    whole = stats()
    whole["weight"][3] = 0
    whole["margin"][3] = 1e6
    found = step_metrics(whole, SigmaConfig())
    assert found["dropped"] == 1
    assert found["margin_max"] < 10
    whole["weight"][:] = 0
    assert step_metrics(whole, SigmaConfig())["dropped"] == 40


def test_bins_are_tenths_of_the_drawn_levels() -> None:
    config = SigmaConfig(mean=0.3, std=1.2, shift=3.0)
    drawn = sample_sigmas(4000, torch.Generator().manual_seed(0), mean=0.3, std=1.2, shift=3.0)
    whole = stats(4000, 1) | {"sigma": drawn[:, None]}
    bins = step_metrics(whole, config)["bins"]
    assert sum(bins["count"]) == 4000
    assert max(bins["count"]) < 480
    assert min(bins["count"]) > 320
    edges = np.quantile(drawn.numpy(), np.linspace(0, 1, 11))
    inside = (drawn >= edges[2]) & (drawn < edges[3])
    assert bins["d_chosen"][2] == pytest.approx(float(whole["d_chosen"][inside].mean()), abs=0.01)
    right = (whole["d_chosen"] < whole["d_rejected"])[inside].double().mean()
    assert bins["implicit_accuracy"][2] == pytest.approx(float(right), abs=0.02)
    assert set(bins) == {"count", "d_chosen", "d_rejected", "implicit_accuracy", "kl_proxy"}


def test_sigma_quantiles_invert_the_draws_and_windows_cut_them() -> None:
    levels_ = torch.tensor([0.0, 0.2, 0.5, 1.0])
    drawn = sample_sigmas(20000, torch.Generator().manual_seed(1), mean=-0.4, std=0.8, shift=2.0)
    for level, part in zip(
        levels_, sigma_quantiles(levels_, mean=-0.4, std=0.8, shift=2.0), strict=True
    ):
        assert float((drawn <= level).double().mean()) == pytest.approx(float(part), abs=0.01)
    g = torch.Generator().manual_seed(2)
    cut = levels(SigmaConfig(shift=2.0, window=(0.3, 0.7)), 500, g)
    assert 0.3 <= float(cut.min()) < 0.31
    assert 0.69 < float(cut.max()) <= 0.7
    plain = drawn[(drawn > 0.3) & (drawn < 0.7)]
    other = sample_sigmas(
        20000, g, mean=-0.4, std=0.8, shift=2.0, window=(0.3, 0.7)
    )  # not stratified
    assert float(other.mean()) == pytest.approx(float(plain.mean()), abs=0.01)


def test_stored_draws_are_fixed_stratified_and_taken_in_turn() -> None:
    config = SigmaConfig(draws=2, stored_draws=6)
    assert [draw_numbers(config, e) for e in range(4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]
    sigma, noise = stored_draws(config, 0, "a/b", range(6), (2, 3))
    part, other = stored_draws(config, 0, "a/b", [4, 5], (2, 3))
    assert torch.equal(sigma[4:], part)
    assert torch.equal(noise[4:], other)
    tenths = (sigma_quantiles(sigma) * 6).long().sort().values
    assert tenths.tolist() == list(range(6))
    assert not torch.equal(sigma, stored_draws(config, 0, "b/a", range(6), (2, 3))[0])


def test_masks_are_used_as_often_as_asked() -> None:
    used = [use_mask(0.8, 0, step, 1) for step in range(2000)]
    assert sum(used) / 2000 == pytest.approx(0.8, abs=0.03)
    assert used == [use_mask(0.8, 0, step, 1) for step in range(2000)]


def history(steps: int = 60, **changes: float) -> list[dict[str, object]]:
    line = {"loss": 0.6, "implicit_accuracy": 0.7, "gradient_factor": 0.4, "margin_max": 2.0,
            "d_chosen": -1e-3, "d_rejected": 1e-3, "dropped": 0}  # fmt: skip
    return [{**line, **changes, "step": step} for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("changes", "name", "advice"),
    [
        ({"d_chosen": 1e-3}, "both errors rise", "positive_weight"),
        ({"gradient_factor": 0.05}, "saturated", "fewer steps"),
        ({"loss": math.log(2)}, "dead expert", "learning_rate"),
        ({"implicit_accuracy": 0.99}, "too easy", "leak"),
        ({"margin_max": 25.0}, "spike", "beta"),
        ({"dropped": 2}, "dropped pairs", "clips"),
    ],
)
def test_alarms_say_what_and_what_to_do(changes: dict, name: str, advice: str) -> None:
    assert find_alarms(history()) == []
    found = find_alarms(history(**changes))
    assert [alarm.name for alarm in found] == [name]
    assert advice in found[0].advice
    assert str(found[0]).startswith(f"step {found[0].step}: ")


def test_labels_that_do_not_carry_over_are_told() -> None:
    def told(pairs: int, held_out: float) -> list[str]:
        found = {"held_out_pairs": pairs, "held_out_implicit_accuracy": held_out}
        lines = history(implicit_accuracy=0.85)
        return [alarm.name for alarm in find_alarms([*lines[:-1], {**lines[-1], **found}])]

    assert told(44, 0.5) == ["does not carry over"]
    assert told(44, 0.58) == told(12, 0.5) == []
    assert find_alarms(history(implicit_accuracy=0.85)) == []


def test_sides_that_conflict_are_told() -> None:
    assert find_alarms(history(safeguard=0.1)) == []
    alarm = find_alarms(history(safeguard=0.02))[0]
    assert (alarm.name, alarm.step) == ("sides conflict", 20)
    assert "leaves 0.02" in alarm.text
    assert "dpo.safeguard" in alarm.advice


def test_a_collapsed_gate_is_told() -> None:
    assert gate_alarms(9, 0.95, "motion", 0.4) == []
    assert gate_alarms(9, 0.5, "motion", 0.91)
    alarm = gate_alarms(9, 0.1, "motion", 0.97)[0]
    assert "motion" in alarm.text
    assert "97%" in alarm.text


def test_pair_weights() -> None:
    gaps = [0.1, 0.1, 0.1, 0.9]
    assert pair_weights(gaps, "none", 1.0) is None
    confidence = pair_weights(gaps, "confidence", 2.0)
    assert confidence[3] / confidence[0] == pytest.approx(81)
    rarity = pair_weights(gaps, "rarity", 1.0)
    assert rarity[3] / rarity[0] == pytest.approx(3)
    for weights in (confidence, rarity):
        assert sum(weights) / 4 == pytest.approx(1)
