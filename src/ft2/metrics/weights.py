"""Trained weights for metrics: found, compared with what was published, loaded whole or refused."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.errors import UsageError
from ft2.files import hash_file, load_tensors
from ft2.metrics.measure import Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def identify(weights: Weights, given: str | Path) -> str:
    """Return the SHA-256 of a weights file, or the id of a model, without loading it.

    Raises:
        UsageError: No such file or folder, or not the published file.
    """
    path = Path(given)
    if weights.folder:
        if (path / "config.json").is_file() or (
            not path.exists() and _HUB_ID.fullmatch(str(given))
        ):
            return str(given)
        raise UsageError(
            f"weights.{weights.key}: '{given}' is neither a model's folder nor a hub id",
            f"give a folder with config.json, or {weights.file}",
        )
    if not path.is_file():
        raise UsageError(
            f"weights.{weights.key}: there is no file '{path}'",
            f"get {weights.file} from {weights.source}",
        )
    digest = hash_file(path)
    if weights.sha256 and not digest.startswith(weights.sha256):
        raise UsageError(
            f"weights.{weights.key}: the SHA-256 of '{path}' begins with {digest[:8]}, that of "
            f"{weights.file} with {weights.sha256}",
            f"get the file anew from {weights.source}",
        )
    return digest


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a torch file that holds nothing else.

    Raises:
        UsageError: It cannot be read as such.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        text = str(error).splitlines()[0]
        raise UsageError(f"'{path}' holds no plain weights: {text}", "get the file anew") from error
    if isinstance(state, Mapping) and "state_dict" in state:
        state = state["state_dict"]
    whole = isinstance(state, Mapping) and bool(state)
    if not whole or not all(map(torch.is_tensor, state.values())):
        raise UsageError(f"'{path}' is no table of tensors", "give a state_dict")
    return dict(state)


def fill(network: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> nn.Module:
    """Load weights into a network, all of them, and return it ready to run.

    Raises:
        UsageError: A tensor is missing, left over or of another shape, or nothing was trained.
    """
    own = network.state_dict()
    ignored = {k for k in {*own, *state} if k.endswith("num_batches_tracked")}
    problems = [f"{k} is missing" for k in own.keys() - state.keys() - ignored]
    problems += [f"{k} fits nowhere" for k in state.keys() - own.keys() - ignored]
    problems += [f"{k} has shape {list(state[k].shape)}, not {list(own[k].shape)}"
                 for k in (own.keys() & state.keys()) - ignored
                 if own[k].shape != state[k].shape]  # fmt: skip
    if problems:
        shown = ", ".join(sorted(problems)[:4])
        raise UsageError(
            f"'{source}' does not fit {type(network).__name__}: {shown}",
            f"{len(problems)} tensors differ: is it the file that the docs name?",
        )
    refuse_untrained(state, source)
    network.load_state_dict({k: state.get(k, own[k]) for k in own})
    return network.eval().requires_grad_(False)


def refuse_untrained(state: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse weights that never saw data.

    Batch norms that counted nothing (means 0, variances 1), or else layer norms that are all 1.

    Raises:
        UsageError: They are as initialised.
    """
    means = [v for k, v in state.items() if k.endswith("running_mean")]
    variances = [v for k, v in state.items() if k.endswith("running_var")]
    norms = [v for k, v in state.items() if re.search(r"(layer_?norm\w*|ln\w*)\.weight$", k, re.I)]
    fresh = bool(means) and all(bool((m == 0).all()) for m in means)
    fresh &= all(bool((v == 1).all()) for v in variances)
    fresh |= not means and bool(norms) and all(bool((v == 1).all()) for v in norms)
    if fresh:
        raise UsageError(
            f"the weights in '{source}' were never trained: their norms are as initialised",
            "random weights give numbers without a meaning: get the published file",
        )


def pretrained(model_class: Any, name: str, **options: Any) -> nn.Module:
    """Return a transformers model with all its weights.

    Raises:
        UsageError: The model cannot be found or read, or some of its weights are not there.
    """
    try:
        model, info = model_class.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot load '{name}': {str(error).splitlines()[0]}",
            "download the model first, and give its folder",
        ) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise UsageError(f"'{name}' lacks weights: {missing}", "is it the model that docs name?")
    refuse_untrained(model.state_dict(), name)
    ready: nn.Module = model.eval().requires_grad_(False)
    return ready
