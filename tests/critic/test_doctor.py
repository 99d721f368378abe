"""The check-up finds what a critic does wrong, and nothing where a critic is made to be right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ft2.__main__ import main
from ft2.critic import TalkingCritic, doctor, tokens
from ft2.critic.api import Comparison
from ft2.critic.steadiness import chances, company, sides
from ft2.errors import UsageError
from ft2.media import write_video
from ft2.qwen.view import make_view

SHIPPED = Path(__file__).parents[2] / "notebooks" / "critic"


def test_report_of_a_bad_critic(adapter, ratings, tmp_path, capsys):
    clips = [str(ratings.parent / f"{n}.mp4") for n in (28, 29, 30)]
    with pytest.raises(SystemExit) as stop:
        main(["critic", "doctor", *clips, "--critic", str(adapter), "-o", str(tmp_path / "d")])
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    for name in ("batch size", "padding", "A/B swap", "transitivity"):
        assert f"ok    {name}" in out
    assert "FAIL  resolution" in out  # noise has no face to find at another size
    assert "the critic failed:" in err
    found = json.loads((tmp_path / "d" / "doctor.json").read_text())
    assert len(found["shift_curve"]) == 15
    assert found["shift_curve"][7]["seconds"] == 0
    page = (tmp_path / "d" / "doctor.html").read_text()
    assert '<td class="bad">' in page
    assert "<svg" in page
    with pytest.raises(UsageError, match="too few"):
        doctor.examine(TalkingCritic.from_pretrained(adapter), clips[:2])


def test_critic_that_hears_and_one_that_does_not(adapter, ratings, monkeypatch):
    """A made-up judge: lip is how well the loudness fits its place, the others see pixels only."""
    critic = TalkingCritic.from_pretrained(adapter)
    views = [
        doctor.read_views(ratings.parent / f"{n}.mp4", critic.scorer.spec)[0] for n in (28, 30, 33)
    ]
    home = {view.pixels.tobytes(): view.audio.copy() for view in views}

    def odds(_, given):
        rows = []
        for view in given:
            own = home[view.pixels.tobytes()]
            fit = float(own @ view.audio / (own @ own))
            rows.append([float(view.pixels.mean()) / 100 - 1, 8 * fit - 4, 0.3])
        return torch.tensor(rows)

    monkeypatch.setattr(type(critic.scorer), "log_odds", odds)
    own = chances(critic, views)
    heard = chances(
        critic, [doctor._with(v, w) for v, w in zip(views, doctor._others(views), strict=True)]
    )
    checks = {c.name: c for c in doctor._sound(critic, own, heard)}
    assert checks["lip hears"].passed
    assert checks["motion is deaf"].value == 0
    curve = doctor.shift_curve(critic, views)
    assert doctor._peak(critic, curve).passed
    assert (
        doctor._peak(critic, [dict(row, seconds=row["seconds"] + 0.2) for row in curve]).passed
        is False
    )
    deaf = doctor._sound(critic, own, own)
    assert [c.passed for c in deaf] == [True, False, True]
    mixed = own[:, [1, 1, 1]]
    assert not doctor._sound(critic, own, np.clip(mixed + 0.5 * (own < 0.5), 0, 1))[0].passed


@pytest.fixture
def clips(ratings):
    return [ratings.parent / f"{n}.mp4" for n in (28, 29, 30)]


def checked(found):
    return {check.name: check.passed for check in found}


def test_company_and_padding_that_matter_are_found(monkeypatch):
    critic = TalkingCritic.from_pretrained(SHIPPED)
    clip, rng = critic.scorer.spec.clip, np.random.default_rng(0)
    views = [
        make_view(
            rng.integers(0, 255, (clip.num_frames, 64, 64, 3)).astype(np.uint8),
            (0.1 * rng.standard_normal(clip.num_samples)).astype(np.float32),
            critic.scorer.spec,
        )
        for _ in range(3)
    ]

    def passed():
        return checked(company(critic, views, chances(critic, views)))

    assert passed() == {"batch size": True, "padding": True}
    inner, mel = type(critic.scorer).log_odds, tokens.towers.mel_features
    with monkeypatch.context() as patch:
        patch.setattr(type(critic.scorer), "log_odds", lambda self, v: inner(self, v) + len(v))
        assert passed() == {"batch size": False, "padding": True}

    def spread_over_the_padding(processor, audio):
        found, frames = mel(processor, audio)
        return found * (frames * 160 / processor.feature_extractor.n_samples), frames

    monkeypatch.setattr(tokens.towers, "mel_features", spread_over_the_padding)
    assert passed() == {"batch size": True, "padding": False}


def test_sides_that_matter_and_circles_are_found(adapter, clips, monkeypatch):
    critic = TalkingCritic.from_pretrained(adapter)
    assert checked(sides(critic, clips)) == {"A/B swap": True, "transitivity": True}
    inner, place = TalkingCritic.compare, {path: n for n, path in enumerate(clips)}

    def first_is_better(self, *, a, b):
        found = inner(self, a=a, b=b)
        lip = found["lip"]
        return found | {"lip": Comparison(lip.a + 1e-3, lip.tie, lip.b - 1e-3)}

    def round_and_round(self, *, a, b):
        win = (place[b] - place[a]) % 3 == 1
        said = Comparison(0.6 if win else 0.3, 0.1, 0.3 if win else 0.6)
        return inner(self, a=a, b=b) | {"quality": said}

    monkeypatch.setattr(TalkingCritic, "compare", first_is_better)
    assert not checked(sides(critic, clips))["A/B swap"]
    monkeypatch.setattr(TalkingCritic, "compare", round_and_round)
    assert checked(sides(critic, clips)) == {"A/B swap": True, "transitivity": False}


def test_place_in_the_batch_that_matters_is_found(adapter, clips, monkeypatch):
    """The outcome is asked of `compare`, whose batch has the sides in their order."""
    critic = TalkingCritic.from_pretrained(adapter)
    inner = type(critic.scorer).log_odds

    def later_is_better(self, views):
        odds = inner(self, views)
        return odds + 1.0 * torch.arange(len(odds))[:, None]

    monkeypatch.setattr(type(critic.scorer), "log_odds", later_is_better)
    assert not checked(sides(critic, clips))["A/B swap"]


def test_clips_that_sound_the_same_are_refused(adapter, ratings, tmp_path):
    critic = TalkingCritic.from_pretrained(adapter)
    one = ratings.parent / "28.mp4"
    with pytest.raises(UsageError, match="different clips: 1, too few"):
        doctor.examine(critic, [one, one, one])
    view = doctor.read_views(one, critic.scorer.spec)[0]
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{n}.mp4" for n in range(3)]
    for path in paths:
        frames = rng.integers(0, 255, (9, 64, 64, 3)).astype(np.uint8)
        write_video(path, frames, 12.5, view.audio)
    with pytest.raises(UsageError, match="all 3 clips have the same sound") as caught:
        doctor.examine(critic, paths)
    assert "different speech" in caught.value.hint


def test_moved_sound_keeps_its_samples(adapter, ratings):
    critic = TalkingCritic.from_pretrained(adapter)
    view = doctor.read_views(ratings.parent / "28.mp4", critic.scorer.spec)[0]
    later, sooner = doctor._moved(view, 100), doctor._moved(view, -100)
    assert np.array_equal(later.audio[100:], view.audio[:-100])
    assert np.array_equal(sooner.audio[:-100], view.audio[100:])
    assert not later.audio[:100].any()
    assert not sooner.audio[-100:].any()
    assert later.streams is view.streams
