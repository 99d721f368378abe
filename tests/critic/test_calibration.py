"""Calibration against independent fits, and a calibrated critic through the commands."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from ft2.__main__ import main
from ft2.critic import TalkingCritic, calibration
from ft2.critic.calibration import (
    RIDGE,
    CalibrationConfig,
    apply_map,
    calibrate_answers,
    fit_map,
    fit_ties,
)
from ft2.critic.checkpoint import read_card
from ft2.critic.data import read_ratings
from ft2.errors import UsageError


def answers(count, scale, cut, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(cut, 3, count)
    return x, rng.random(count) < 1 / (1 + np.exp(-scale * (x - cut)))


def test_temperature_is_the_likeliest_one():
    x, yes = answers(4000, 0.4, -1.0)
    found = fit_map(x, yes, -1.0, "temperature")

    def loss(scale):
        z = scale * (x + 1.0)
        return np.logaddexp(0, np.where(yes, -z, z)).sum() + RIDGE * scale**2 / 2

    assert found["scale"] == pytest.approx(minimize_scalar(loss, (0.1, 1)).x, rel=1e-3)
    assert found["scale"] == pytest.approx(0.4, abs=0.08)
    assert apply_map(found, np.array([-1.0]))[0] == pytest.approx(0.5)
    with pytest.raises(UsageError, match="do not go with Yes"):
        fit_map(x, ~yes, -1.0, "temperature")


def test_isotonic_is_the_best_monotone_fit():
    x = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    yes = np.array([False, True, False, True, True])
    found = apply_map(fit_map(x, yes, 0.0, "isotonic"), x)
    grid = np.linspace(1 / 7, 6 / 7, 11)  # its edges are where the map ends
    steps = itertools.combinations_with_replacement(grid, 5)
    best = min(steps, key=lambda p: ((np.array(p) - yes) ** 2).sum())
    assert found == pytest.approx(best, abs=0.02)
    assert apply_map(fit_map(x, yes, 0.0, "isotonic"), np.array([-99.0, 99.0])) == pytest.approx(
        [1 / 7, 6 / 7]
    )


def test_tie_width_is_recovered():
    rng = np.random.default_rng(1)
    d, scale, k = rng.normal(0, 4, 4000), 0.5, 2.5
    a = 1 / (1 + np.exp(-(scale * d - np.log(k))))
    b = 1 / (1 + np.exp(scale * d + np.log(k)))
    u = rng.random(4000)
    labels = np.where(u < a, 1, np.where(u < a + b, -1, 0))
    found = fit_ties(d, labels.tolist())
    assert found["scale"] == pytest.approx(scale, rel=0.08)
    assert found["k"] == pytest.approx(k, rel=0.08)


def test_figures_come_from_other_utterances(monkeypatch):
    x, yes = answers(200, 0.3, 0.0)
    groups = np.array([f"u{i % 10}" for i in range(200)])
    seen = []

    def spy(train, *_):
        seen.append({groups[np.flatnonzero(x == value)[0]] for value in train})
        return {"scale": 1.0, "cut": 0.0}

    labels = np.stack([yes.astype(int), np.full(200, -1), np.ones(200, int)], axis=1)
    cuts = {"motion": 0.0, "lip": 0.0, "quality": 0.0}
    maps, figures = calibrate_answers(x[:, None].repeat(3, 1), labels, groups, cuts,
                                      CalibrationConfig())  # fmt: skip
    assert set(maps) == set(figures) == {"motion"}
    before, after = figures["motion"]["before"], figures["motion"]["cross_validated"]
    assert after["brier"]["value"] < before["brier"]["value"]
    assert after["ece"]["value"] < before["ece"]["value"]
    monkeypatch.setattr(calibration, "fit_map", spy)
    calibrate_answers(x[:, None], labels[:, :1], groups, {"motion": 0.0}, CalibrationConfig())
    assert len(seen[0]) == 10  # the map that is kept
    assert all(len(voices) == 8 for voices in seen[1:])
    with pytest.raises(UsageError, match="no dimension"):
        calibrate_answers(x[:5, None], labels[:5, :1], groups[:5], {"m": 0.0}, CalibrationConfig())


def run(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["critic", *map(str, args)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_calibrated_critic_scores_compares_and_evaluates(adapter, ratings, tmp_path, capsys):
    new = tmp_path / "calibrated"
    call = ["calibrate", ratings, "-o", new, "--critic", adapter, "split=train", "--json"]
    code, out, err = run(capsys, *call, "method=isotonic")
    assert code == 0, err
    assert set(json.loads(out)["figures"]) == {"motion", "lip", "quality"}
    test = read_ratings(ratings, "test")
    plain = TalkingCritic.from_pretrained(adapter)
    critic = TalkingCritic.from_pretrained(new)
    raw = TalkingCritic.from_pretrained(new, calibrated=False)
    before, after, bare = (c.score(videos=[test[0].video])[0] for c in (plain, critic, raw))
    assert after.log_odds == pytest.approx(before.log_odds, abs=1e-5)
    maps = read_card(new).maps
    for name, x in after.log_odds.items():
        assert after.p[name] == pytest.approx(float(apply_map(maps[name], np.array(x))))
        assert bare.p[name] == pytest.approx(1 / (1 + np.exp(-x)), abs=1e-5)
    assert critic.scorer.score([test[0].video])[0].lip == pytest.approx(after.p["lip"])
    code, out, _ = run(capsys, "eval", ratings, "--critic", new, "--json", "-o", tmp_path / "e")
    cell = json.loads(out)["rows"]["critic"]["quality"]
    assert cell["roc"][0] == [0.0, 0.0]
    assert cell["roc"][-1] == [1.0, 1.0]
    assert "share of Yes found" in (tmp_path / "e" / "eval.html").read_text()
    assert run(capsys, *call)[0] == 2  # the output exists


def test_tie_width_of_choices_is_used(adapter, ratings, tmp_path, capsys):
    names, words = [f"{n}.mp4" for n in range(21, 28)], ["A", "tie", "B"] * 7
    rows = [
        {"video_a": a, "video_b": b, "motion": None, "lip": None, "quality": label,
         "identity_id": "f", "audio_id": "v", "split": "dev", "source": "human"}
        for (a, b), label in zip(itertools.combinations(names, 2), words, strict=True)
    ]  # fmt: skip
    pairs = ratings.parent / "choices.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new = tmp_path / "ties"
    code, _, err = run(capsys, "calibrate", pairs, "-o", new, "--critic", adapter)
    pairs.unlink()
    assert code == 0, err
    fitted = read_card(new).calibration.ties["quality"].model_dump()
    a, b = (ratings.parent / n for n in names[:2])
    critic = TalkingCritic.from_pretrained(new)
    found = critic.compare(a=a, b=b)
    one, other = (s.log_odds["quality"] for s in critic.score(videos=[a, b]))
    d = torch.tensor(fitted["scale"] * (one - other))
    log_k = np.log(fitted["k"])
    assert found["quality"].a == pytest.approx(float(torch.sigmoid(d - log_k)), abs=1e-5)
    assert found["quality"].b == pytest.approx(float(torch.sigmoid(-d - log_k)), abs=1e-5)
    plain = TalkingCritic.from_pretrained(adapter).compare(a=a, b=b)
    assert found["lip"] == plain["lip"]
