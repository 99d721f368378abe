"""Identity and motion branches against independent arithmetic; fresh ones change nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_dit import SIZES, inputs, randomise
from torch import Tensor, nn

from ft2.errors import UsageError
from ft2.lora import SharedGate, expert_parameters, install_experts
from ft2.runs import save_tensors
from ft2.wan.block import IdentityProcessor, TalkingBlock, identity_attention, split_heads
from ft2.wan.branches import add_branches, branch_parameters, branch_state, load_branch
from ft2.wan.dit import TalkingTransformer
from ft2.wan.identity import IdentityFormer, QFormerLayer
from ft2.wan.intensity import MotionIntensity, ranks, strength_knots
from ft2.wan.spec import Architecture, DitSpec, IdentitySpec, MotionSpec, WanSpec
from ft2.wan.weights import cast_transformer, load_talking_model, meta_dit

SMALL = Architecture(
    dit=DitSpec(num_attention_heads=2, attention_head_dim=12),
    identity=IdentitySpec(
        features=10, face_tokens=2, queries=3, dim=16, num_layers=2, num_heads=4, scale=0.5
    ),
    motion=MotionSpec(dim=16),
)


@pytest.fixture
def dit() -> TalkingTransformer:
    model = TalkingTransformer(**SIZES, audio_features=10, audio_dim=14).eval()
    randomise(model)
    return model


def known(batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    face = torch.nn.functional.normalize(torch.randn(batch, 10, generator=generator), dim=1)
    return {
        "identity": face,
        "identity_scale": torch.full((batch,), 0.5),
        "motion": torch.rand(batch, 2, generator=generator),
    }


def with_branches(dit: TalkingTransformer) -> TalkingTransformer:
    add_branches(dit, SMALL, ("identity", "motion"))
    for branch in ("identity", "motion"):
        for name, value in branch_state(dit, branch).items():
            if not name.endswith("knots"):
                generator = torch.Generator().manual_seed(len(name))
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return dit


@torch.no_grad()
def test_fresh_branches_leave_the_output_as_it_is_to_the_bit(dit: TalkingTransformer) -> None:
    want = dit(**inputs())
    add_branches(dit, SMALL, ("identity", "motion"))
    assert torch.equal(dit(**inputs(), **known()), want)
    with_branches(dit)
    base = dit(**inputs(), **known())
    for name in ("identity", "motion"):
        given = known()
        given[name] = given[name].flip(0)
        assert (dit(**inputs(), **given) - base).abs().max() > 1e-4, name
    off = known() | {"identity_scale": torch.zeros(2)}
    assert torch.equal(dit(**inputs(), **(off | {"identity": known()["identity"].flip(0)})),
                       dit(**inputs(), **off))  # fmt: skip


def test_a_qformer_layer_is_torchs_decoder_layer() -> None:
    torch.manual_seed(0)
    ours = QFormerLayer(24, 4)
    theirs = nn.TransformerDecoderLayer(
        24, 4, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    state = {
        "self_attn.in_proj": ours.self_qkv, "self_attn.out_proj": ours.self_out,
        "multihead_attn.out_proj": ours.cross_out, "linear1": ours.up, "linear2": ours.down,
        "norm1": ours.before_self, "norm2": ours.before_cross, "norm3": ours.before_up,
    }  # fmt: skip
    tensors = {f"{n}{'_' if n.endswith('in_proj') else '.'}{kind}": getattr(part, kind)
               for n, part in state.items() for kind in ("weight", "bias")}  # fmt: skip
    for kind in ("weight", "bias"):
        parts = (getattr(ours.cross_q, kind), getattr(ours.cross_kv, kind))
        tensors[f"multihead_attn.in_proj_{kind}"] = torch.cat(parts)
    theirs.load_state_dict(tensors)
    queries, face = torch.randn(3, 5, 24), torch.randn(3, 2, 24)
    torch.testing.assert_close(ours(queries, face), theirs(queries, face), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("width", "dim"), [(12, 20), pytest.param(128, 1024, marks=pytest.mark.slow)]
)
def test_identity_attention_is_the_published_term(width: int, dim: int) -> None:
    """Z + lambda_2 softmax(Q K^T / sqrt(d)) V, head by head; slow: at Wan 14B's width."""
    heads, full = 40, 40 * width
    torch.manual_seed(1)
    block = TalkingBlock(full, 8, heads, "rms_norm_across_heads", True, 1e-6, full, 4)
    block.attn2.identity = IdentityProcessor(dim, full)
    nn.init.normal_(block.attn2.identity.v_proj.weight, std=dim**-0.5)
    query, tokens = torch.randn(2, 3, full), torch.randn(2, 6, dim)
    leaves = [query.requires_grad_(), tokens.requires_grad_(), *block.attn2.identity.parameters()]
    ours = identity_attention(block.attn2, split_heads(query, heads), tokens, None)
    key_weight, value_weight = leaves[2:]
    rows = []
    for item in range(2):
        key, value = tokens[item] @ key_weight.T, tokens[item] @ value_weight.T
        parts = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            logits = query[item][:, part] @ key[:, part].T / width**0.5
            parts.append(logits.softmax(1) @ value[:, part])
        rows.append(torch.cat(parts, 1))
    want = torch.stack(rows)
    torch.testing.assert_close(ours, want, atol=1e-5, rtol=1e-5)
    way = torch.randn(ours.shape)
    found, expected = (torch.autograd.grad((x * way).sum(), leaves) for x in (ours, want))
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-4)


