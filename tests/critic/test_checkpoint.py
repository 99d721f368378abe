"""A damaged critic, another base or another kind of adapter is refused before a model loads."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ft2.__main__ import main
from ft2.critic import TalkingCritic, score
from ft2.critic.checkpoint import base_hash, match_base, read_card, read_lora, write_card
from ft2.errors import UsageError
from ft2.runs import save_tensors

SHIPPED = Path(__file__).parents[2] / "notebooks" / "critic"


@pytest.fixture
def copied(adapter, tmp_path):
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


def edit(path, **changes):
    data = json.loads(path.read_text())
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = data
        for name in outer:
            place = place[name]
        place[last] = value
    path.write_text(json.dumps(data))


CARD, LORA, TENSORS = "critic.json", "adapter_config.json", "adapter_model.safetensors"


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def lost(name):
    return lambda folder: (folder / name).unlink()


def changed(name, **changes):
    return lambda folder: edit(folder / name, **changes)


def maps(**found):
    return changed(CARD, calibration={"maps": found})


FAULTS = {
    "no tensors": (lost(TENSORS), "lacks adapter_model.safetensors"),
    "no settings": (lost(LORA), "lacks adapter_config.json"),
    "tensors are text": (text(TENSORS, "weights"), "not a readable safetensors file"),
    "card is a list": (text(CARD, "[]"), "critic.json must hold a JSON object, not list"),
    "card is cut": (text(CARD, '{"schema": 1,'), "critic.json' is not valid JSON"),
    "settings are cut": (text(LORA, "{"), "adapter_config.json' is not valid JSON"),
    "settings are empty": (text(LORA, "{}"), "adapter_config.json: r must be a number above 0"),
    "rank is a word": (changed(LORA, r="x"), "r must be a number above 0, got 'x'"),
    "alpha is a word": (changed(LORA, lora_alpha="x"), "lora_alpha must be a number"),
    "rslora": (changed(LORA, use_rslora=True), "use_rslora is true"),
    "dora": (changed(LORA, use_dora=True), "use_dora is true"),
    "ranks by layer": (changed(LORA, rank_pattern={"q_proj": 4}), 'rank_pattern is {"q_proj": 4}'),
    "bias": (changed(LORA, bias="all"), 'bias is "all"'),
    "no lora": (changed(LORA, peft_type="LOHA"), 'peft_type is "LOHA"'),
    "sizes": (changed(CARD, model__text__hidden_size=-3), "model.text.hidden_size: .*got -3"),
    "unknown size": (changed(CARD, model__text__widht=3), "unknown key 'model.text.widht'"),
    "threshold": (changed(CARD, thresholds__lip="x"), "thresholds.lip: .*got 'x'"),
    "infinite threshold": (changed(CARD, thresholds__lip=float("inf")), "thresholds.lip"),
    "questions": (changed(CARD, questions=["a?"]), r"questions: .*got \['a\?'\]"),
    "objective": (changed(CARD, objective="yes"), "objective: .*got 'yes'"),
    "no reference": (changed(CARD, reference={"name": "n", "critic": "c"}), "reference of"),
    "words in it": (changed(CARD, reference__log_odds__lip=["x", "y"]), "reference of"),
    "no lip in it": (
        changed(CARD, reference__log_odds={"motion": [0.0, 1.0], "quality": [0.0, 1.0]}),
        "has no lip",
    ),
    "empty map": (maps(lip={}), "calibration.maps.lip.temperature.scale' is required"),
    "falling map": (maps(lip={"x": [0.0, 1.0], "y": [0.9, 0.1]}), "x and y must rise"),
    "short map": (maps(lip={"x": [0.0, 1.0], "y": [0.1]}), "of one length"),
    "tie": (changed(CARD, calibration={"ties": {"lip": {"scale": 1.0}}}), "ties.lip.k' is req"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_named_before_a_model_loads(copied, ratings, monkeypatch, capsys, fault):
    damage, message = FAULTS[fault]
    damage(copied)
    monkeypatch.setattr(score, "load_thinker", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError, match=message) as caught:
        TalkingCritic.from_pretrained(copied)
    assert caught.value.hint
    clip = str(ratings.parent / "28.mp4")
    with pytest.raises(SystemExit) as stop:
        main(["critic", "score", clip, "--critic", str(copied)])
    assert stop.value.code == 2
    assert "hint:" in capsys.readouterr().err


def test_shipped_critic_is_read_and_written_back_alike(tmp_path):
    write_card(tmp_path, read_card(SHIPPED))
    one, other = (json.loads((folder / CARD).read_text()) for folder in (SHIPPED, tmp_path))
    assert one == other
    assert (read_lora(SHIPPED).rank, read_lora(SHIPPED).alpha) == (16, 32)


def test_calibration_is_written_back_alike(copied, tmp_path):
    made = {
        "maps": {"lip": {"scale": 0.5, "cut": -1.0}, "motion": {"x": [0.0], "y": [0.5]}},
        "method": "temperature",
        "split": "dev",
        "ratings": "r.jsonl",
    }
    edit(copied / CARD, calibration=made)
    (tmp_path / "again").mkdir()
    write_card(tmp_path / "again", read_card(copied))
    assert json.loads((tmp_path / "again" / CARD).read_text())["calibration"] == made


def test_scores_are_kept_by_the_scale_of_the_adapter_too(copied, ratings, tmp_path):
    clip, cache = ratings.parent / "28.mp4", tmp_path / "cache"

    def lip():
        critic = TalkingCritic.from_pretrained(copied, cache_dir=cache)
        return critic.score(videos=[clip])[0].log_odds["lip"]

    first = lip()
    assert lip() == first
    settings = json.loads((copied / LORA).read_text())
    edit(copied / LORA, lora_alpha=4 * settings["lora_alpha"])
    louder = lip()
    assert abs(louder - first) > 1e-3
    fresh = TalkingCritic.from_pretrained(copied).score(videos=[clip])[0].log_odds["lip"]
    assert louder == pytest.approx(fresh)


@pytest.fixture
def foreign(tmp_path):
    """A model directory as the Hub gives it, 20 MB in two files."""
    folder = tmp_path / "Qwen"
    folder.mkdir()
    rng = torch.Generator().manual_seed(0)
    for number in (1, 2):
        tensors = {f"layer{n}": torch.randn(512, 1024, generator=rng) for n in range(5)}
        save_tensors(folder / f"model-{number}-of-2.safetensors", tensors)
    (folder / "config.json").write_text("{}")
    return folder


def test_base_of_the_same_shapes_and_other_values_is_another(foreign, adapter):
    own = base_hash(foreign)
    assert own.startswith("sampled:")
    assert base_hash(foreign) == own
    card = read_card(adapter).model_copy(update={"base_sha256": own})
    assert match_base(card, foreign, adapter) == own
    rng = torch.Generator().manual_seed(1)
    trained = {f"layer{n}": torch.randn(512, 1024, generator=rng) for n in range(5)}
    save_tensors(foreign / "model-2-of-2.safetensors", trained)
    with pytest.raises(UsageError, match=f"another base .sha256 of samples {own[8:20]}"):
        match_base(card, foreign, adapter)
    old = card.model_copy(update={"base_sha256": ""})
    assert match_base(old, foreign, adapter) == base_hash(foreign)
    (foreign / "config.json").write_text('{"rope_theta": 1}')
    assert base_hash(foreign) != match_base(old, adapter, adapter)
