"""The check-up finds what a critic does wrong, and nothing where a critic is made to be right."""

import json

import numpy as np
import pytest
import torch

from ft2.__main__ import main
from ft2.critic import TalkingCritic, doctor
from ft2.errors import UsageError


def test_report_of_a_bad_critic(adapter, ratings, tmp_path, capsys):
    clips = [str(ratings.parent / f"{n}.mp4") for n in (28, 29, 30)]
    with pytest.raises(SystemExit) as stop:
        main(["critic", "doctor", *clips, "--critic", str(adapter), "-o", str(tmp_path / "d")])
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert "ok    A/B swap" in out
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
    own = doctor._chances(critic, views)
    heard = doctor._chances(
        critic, [doctor._with(v, w) for v, w in zip(views, doctor._rolled(views), strict=True)]
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


def test_moved_sound_keeps_its_samples(adapter, ratings):
    critic = TalkingCritic.from_pretrained(adapter)
    view = doctor.read_views(ratings.parent / "28.mp4", critic.scorer.spec)[0]
    later, sooner = doctor._moved(view, 100), doctor._moved(view, -100)
    assert np.array_equal(later.audio[100:], view.audio[:-100])
    assert np.array_equal(sooner.audio[:-100], view.audio[100:])
    assert not later.audio[:100].any()
    assert not sooner.audio[-100:].any()
    assert later.streams is view.streams