def convolved(x: np.ndarray, layer: nn.Conv1d) -> np.ndarray:
    """Width-3 convolution of [C, T] in float64, by its definition."""
    weight = layer.weight.detach().double().numpy()
    padded = np.pad(x, ((0, 0), (1, 1)))
    steps = [np.einsum("oik,ik->o", weight, padded[:, t : t + 3]) for t in range(x.shape[1])]
    return np.stack(steps, 1) + layer.bias.detach().double().numpy()[:, None]


@pytest.mark.parametrize("body", [True, False])
def test_motion_intensity_is_mlp_resnet_layer_and_mean(body: bool) -> None:
    torch.manual_seed(2)
    net = MotionIntensity(MotionSpec(dim=16, body=body), 5)
    assert not net(torch.rand(3, 2)).any(), "fresh: nothing is added"
    nn.init.normal_(net.out.weight)
    omega = torch.tensor([[0.1, 0.9], [0.7, 0.4]])

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    def normalised(x: np.ndarray) -> np.ndarray:
        groups = x.reshape(8, -1)
        flat = (groups - groups.mean(1, keepdims=True)) / np.sqrt(
            groups.var(1, keepdims=True) + 1e-5
        )
        return flat.reshape(x.shape)

    for row, found in zip(omega.double().numpy(), net(omega), strict=True):
        columns = []
        for value, mlp in zip(row, net.mlps, strict=False):
            first, last = (
                [p.detach().double().numpy() for p in mlp[i].parameters()] for i in (0, 2)
            )
            columns.append(last[0] @ silu(first[0][:, 0] * value + first[1]) + last[1])
        x = np.stack(columns, 1)
        x = x + convolved(silu(normalised(convolved(silu(normalised(x)), net.conv1))), net.conv2)
        want = net.out.weight.detach().double().numpy() @ x.mean(1) + net.out.bias.detach().numpy()
        np.testing.assert_allclose(found.detach().numpy(), want, atol=1e-5)


def test_omega_is_the_rank_in_the_training_set() -> None:
    rng = np.random.default_rng(3)
    strengths = rng.lognormal(size=4001)
    knots = strength_knots(np.append(strengths, np.nan))
    fresh = rng.choice(strengths, 50)
    want = [(strengths < value).mean() for value in fresh]
    np.testing.assert_allclose(ranks(fresh, knots), want, atol=0.02)
    assert ranks(np.array([0.0, 1e9, np.nan]), knots).tolist() == [0.0, 1.0, 0.5]
    assert strength_knots(np.full(3, np.nan)) is None
    net = MotionIntensity(MotionSpec(dim=16), 4)
    net.set_range(np.stack([strengths, np.full(4001, np.nan)], 1))
    omega = net.omega(np.array([[np.median(strengths), 1.0]]))
    assert omega[0, 0].item() == pytest.approx(0.5, abs=0.01)


def test_branches_do_not_mix_a_batch_and_survive_checkpointing(dit: TalkingTransformer) -> None:
    with_branches(dit)
    both = dit(**inputs(), **known())
    one = dit(**{n: v[1:] for n, v in (inputs() | known()).items()})
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=1e-5)
    gradients = []
    for checkpointing in (False, True):
        dit.gradient_checkpointing = checkpointing
        dit.zero_grad()
        dit(**inputs(), **known()).square().mean().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in dit.named_parameters() if p.grad is not None}
        )
    assert any("intensity" in n for n in gradients[0])
    assert any("attn2.identity" in n for n in gradients[0])
    for name, plain in gradients[0].items():
        torch.testing.assert_close(plain, gradients[1][name])


