"""Where the adapter sits, how many weights it has, and that a wrong one is refused."""

import json

import pytest
import torch

from ft2.config import load_config
from ft2.critic.adapter import add_lora, count_trainable, load_adapter, save_adapter
from ft2.critic.checkpoint import CriticCard, read_card
from ft2.critic.config import QUESTIONS, CriticConfig, LoraSpec
from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS
from ft2.qwen.thinker import load_thinker, meta_thinker
from ft2.runs import load_tensors, save_tensors


def lora_size(text, rank):
    """A LoRA of rank r on a linear has r * (in + out) weights; seven linears a layer."""
    hidden, kv = text.hidden_size, text.hidden_size // text.num_heads * text.num_kv_heads
    attention = 2 * (hidden + hidden) + 2 * (hidden + kv)
    return rank * text.num_layers * (attention + 3 * (hidden + text.ffn_size))


def decoder_size(text):
    """Embedding, and per layer q, k, v with biases, o, three FFN matrices, two norms; a norm."""
    hidden, kv = text.hidden_size, text.hidden_size // text.num_heads * text.num_kv_heads
    attention = 2 * hidden * hidden + hidden + 2 * (hidden * kv + kv)
    layer = attention + 3 * hidden * text.ffn_size + 2 * hidden
    return text.vocab_size * hidden + text.num_layers * layer + hidden


@pytest.mark.parametrize(
    ("preset", "parameters", "text", "vision", "audio"),
    [
        ("nano/critic", 1_802_784, 755_840, 568_224, 413_184),
        ("full/critic", 8_931_813_888, 7_070_619_136, 676_550_144, 639_647_232),
        ("full/critic-3b", 4_703_464_448, 3_085_938_688, 668_684_288, 637_676_544),
    ],
)
def test_presets_on_the_meta_device(preset, parameters, text, vision, audio):
    config = load_config(CriticConfig, preset)
    thinker = meta_thinker(config.model)

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(thinker) == parameters
    assert count(thinker.model.language_model) == text == decoder_size(config.model.text)
    assert count(thinker.model.visual) == vision
    assert count(thinker.model.audio_tower) == audio
    with torch.device("meta"):
        model = add_lora(thinker, config.lora)
    assert count_trainable(model) == lora_size(config.model.text, config.lora.rank)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("language_model.layers" in name for name in trained)


@pytest.mark.parametrize(
    ("preset", "tied", "billions", "without_embedding"),
    [("full/critic", False, 7.61, 6.53), ("full/critic-3b", True, 3.09, 2.77)],
)
def test_decoders_have_the_sizes_of_qwens_cards(preset, tied, billions, without_embedding):
    """Qwen2.5-7B and -3B say how many weights they have; Omni's decoders are built like them.

    No file of Qwen2.5-Omni-3B was at hand: its towers are the 7B's with outputs of 2048.
    """
    spec = load_config(CriticConfig, preset).model
    embedding = spec.text.vocab_size * spec.text.hidden_size
    own = decoder_size(spec.text)
    assert (own - embedding) / 1e9 == pytest.approx(without_embedding, abs=0.01)
    assert (own + (0 if tied else embedding)) / 1e9 == pytest.approx(billions, abs=0.01)
    if preset.endswith("3b"):
        larger = load_config(CriticConfig, "full/critic").model
        assert (spec.vision, spec.audio) == (larger.vision, larger.audio)


def card(spec):
    thresholds = dict.fromkeys(DIMENSIONS, 0.5)
    return CriticCard(questions=QUESTIONS, model=spec, base_sha256="", thresholds=thresholds)


def saved(spec, path):
    thinker, _ = load_thinker(spec)
    model = add_lora(thinker, LoraSpec(rank=4, alpha=8), seed=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, card(spec), path)
    return model


def test_saved_adapter_comes_back_exactly(spec, tmp_path):
    first = saved(spec, tmp_path / "a")
    second = load_adapter(load_thinker(spec)[0], tmp_path / "a")
    ids = torch.arange(20)[None]
    for model in (first, second):
        model.eval()
    with torch.no_grad():
        assert torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)
        with second.disable_adapter():
            base = second(input_ids=ids).logits
    assert not torch.equal(base, first(input_ids=ids).logits)
    assert read_card(tmp_path / "a") == card(spec)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_unfit_adapter_is_refused(spec, tmp_path, change):
    saved(spec, tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors, _ = load_tensors(path)
    name = next(iter(tensors))
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["base_model.model.other.lora_A.weight"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:1].clone()
    save_tensors(path, tensors)
    with pytest.raises(UsageError, match=name if change != "unexpected" else "other"):
        load_adapter(load_thinker(spec)[0], tmp_path / "a")


def test_older_layout_of_names_is_read(spec, tmp_path):
    model = saved(spec, tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors, _ = load_tensors(path)
    save_tensors(path, {k.replace(".language_model.", "."): v for k, v in tensors.items()})
    again = load_adapter(load_thinker(spec)[0], tmp_path / "a")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, again(input_ids=ids).logits)


def test_directory_without_critic_names_the_right_one(tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(UsageError, match="adapter"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "rao_kupper"}, "lacks the tie widths"),
        ({"objective": "davidson", "tie_widths": {"lip": 1.0}}, "lacks the tie widths"),
        (
            {"calibration": {"maps": {"smile": {"scale": 1, "cut": 0}}}},
            "calibrates unknown dimensions",
        ),
        ({"thresholds": {"lip": 0.0}}, "damaged"),
        ({"head": 1}, "unknown key 'head'"),
    ],
)
def test_card_without_what_was_learned_is_refused(spec, tmp_path, changes, message):
    saved(spec, tmp_path / "a")
    path = tmp_path / "a" / "critic.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UsageError, match=message):
        read_card(tmp_path / "a")
