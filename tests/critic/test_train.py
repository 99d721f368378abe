"""Training learns, resumes byte for byte, and its critic scores and is evaluated."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ft2.critic import train
from ft2.critic.adapter import add_lora
from ft2.critic.batches import draw
from ft2.critic.config import LoraSpec
from ft2.critic.data import read_ratings
from ft2.critic.evaluate import ROWS, evaluate, table_lines
from ft2.critic.objective import AnswerLoss
from ft2.critic.score import CriticScorer
from ft2.critic.thresholds import fit_thresholds
from ft2.critic.tokens import CachedTokens, Critic, Rows, encode_ratings, lazy_ratings
from ft2.errors import UsageError
from ft2.qwen import packed
from ft2.qwen.thinker import load_thinker
from ft2.qwen.view import ClipView, read_views
from ft2.runs import Silent, hash_file


class Stop:
    """Progress that fails at a step, as a kill would."""

    def __init__(self, step):
        self.step = step

    def update(self, stage, done, total, note=""):
        if stage == "train critic" and done == self.step:
            raise KeyboardInterrupt


def test_resume_gives_the_same_bytes(config, tmp_path):
    train.train_critic(config, tmp_path / "whole", False, Silent())
    with pytest.raises(KeyboardInterrupt):
        train.train_critic(config, tmp_path / "cut", False, Stop(3))
    train.train_critic(config, tmp_path / "cut", True, Silent())
    name = "adapter/adapter_model.safetensors"
    assert hash_file(tmp_path / "whole" / name) == hash_file(tmp_path / "cut" / name)
    logs = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "cut")]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def trained(spec, ratings, tmp_path_factory):
    from ft2.critic.config import CriticConfig

    engine = {"learning_rate": 3e-3, "micro_batch_size": 16, "warmup_steps": 2}
    config = CriticConfig(model=spec, ratings=str(ratings), engine=engine, steps=120, swap=0.0)
    run = tmp_path_factory.mktemp("critic") / "run"
    return run, train.train_critic(config, run, False, Silent())


def test_critic_learns_and_scores_held_out_clips(trained, ratings):
    run, result = trained
    assert result["loss"] < 0.5
    scorer = CriticScorer(run / "adapter", calibrated=False, batch_size=5)
    test = read_ratings(ratings, "test")
    scores = scorer.score([r.video for r in test])
    right = [s.answers()[2] == r.labels[2] for s, r in zip(scores, test, strict=True)]
    assert np.mean(right) >= 0.9
    again = CriticScorer(run / "adapter", calibrated=False, batch_size=2)
    other = again.score([r.video for r in reversed(test)])[::-1]
    pairs = zip(scores, other, strict=True)
    assert all(np.allclose(a.values(), b.values(), atol=1e-5) for a, b in pairs)


def test_evaluation_always_shows_the_judges_to_beat(trained, ratings):
    run, _ = trained
    result = evaluate(ratings, run / "adapter")
    assert [*result["rows"], "sync_measure"] == list(ROWS)
    assert result["rows"]["majority"]["quality"]["accuracy"]["value"] == 0.5
    assert result["rows"]["critic_raw"]["quality"]["accuracy"]["value"] >= 0.9
    assert result["rows"]["critic"]["motion"]["n"] == 8
    lines = table_lines(result)
    assert len(lines) == len(ROWS) + 2
    json.dumps(result, allow_nan=False)


def test_adapter_of_another_base_is_refused(trained, tmp_path, spec):
    from ft2.qwen.thinker import new_thinker, save_thinker
    from ft2.qwen.tokens import build_processor

    processor = build_processor(spec)
    save_thinker(new_thinker(spec, processor, seed=9), processor, tmp_path)
    other = spec.model_copy(update={"weights": str(tmp_path)})
    with pytest.raises(UsageError, match="another base"):
        CriticScorer(trained[0] / "adapter", model=other)


def test_thresholds_split_answers_in_the_middle():
    odds = torch.arange(40.0)[:, None].repeat(1, 3)
    labels = (odds >= 25).long()
    labels[:, 2] = -1
    found = fit_thresholds(odds, labels)
    assert found == {"motion": 24.5, "lip": 24.5, "quality": 0.0}


def test_threshold_stays_near_zero_when_the_gain_is_noise():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, (200, 3)))
    odds = torch.from_numpy(rng.standard_normal((200, 3))) + 4.0 * labels - 2.1
    assert all(abs(cut) < 0.3 for cut in fit_thresholds(odds, labels).values())
    shifted = fit_thresholds(odds - 5, labels)
    assert all(-6 < cut < -3 for cut in shifted.values())


def test_loss_is_smoothed_cross_entropy_over_rated_answers(spec):
    thinker, processor = load_thinker(spec)
    layout = packed.make_layout(thinker, processor, spec, ["a?", "b?", "c?"])
    model = add_lora(thinker, LoraSpec(rank=2, alpha=2))
    hidden = spec.text.hidden_size
    rng = torch.Generator().manual_seed(0)
    video = torch.randn(2, spec.num_video_tokens, hidden, generator=rng)
    audio = torch.randn(2, spec.num_audio_tokens, hidden, generator=rng)
    labels = torch.tensor([[1, 0, -1], [-1, 1, 0]])
    loss = AnswerLoss(model, layout, 0.1)
    logits = packed.answer_logits(thinker, layout, video, audio).detach().double()

    def by_hand(i, j, answer):
        p = torch.softmax(logits[i, j], -1)[[layout.no_id, layout.yes_id]].log()
        return float(-(0.9 * p[answer] + 0.1 * p[1 - answer]))

    # the second question has two answers, each of the others one: each question counts a third
    want = (by_hand(0, 0, 1) + (by_hand(0, 1, 0) + by_hand(1, 1, 1)) / 2 + by_hand(1, 2, 0)) / 3
    every = (by_hand(0, 0, 1) + by_hand(0, 1, 0) + by_hand(1, 1, 1) + by_hand(1, 2, 0)) / 4
    assert abs(want - every) > 1e-3
    assert loss(video, audio, labels).item() == pytest.approx(want, abs=1e-5)
    nobody = loss(video, audio, torch.full((2, 3), -1))
    assert nobody.item() == 0
    with pytest.raises(AssertionError, match=r"labels \[2, 1\]"):
        loss(video, audio, labels[:, :1])


def test_swapped_voices_are_answered_no(config):
    count = 16
    rows = Rows(
        labels=torch.ones(count, 3, dtype=torch.long),
        clip=torch.arange(count),
        identity_ids=np.array(["a"] * count),
        utterances=np.array([str(i) for i in range(count)]),
        sources=np.array(["puppet"] * count),
    )
    numbers = torch.arange(count).view(-1, 1, 1).float()
    tokens = CachedTokens(rows, numbers, numbers)
    some = config.model_copy(update={"swap": 0.5})
    seen = []
    for place in range(20):
        video, audio, labels = draw(tokens, some, place)
        own = (video == audio).flatten()
        assert torch.equal(labels[:, 1].bool(), own)
        assert labels[:, [0, 2]].all()
        seen.append(own.float().mean())
    assert 0.3 < float(torch.stack(seen).mean()) < 0.7


def test_rarer_source_gets_the_same_share(config):
    sources = np.array(["puppet"] * 90 + ["judges"] * 6)
    rows = Rows(
        labels=torch.ones(96, 3, dtype=torch.long),
        clip=torch.arange(96),
        identity_ids=np.array(["a"] * 96),
        utterances=np.array([str(i) for i in range(96)]),
        sources=sources,
    )
    numbers = torch.arange(96.0).view(-1, 1, 1)
    tokens = CachedTokens(rows, numbers, numbers)

    def share(settings):
        seen = [draw(tokens, settings, place)[0].flatten() for place in range(40)]
        return float((torch.cat(seen) >= 90).float().mean())

    assert 0.4 < share(config) < 0.6
    assert share(config.model_copy(update={"balance": False})) < 0.15


def test_lazy_tokens_equal_cached_ones(spec, ratings):
    critic = Critic(*load_thinker(spec), spec)
    rated = read_ratings(ratings, "test")
    cached, lazy = encode_ratings(critic, rated), lazy_ratings(critic, rated, copies=1)
    pictures, sounds = torch.tensor([0, 3, 5]), torch.tensor([1, 3, 2])
    for one, other in zip(cached.take(pictures, sounds), lazy.take(pictures, sounds), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    varied = lazy.take(pictures + len(rated), sounds)[0]
    assert not torch.allclose(varied, cached.take(pictures, sounds)[0], atol=1e-2)
    assert torch.equal(varied, lazy.take(pictures + len(rated), sounds)[0])


def test_streams_train_score_and_keep_their_preprocessing(config, tmp_path):
    from ft2.qwen.spec import StreamSpec

    streams = (
        StreamSpec(answers=("quality", "motion"), width=32, height=32, every=2),
        StreamSpec(answers=("lip",), crop="mouth", width=64, height=32, audio=True),
    )
    model = config.model.model_copy(update={"streams": streams})
    settings = config.model_copy(update={"model": model, "steps": 3, "copies": 1})
    train.train_critic(settings, tmp_path / "run", False, Silent())
    scorer = CriticScorer(tmp_path / "run" / "adapter")
    assert scorer.spec.streams == streams
    test = read_ratings(Path(config.ratings), "test")
    views = [read_views(r.video, scorer.spec)[0] for r in test[:2]]
    loud = ClipView(views[0].streams, views[1].audio)
    own, swapped = scorer.log_odds([views[0]])[0], scorer.log_odds([loud])[0]
    assert own[0] == swapped[0]
    assert own[2] == swapped[2]
    assert own[1] != swapped[1]
    table = evaluate(Path(config.ratings), tmp_path / "run" / "adapter")["rows"]
    for row in ("silenced", "audio_swapped"):
        assert table[row]["motion"]["auc"] == table["critic"]["motion"]["auc"]
    with pytest.raises(UsageError, match=r"model\.streams"):
        CriticScorer(tmp_path / "run" / "adapter", model=config.model)