@torch.no_grad()
def test_experts_act_beside_the_branches_merged_or_not(dit: TalkingTransformer) -> None:
    with_branches(dit)
    base = dit(**inputs(), **known())
    install_experts(dit, ["attn2.to_q", "ffn.net.2", "attn2.identity.v_proj"], 2, 3, 3.0)
    for number, parameter in enumerate(expert_parameters(dit)):
        torch.manual_seed(number)
        nn.init.normal_(parameter, std=0.1)
    weights = torch.rand(2, 2)
    beside = dit(**inputs(), **known(), gate=weights.expand(2, 2, 2))
    merged = dit(**inputs(), **known(), gate=SharedGate(weights))
    torch.testing.assert_close(beside, merged, atol=1e-5, rtol=1e-5)
    assert (beside - base).abs().max() > 1e-4
    assert torch.equal(dit(**inputs(), **known()), base)


def test_a_branch_comes_back_from_its_file_and_others_are_refused(
    dit: TalkingTransformer, tmp_path: Path
) -> None:
    with_branches(dit)
    want = branch_state(dit, "identity")
    save_tensors(tmp_path / "identity.safetensors", {n: v.clone() for n, v in want.items()})
    other = TalkingTransformer(**SIZES, audio_features=10, audio_dim=14)
    add_branches(other, SMALL, ("identity",), seed=9)
    load_branch(other, "identity", tmp_path / "identity.safetensors")
    assert all(torch.equal(v, want[n]) for n, v in branch_state(other, "identity").items())
    wide = SMALL.model_copy(update={"identity": SMALL.identity.model_copy(update={"queries": 4})})
    add_branches(other, wide, ("identity",))
    with pytest.raises(UsageError, match=r"1 tensors \(identity.queries is \(3, 16\)"):
        load_branch(other, "identity", tmp_path / "identity.safetensors")


@torch.no_grad()
def test_bfloat16_keeps_the_motion_network_in_float32(dit: TalkingTransformer) -> None:
    with_branches(dit)
    want = dit(**inputs(), **known())
    cast_transformer(dit)
    assert {p.dtype for n, p in dit.named_parameters() if n.startswith("intensity.")} == {
        torch.float32
    }
    given = {n: v.bfloat16() if v.is_floating_point() and n not in ("timestep", "motion") else v
             for n, v in (inputs() | known()).items()}  # fmt: skip
    found = dit(**given).float()
    assert (found - want).norm() < 0.05 * want.norm()


def test_full_size_branches_are_counted_without_memory() -> None:
    spec = WanSpec(architecture=Architecture(), branches=("identity", "motion"))
    dit = meta_dit(spec)
    assert all(p.is_meta for p in dit.parameters())
    blocks = 40 * 2 * 1024 * 5120
    layer = 4 * 1024**2 + 4 * 1024 + 4 * 1024**2 + 4 * 1024 + 8 * 1024**2 + 5 * 1024 + 6 * 1024
    former = 512 * 4096 + 4096 + 32 * 1024 + 4 * layer + 2 * 1024
    assert branch_parameters(dit, "identity") == blocks + former
    motion = 2 * (2 * 512 + 512**2 + 512) + 4 * 512 + 2 * (3 * 512**2 + 512) + 513 * 5120
    assert branch_parameters(dit, "motion") == motion
    assert isinstance(dit.identity, IdentityFormer)
    base = sum(p.numel() for p in meta_dit(WanSpec(architecture=Architecture())).parameters())
    assert sum(p.numel() for p in dit.parameters()) == base + blocks + former + motion


def test_a_missing_branch_or_face_network_is_said_before_loading(tmp_path: Path) -> None:
    from ft2.wan.weights import check_branches

    spec = WanSpec(weights=str(tmp_path), architecture=Architecture(), branches=("motion",))
    with pytest.raises(UsageError, match="no motion branch"):
        load_talking_model(spec)
    (tmp_path / "identity.safetensors").touch()
    spec = spec.model_copy(update={"branches": ("identity",)})
    with pytest.raises(UsageError, match="needs a face-recognition network"):
        check_branches(spec)
    with pytest.raises(UsageError, match=r"no face-recognition network 'gone\.onnx'"):
        check_branches(spec.model_copy(update={"face_weights": "gone.onnx"}))
