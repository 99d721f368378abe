"""Held-out accuracy by its definition, and the adapter of the best step is the one kept."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from ft2.critic import held_out as module
from ft2.critic import loop, train
from ft2.critic.held_out import Best, HeldOut, held_out_pairs
from ft2.critic.objective import AnswerLoss
from ft2.critic.thresholds import fit_thresholds
from ft2.errors import RunError
from ft2.qwen import packed
from ft2.qwen.thinker import load_thinker
from ft2.runs import Silent, load_tensors

NAMES = ("motion", "lip")


def held(labels, objective="yes_no", **more):
    rows = SimpleNamespace(labels=labels, first_windows=lambda: np.arange(len(labels)))
    return HeldOut(SimpleNamespace(rows=rows), NAMES, objective, **more)


def test_answers_are_right_beyond_the_fitted_threshold():
    odds = torch.arange(40.0)[:, None].repeat(1, 2)
    labels = (odds >= 25).long()
    labels[30:33, 0] = 0
    labels[39, 0] = labels[:, 1] = -1
    cut = fit_thresholds(odds, labels, NAMES)["motion"]
    right = [(x >= cut) == bool(y) for x, y in zip(range(39), labels[:39, 0], strict=True)]
    assert held(labels).accuracy(odds) == {"motion": pytest.approx(np.mean(right))}
    assert 0.8 < np.mean(right) < 1


def test_opinion_scores_count_pairs_in_order():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 30, 2))
    y = np.round(y - y.min(), 1)
    y[4, 0] = -1
    found = held(torch.tensor(y), "regression").accuracy(torch.tensor(x))
    kept = y[:, 0] >= 0
    pairs = [
        (i, j) for i in np.flatnonzero(kept) for j in np.flatnonzero(kept) if y[i, 0] > y[j, 0]
    ]
    assert found["motion"] == pytest.approx(np.mean([x[i, 0] > x[j, 0] for i, j in pairs]))
    y = rng.permutation(30).astype(float)  # without ties the figure is (1 + tau) / 2
    found = held(torch.tensor(y)[:, None].repeat(1, 2), "regression").accuracy(torch.tensor(x))
    assert found["lip"] == pytest.approx((1 + kendalltau(x[:, 1], y).statistic) / 2)


def test_choices_count_decided_pairs():
    clips = [SimpleNamespace(video=name) for name in "abc"]
    ratings = [
        SimpleNamespace(videos=("a", "b"), labels=("A", None)),
        SimpleNamespace(videos=("c", "a"), labels=("B", "tie")),
        SimpleNamespace(videos=("b", "c"), labels=("A", "A")),
    ]
    pairs, choices = held_out_pairs(ratings, clips)
    judge = held(torch.full((3, 2), -1), "soft", pairs=pairs, choices=choices)
    odds = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    # motion: a > b right, a > c right, b = c half; lip: the one decided pair is wrong
    assert judge.accuracy(odds) == {"motion": pytest.approx(2.5 / 3), "lip": 0.0}


def test_best_keeps_the_latest_of_equals_and_survives_a_checkpoint(monkeypatch, tmp_path):
    weights = {"w": torch.zeros(1)}
    monkeypatch.setattr(module, "adapter_state", lambda _: weights)
    loss = SimpleNamespace(model=None, width=lambda: torch.tensor([0.5, 0.25]))
    best = Best()
    for step, value in ((1, 0.6), (2, 0.8), (3, 0.8), (4, 0.7)):
        weights["w"] = torch.tensor([float(step)])
        best.offer(step, loss, {"lip": value}, torch.full((2, 2), float(step)))
    assert (best.step, float(best.tensors["w"])) == (3, 3.0)
    best.save(tmp_path)
    again = Best.load(tmp_path)
    assert (again.step, again.accuracy) == (3, {"lip": 0.8})
    assert torch.equal(again.odds, best.odds)
    assert torch.equal(again.width, best.width)
    assert torch.equal(again.tensors["w"], best.tensors["w"])
    Best().save(tmp_path / "none")
    assert Best.load(tmp_path / "none").tensors == {}


@pytest.mark.parametrize(("keep", "step"), [("best", 4), ("last", 6)])
def test_adapter_is_that_of_the_kept_step(config, tmp_path, monkeypatch, keep, step):
    figures = iter([0.5, 0.9, 0.7] if keep == "best" else [0.2])
    monkeypatch.setattr(HeldOut, "accuracy", lambda *_: {"lip": next(figures)})
    chosen = config.model_copy(update={"keep": keep, "gradient_checkpointing": True})
    result = train.train_critic(chosen, tmp_path / "run", False, Silent())
    assert result["kept_step"] == step
    written = load_tensors(tmp_path / "run/adapter/adapter_model.safetensors")[0]
    kept = load_tensors(tmp_path / f"run/checkpoints/{step:06d}/best.safetensors")[0]
    assert all(torch.equal(written[name], kept[f"adapter/{name}"]) for name in written)
    last = load_tensors(tmp_path / "run/checkpoints/000006/engine.safetensors")[0]
    same = [
        torch.equal(tensor, last["weight/model." + name.replace(".weight", ".default.weight")])
        for name, tensor in written.items()
    ]
    assert all(same) == (keep == "last")


def test_gradient_checkpointing_changes_no_gradient(spec):
    from ft2.critic.adapter import add_lora
    from ft2.critic.config import LoraSpec

    found = []
    for again in (False, True):
        thinker, processor = load_thinker(spec)
        layout = packed.make_layout(thinker, processor, spec, ["a?", "b?"])
        if again:
            thinker.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = AnswerLoss(add_lora(thinker, LoraSpec(rank=2, alpha=2)), layout).train()
        calls = []
        layer = thinker.model.language_model.layers[0].self_attn
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        rng = torch.Generator().manual_seed(0)
        hidden = spec.text.hidden_size
        video = torch.randn(2, spec.num_video_tokens, hidden, generator=rng)
        audio = torch.randn(2, spec.num_audio_tokens, hidden, generator=rng)
        loss(video, audio, torch.tensor([[1, 0], [0, -1]])).backward()
        found.append({n: p.grad for n, p in loss.named_parameters() if p.grad is not None})
        assert len(calls) == 1 + again  # computed a second time in the backward pass
    assert found[0]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_loss_that_is_no_number_stops_the_run(config, tmp_path):
    nan = torch.tensor(float("nan"), requires_grad=True)
    engine = SimpleNamespace(world_size=1, rank=0, backward=lambda _: None)

    class Broken(SimpleNamespace):
        def __call__(self, *_):
            return nan

    with pytest.raises(RunError, match="step 8 is nan"):
        loop._step(Broken(**vars(engine)), config, lambda _: (), 7, tmp_path)
