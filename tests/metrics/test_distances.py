"""Distances between sets of clips through a whole evaluation, and the critic's scores."""

from pathlib import Path

import numpy as np
import pytest

from ft2.cli.evaluate_run import Inputs, Plan, run_evaluation
from ft2.errors import UsageError
from ft2.metrics.catalogue import FACTS
from ft2.metrics.clips import find_clips, match
from ft2.metrics.config import EvaluateConfig
from ft2.metrics.critic import CriticScores
from ft2.metrics.evaluate import Bench, choose
from ft2.metrics.frechet import frechet_distance
from ft2.metrics.measure import Measured
from ft2.metrics.tables import markdown
from ft2.runs import Silent


class Colours:
    """In FID's place: features are the mean colour of each frame, and some of its sound."""

    facts = FACTS["fid"]

    def measure(self, clip):
        colours = clip.frames.mean((1, 2))
        sound = np.full((len(colours), 1), 1000 * clip.audio[4000:8000].mean())
        return Measured(features=np.concatenate([colours, sound], 1).astype(np.float32))


def evaluate(tmp_path, folders, **others):
    settings = EvaluateConfig(metrics=("face",), num_resamples=100)
    inputs = Inputs(run=folders / "good", settings=settings, **others)
    named = {"run": inputs.run} | others
    sets = {name: find_clips(path, settings.condition) for name, path in named.items()}
    matched = match(sets["run"], sets["against"]) if "against" in sets else []
    plan = Plan(sets, matched, Bench({"fid": Colours()}, {}))
    return run_evaluation(inputs, plan, tmp_path / "out", False, Silent())


def features(folder):
    from ft2.metrics.measure import Clip

    clips = sorted(folder.glob("*.mp4"))
    return np.concatenate([Colours().measure(Clip.read(path)).features for path in clips])


def test_a_run_is_compared_with_the_other_set(tmp_path, folders):
    result = evaluate(tmp_path, folders, against=folders / "bad")
    cell = result["distances"]["fid"]["run"]
    want = frechet_distance(features(folders / "good"), features(folders / "bad"))
    assert cell["value"] == pytest.approx(want, rel=1e-6)
    assert (cell["to"], cell["n"], cell["dimensions"]) == ("against", [84, 84], 4)
    assert any("FID stands on 84 samples" in remark for remark in result["remarks"])
    row = next(line for line in markdown(result).splitlines() if line.startswith("| FID"))
    assert f"{cell['value']:.2f}" in row
    assert "to against" in row


def test_both_sets_are_compared_with_a_reference(tmp_path, folders):
    result = evaluate(
        tmp_path, folders, against=folders / "bad", reference=folders / "good"
    )["distances"]["fid"]  # fmt: skip
    assert result["run"]["value"] == pytest.approx(0.0, abs=1e-3)
    assert result["against"]["value"] > 1.0
    assert {cell["to"] for cell in result.values()} == {"reference"}


def test_one_set_alone_has_a_gap_and_not_a_zero(tmp_path, folders):
    result = evaluate(tmp_path, folders)
    assert result["distances"] == {}
    assert "needs a second set" in result["gaps"]["fid"]
    assert "| FID | to a reference | \u2193 | \u2013 |" in markdown(result)


def test_the_critic_is_a_metric_like_others(clean):
    def score(path):
        if path == Path("clip.mp4"):
            return {"motion": 0.25, "lip": 0.5, "quality": 0.75}
        raise UsageError("the critic takes clips of 21 frames")

    metric = CriticScores(score)
    bench = choose(EvaluateConfig(metrics=("critic",)), metric)
    assert bench.metrics == {"critic": metric}
    found = metric.measure(clean[0]).values
    assert found == {"critic_motion": 0.25, "critic_lip": 0.5, "critic_quality": 0.75}
    with pytest.raises(UsageError, match="needs --critic DIR"):
        choose(EvaluateConfig(metrics=("critic",)))
