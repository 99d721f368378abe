"""The critic's LoRA: where it sits, how it is saved, a loader that refuses what does not fit."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ft2.critic.checkpoint import FILES, CriticCard, read_lora, write_card
from ft2.critic.config import LoraSpec
from ft2.errors import RunError, UsageError
from ft2.runs import atomic_dir, load_tensors, save_tensors

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

TARGETS = (
    r"model\.(?:language_model\.)?layers\.\d+\."
    r"(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"
)
"""Linears of the text decoder, under transformers' names before and since 5.21.1."""

LINEARS_PER_LAYER = 7


def add_lora(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration", spec: LoraSpec, seed: int = 0
) -> "PeftModel":
    """Put a fresh adapter on every linear of the text decoder and freeze everything else.

    Raises:
        RunError: The adapter did not land on the seven linears of every layer, and only there.
    """
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT asks under a name that newer transformers call deprecated
        warnings.filterwarnings("ignore", r"`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        model = get_peft_model(
            thinker,
            LoraConfig(
                r=spec.rank,
                lora_alpha=spec.alpha,
                lora_dropout=spec.dropout,
                target_modules=TARGETS,
                bias="none",
            ),
        )
    layers = thinker.config.get_text_config().num_hidden_layers
    found = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    wrong = [name for name in found if "audio_tower" in name or "visual" in name]
    if len(found) != LINEARS_PER_LAYER * layers or wrong:
        raise RunError(
            f"the adapter landed on {len(found)} linears ({len(wrong)} in the towers), "
            f"expected {LINEARS_PER_LAYER * layers} in {layers} decoder layers",
            "this version of transformers names the decoder's layers differently",
        )
    return model


def count_trainable(model: torch.nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def adapter_state(model: "PeftModel") -> dict[str, Tensor]:
    """Return the adapter's tensors under PEFT's names."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model)
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def save_adapter(
    model: "PeftModel",
    card: CriticCard,
    directory: Path,
    tensors: dict[str, Tensor] | None = None,
) -> None:
    """Write ``adapter_config.json``, ``adapter_model.safetensors`` and ``critic.json`` at once.

    Args:
        model: The adapted model.
        card: Its card.
        directory: Where to write.
        tensors: The adapter's tensors under PEFT's names; None takes the model's.
    """
    with atomic_dir(directory) as temporary:
        config = model.peft_config["default"]
        config.inference_mode = True
        config.save_pretrained(str(temporary))
        config.inference_mode = False
        state = adapter_state(model) if tensors is None else tensors
        save_tensors(temporary / FILES[1], state)
        write_card(temporary, card)


def load_adapter(
    thinker: "Qwen2_5OmniThinkerForConditionalGeneration", directory: Path
) -> "PeftModel":
    """Put a saved adapter on a base.

    Raises:
        UsageError: Files are missing or damaged, it is no plain LoRA, or tensors are missing,
            unexpected or of another shape.
    """
    from peft import set_peft_model_state_dict

    model = add_lora(thinker, read_lora(directory))
    tensors, _ = load_tensors(directory / FILES[1])
    expected = adapter_state(model)
    tensors = _translate(tensors, expected)
    problems = [f"missing {n}" for n in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {n}" for n in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{n} has shape {list(tensors[n].shape)}, expected {list(expected[n].shape)}"
        for n in sorted(expected.keys() & tensors.keys())
        if tensors[n].shape != expected[n].shape
    ]
    if problems:
        raise UsageError(
            f"{directory} does not fit the base: {len(problems)} tensors, first: {problems[0]}",
            "load it with the model sizes and versions it was trained with (see critic.json)",
        )
    set_peft_model_state_dict(model, tensors)
    return model.eval()


def _translate(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the decoder's layers between transformers' layouts before and since 5.21.1."""
    new, old = ".model.language_model.layers.", ".model.layers."
    if any(new in name for name in expected):
        return {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return {name.replace(new, old): tensor for name, tensor in tensors.items()}
