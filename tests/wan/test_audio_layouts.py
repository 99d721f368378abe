"""FantasyTalking's audio branch in its four published layouts, and pickles that are refused."""

from pathlib import Path

import pytest
import torch

from ft2.errors import UsageError
from ft2.wan.checkpoint import flatten_checkpoint, load_pickle
from ft2.wan.layouts import audio_name, canonical_names, describe_names


def branch(layers: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    names = {"proj.weight": (16, 16), "norm.weight": (16,), "norm.bias": (16,)}
    state = {f"proj_model.{n}": torch.randn(s) for n, s in names.items()}
    for layer in range(layers):
        for kind in "kv":
            name = f"blocks.{layer}.cross_attn.processor.{kind}_proj.weight"
            state[name] = torch.randn(24, 16)
    return state


def layouts() -> dict[str, dict[str, object]]:
    flat = branch()
    projection = {n.removeprefix("proj_model."): t for n, t in flat.items() if "proj_model" in n}
    processors = {n: t for n, t in flat.items() if "processor" in n}
    return {
        "official": {"proj_model": projection, "audio_processor": processors},
        "flat": {
            **{f"proj_model.{n}": t for n, t in projection.items()},
            **{f"audio_processor.{n}": t for n, t in processors.items()},
        },
        "comfy": {n.replace(".processor", ""): t for n, t in flat.items()},
        "whole": {**flat, "blocks.0.self_attn.q.weight": torch.zeros(2, 2)},
    }


@pytest.mark.parametrize("name", ["official", "flat", "comfy", "whole"])
def test_every_layout_gives_the_same_branch(name: str) -> None:
    given = flatten_checkpoint(layouts()[name])
    names = canonical_names(list(given), official=False)
    found = {names[old]: tensor for old, tensor in given.items() if audio_name(old)}
    want = {n.replace("cross_attn", "attn2"): t for n, t in branch().items()}
    assert found.keys() == want.keys()
    assert all(torch.equal(found[n], want[n]) for n in want)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("official", "official layout, 2 blocks, 7 tensors, complete"),
        ("flat", "official layout"),
        ("comfy", "without 'processor' (ComfyUI) layout, 2 blocks"),
        ("whole", "inside a whole transformer layout"),
    ],
)
def test_every_layout_is_told_by_its_names(name: str, said: str) -> None:
    given = flatten_checkpoint(layouts()[name])
    found = describe_names({n: tuple(t.shape) for n, t in given.items()})
    assert str(found["audio_branch"]).startswith(said)


class Runs:
    """A pickle that runs code when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code in a pickle ran')",)


@pytest.mark.parametrize("value", [Path("x"), Runs()])
def test_a_pickle_that_is_not_plain_tensors_is_refused(tmp_path: Path, value: object) -> None:
    torch.save({"proj_model": value}, tmp_path / "fantasytalking_model.ckpt")
    with pytest.raises(UsageError, match="not a readable checkpoint"):
        load_pickle(tmp_path / "fantasytalking_model.ckpt")
