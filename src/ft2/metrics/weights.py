"""Trained weights for metrics: found, compared with what was published, loaded whole or refused."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.errors import UsageError
from ft2.files import hash_file, load_tensors
from ft2.metrics.published import Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Identity:
    """What given weights are, known without loading them.

    Attributes:
        given: Path or hub id.
        sha256: SHA-256 of the file; empty where the Hub has yet to send it.
        published: Name of the published file that it is, byte for byte; empty where it is none.
        remark: What a reader of the scores must know, with both sums; empty where nothing.
    """

    given: str
    sha256: str = ""
    published: str = ""
    remark: str = ""


def identify(weights: Weights, given: str | Path) -> Identity:
    """Return what a weights file or a model's folder is; a model on the Hub by its id.

    Raises:
        UsageError: No such file or folder, or the name of a published file on another one.
    """
    path = Path(given)
    if weights.hub_id:
        return _identify_model(weights, str(given))
    if not path.is_file():
        raise UsageError(
            f"weights.{weights.key}: there is no file '{path}'",
            f"get {weights.wanted} from {weights.source}",
        )
    found = _compare(weights, str(given), path)
    meant = next((f for f in weights.files if f.name == path.name and f.sha256), None)
    if meant and not found.published:
        raise UsageError(
            f"weights.{weights.key}: '{path}' is not the published {meant.name}: its SHA-256 is "
            f"{found.sha256}, published is {meant.sha256}",
            f"get it anew from {weights.source}; a file of your own needs a name of its own",
        )
    return found


def _identify_model(weights: Weights, given: str) -> Identity:
    folder = Path(given)
    names = [file.name for file in weights.files]
    if (folder / "config.json").is_file():
        held = [folder / name for name in names if (folder / name).is_file()]
    elif not folder.exists() and _HUB_ID.fullmatch(given):
        from huggingface_hub import try_to_load_from_cache

        cached = [try_to_load_from_cache(given, name) for name in names]
        held = [Path(path) for path in cached if isinstance(path, str)]
    else:
        raise UsageError(
            f"weights.{weights.key}: '{given}' is neither a model's folder nor a hub id",
            f"give a folder with config.json, or {weights.hub_id}",
        )
    if held:
        return _compare(weights, given, held[0])
    other = "" if given == weights.hub_id else f"weights.{weights.key} is not {weights.hub_id}"
    return Identity(given, remark=other)


def _compare(weights: Weights, given: str, path: Path) -> Identity:
    digest = hash_file(path)
    known = [file for file in weights.files if file.sha256]
    match = next((file.name for file in known if digest.startswith(file.sha256)), "")
    if match:
        return Identity(given, digest, match)
    sums = "; ".join(f"{file.name} {file.sha256}" for file in known)
    return Identity(
        given, digest, remark=f"weights.{weights.key}: '{given}' has the SHA-256 {digest}, which "
        f"is that of no published file that we know ({sums})",
    )  # fmt: skip


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
    norms = [v for k, v in state.items() if re.search(r"(norm\w*|ln\w*|gn\w*)\.weight$", k, re.I)]
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
