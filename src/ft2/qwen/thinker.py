"""Build, load and save a `Qwen2_5OmniThinkerForConditionalGeneration` of any size."""

from pathlib import Path
from typing import TYPE_CHECKING

from ft2.errors import UsageError
from ft2.qwen.spec import QwenSpec

if TYPE_CHECKING:
    import torch
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
    )

SPECIAL_IDS = {
    "audio_token_index": "<|AUDIO|>",
    "image_token_index": "<|IMAGE|>",
    "video_token_index": "<|VIDEO|>",
    "audio_start_token_id": "<|audio_bos|>",
    "audio_end_token_id": "<|audio_eos|>",
    "vision_start_token_id": "<|vision_bos|>",
    "vision_end_token_id": "<|vision_eos|>",
}


def thinker_config(
    spec: QwenSpec, processor: "Qwen2_5OmniProcessor | None" = None
) -> "Qwen2_5OmniThinkerConfig":
    """Return the transformers config of `spec`.

    Args:
        spec: Sizes.
        processor: Where the ids of the special tokens come from; None keeps Qwen2.5-Omni's ids.
    """
    from transformers import Qwen2_5OmniThinkerConfig

    ids = {"vision_start_token_id": 151652, "vision_end_token_id": 151653}
    if processor is not None:
        convert = processor.tokenizer.convert_tokens_to_ids
        ids = {name: int(convert(token)) for name, token in SPECIAL_IDS.items()}
    return Qwen2_5OmniThinkerConfig(
        text_config=_text_config(spec),
        vision_config=_vision_config(spec),
        audio_config=_audio_config(spec),
        tie_word_embeddings=False,
        **ids,
    )


def _text_config(spec: QwenSpec) -> dict[str, object]:
    text = spec.text
    return {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.ffn_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": list(text.mrope_section),
        },
        "tie_word_embeddings": False,
    }


def _vision_config(spec: QwenSpec) -> dict[str, object]:
    vision = spec.vision
    return {
        "depth": vision.num_layers,
        "hidden_size": vision.hidden_size,
        "num_heads": vision.num_heads,
        "intermediate_size": vision.ffn_size,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge_size,
        "temporal_patch_size": 2,
        "window_size": vision.window_size,
        "fullatt_block_indexes": list(vision.full_attention_layers),
        "out_hidden_size": spec.text.hidden_size,
    }


def _audio_config(spec: QwenSpec) -> dict[str, object]:
    audio = spec.audio
    return {
        "num_mel_bins": audio.num_mel_bins,
        "encoder_layers": audio.num_layers,
        "encoder_attention_heads": audio.num_heads,
        "encoder_ffn_dim": audio.ffn_size,
        "d_model": audio.hidden_size,
        "output_dim": spec.text.hidden_size,
        "n_window": 100,
    }


def new_thinker(
    spec: QwenSpec, processor: "Qwen2_5OmniProcessor", seed: int = 0
) -> "Qwen2_5OmniThinkerForConditionalGeneration":
    """Return a Thinker with random weights drawn from `seed`, in evaluation mode, float32.

    Weights have standard deviation ``fan_in ** -0.5``: transformers' 0.02 is meant for widths of
    thousands and makes narrow layers start almost silent.
    """
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        thinker = Qwen2_5OmniThinkerForConditionalGeneration(thinker_config(spec, processor))
        for module in thinker.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv3d):
                torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            elif isinstance(module, torch.nn.Embedding):
                torch.nn.init.normal_(module.weight, std=0.5)
    return thinker.eval()


def meta_thinker(spec: QwenSpec) -> "Qwen2_5OmniThinkerForConditionalGeneration":
    """Return a Thinker without storage (torch's meta device), to count and plan with."""
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    with torch.device("meta"):
        return Qwen2_5OmniThinkerForConditionalGeneration(thinker_config(spec))


def weights_dir(spec: QwenSpec) -> Path:
    """Return the directory that holds the weights and processor files of `spec`.

    Raises:
        UsageError: It does not exist, or lacks the files.
    """
    if spec.weights == "nano":
        from ft2.weights import nano_dir

        path = nano_dir()
    else:
        path = Path(spec.weights)
    if not path.is_dir():
        raise UsageError(
            f"the Thinker's weights '{spec.weights}' are not a directory",
            "give weights=DIR with the safetensors and processor files of Qwen2.5-Omni",
        )
    if not (path / "thinker.safetensors").is_file() and not (path / "config.json").is_file():
        raise UsageError(
            f"{path} has neither thinker.safetensors nor config.json",
            "make nano weights with `ft2 critic pretrain`, or point weights= at a model directory",
        )
    return path


def load_processor(spec: QwenSpec) -> "Qwen2_5OmniProcessor":
    """Return the processor that belongs to the weights of `spec`."""
    from transformers import Qwen2_5OmniProcessor

    path = weights_dir(spec)
    own = path / "thinker"
    return Qwen2_5OmniProcessor.from_pretrained(own if own.is_dir() else path)


def load_thinker(
    spec: QwenSpec, device: "str | torch.device" = "cpu", dtype: "torch.dtype | None" = None
) -> tuple["Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniProcessor"]:
    """Return the Thinker of `spec` with its weights, in evaluation mode, and its processor.

    Args:
        spec: Sizes and `weights`.
        device: Where to put the model; a name is refused before anything is read if there is no
            such device.
        dtype: Number format; None means float32 for ft2's own files, theirs otherwise.

    Raises:
        UsageError: The weights are missing, or do not fit the sizes.
    """
    from ft2.engine import local_device

    device = local_device(device) if isinstance(device, str) else device
    path = weights_dir(spec)
    processor = load_processor(spec)
    own = path / "thinker.safetensors"
    if not own.is_file():
        from transformers import Qwen2_5OmniThinkerForConditionalGeneration

        loaded = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(path, dtype=dtype)
        return loaded.to(device).eval(), processor
    thinker = new_thinker(spec, processor)
    _load_state(thinker, own)
    return thinker.to(device=device, dtype=dtype).eval(), processor


def _load_state(thinker: "Qwen2_5OmniThinkerForConditionalGeneration", path: Path) -> None:
    from ft2.runs import load_tensors

    tensors, _ = load_tensors(path)
    expected = thinker.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in tensors
        or name not in expected
        or tensors[name].shape != expected[name].shape
    )
    if wrong:
        raise UsageError(
            f"{path} does not fit the configured Thinker: {len(wrong)} tensors differ, "
            f"the first is {wrong[0]}",
            "use the sizes that the weights were made with (text, vision, audio)",
        )
    thinker.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def save_thinker(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration",
    processor: "Qwen2_5OmniProcessor",
    directory: Path,
    *,
    half: bool = True,
) -> Path:
    """Write `thinker.safetensors` and the processor files under `directory`; return the first.

    Args:
        thinker: The model.
        processor: Its processor, written to `directory/thinker/`.
        directory: Made when absent.
        half: Store float16, which halves the file; loading gives float32 back.
    """
    import torch

    from ft2.runs import save_tensors

    directory.mkdir(parents=True, exist_ok=True)
    state = thinker.state_dict()
    if half:
        state = {name: t.to(torch.float16) for name, t in state.items()}
    path = directory / "thinker.safetensors"
    save_tensors(path, {name: t.contiguous() for name, t in state.items()})
    processor.save_pretrained(directory / "thinker")
    return path
