"""The nine metrics of FantasyTalking on their real architectures, with random weights.

Only a test may do so: what the metric loads itself is refused when it was never trained.
"""

import sys

import numpy as np
import pytest
import torch

from ft2.errors import MissingExtra, UsageError
from ft2.metrics import aesthetic, dynamics, expression, fid, fvd, identity, imaging, sync
from ft2.metrics.frechet import frechet_distance
from ft2.metrics.i3d import InceptionI3d
from ft2.metrics.iresnet import DEPTHS, IResNet, depths_of
from ft2.metrics.measure import Clip
from ft2.metrics.syncnet import SyncNet

pytestmark = pytest.mark.slow


def part(clip, frames):
    """The first frames of a clip, or its first one again and again."""
    chosen = np.zeros(-frames, int) if frames < 0 else np.arange(frames)
    found = Clip(clip.path, clip.frames[chosen], clip.fps, clip.audio)
    found.__dict__["landmarks"] = clip.landmarks[chosen]
    return found


def seeded(make):
    torch.manual_seed(0)
    return make()


def size(network):
    return sum(p.numel() for p in network.parameters())


def inception():
    """torch-fidelity's network as initialised: it takes weights from a file only, so from none."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Real

    class Untrained(Real):
        def load_state_dict(self, state, strict=True):
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *a, **k: {})
        return fid.Inception(Untrained("inception-v3-compat", [fid.FEATURE], "none"))


def test_fid(clean):
    metric = fid.FrameFeatures(lambda: seeded(inception))
    one, two = (metric.measure(part(c, 4)).features for c in clean[:2])
    assert one.shape == (4, 2048)
    assert frechet_distance(one, two) > 100 * frechet_distance(one, one)


def test_fvd(clean):
    network = seeded(InceptionI3d)
    assert size(network) == 12_697_264
    found = fvd.ClipFeatures(lambda: network).measure(clean[0])
    assert found.features.shape == (1, 400)
    frames = torch.zeros(1, 3, 9, 224, 224)
    with torch.no_grad():
        first = network.eval().Conv3d_1a_7x7(frames)
    assert list(first.shape) == [1, 64, 5, 112, 112]
    with pytest.raises(UsageError, match="15 frames: FVD needs windows of 16"):
        fvd.ClipFeatures(lambda: network).measure(part(clean[0], 15))


def test_sync_c_and_sync_d(clean):
    network = seeded(SyncNet)
    assert size(network) == pytest.approx(13.6e6, rel=0.01)
    metric = sync.Sync(lambda: network, batch_size=8, max_shift=5, min_track=25)
    found = metric.measure(part(clean[0], 13)).values
    assert set(found) == {c.name for c in metric.facts.columns}
    assert found["sync_c"] >= 0
    assert found["sync_d"] > 0


def test_expression_similarity(clean, tmp_path):
    network = seeded(IResNet)
    assert size(network) == pytest.approx(43.6e6, rel=0.01)
    metric = expression.Expression(lambda: network)
    moving, still = (metric.measure(part(clean[0], n)).values["es"] for n in (4, -4))
    assert still == pytest.approx(1.0, abs=1e-6)
    assert moving < still
    path = tmp_path / "backbone.pth"
    torch.save(network.state_dict(), path)
    with pytest.raises(UsageError, match="never trained"):
        expression.load_arcface(path)
    network.train()(torch.randn(2, 3, 112, 112))  # its norms have now seen data
    torch.save(network.state_dict(), path)
    loaded = expression.Expression(lambda: expression.load_arcface(path))
    assert loaded.measure(part(clean[0], 3)).values["es"] < 1
    assert depths_of(IResNet(DEPTHS[100]).state_dict()) == DEPTHS[100]


def test_identity_consistency(clean, tmp_path):
    from transformers import ViTConfig, ViTModel

    vit = seeded(lambda: ViTModel(ViTConfig(), add_pooling_layer=False))
    assert size(vit) == pytest.approx(85.8e6, rel=0.01)
    metric = identity.Identity(lambda: identity.ClassToken(vit))
    moving, still = (metric.measure(part(clean[0], n)).values["idc"] for n in (3, -3))
    assert still == pytest.approx(1.0, abs=1e-6)
    assert moving < still
    small = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    ViTModel(small, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="never trained"):
        identity.load_dino(str(tmp_path))


def test_subject_and_background_dynamics(clean):
    from torchvision.models.optical_flow import raft_large

    raft = seeded(lambda: raft_large(weights=None, progress=False))
    assert size(raft) == pytest.approx(5.26e6, rel=0.01)
    metric = dynamics.Dynamics(lambda: dynamics.Flow(raft), side=128)
    found = metric.measure(part(clean[0], 3)).values
    assert found["sd"] > 0
    assert found["bd"] > 0


def test_aesthetic(clean):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    large = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    with torch.device("meta"):
        clip = CLIPVisionModelWithProjection(large)
    assert size(clip) == pytest.approx(304e6, rel=0.01)
    clip.to_empty(device="cpu")
    torch.manual_seed(0)
    for name, value in [*clip.named_parameters(), *clip.named_buffers()]:
        if value.is_floating_point():
            value.data.fill_(1.0) if "norm" in name and value.dim() == 1 else value.data.uniform_(
                -0.02, 0.02
            )
        else:
            value.copy_(torch.arange(value.numel()).reshape(value.shape))
    for head in (aesthetic.Perceptron(), torch.nn.Linear(768, 1)):
        scored = aesthetic.Scored(clip, head)
        found = aesthetic.Aesthetic(lambda: scored).measure(part(clean[0], 2))  # noqa: B023
        assert -1 < found.values["aesthetic"] < 1


def test_imaging_quality_of_pyiqa(clean, tmp_path, monkeypatch):
    """Runs where pyiqa is (`uv sync --extra iqa`, as .ci/run does): nobody gets it unasked."""
    pytest.importorskip("pyiqa", reason="an option under its own licence: uv sync --extra iqa")
    network = seeded(imaging.musiq)
    assert size(network) == pytest.approx(27.1e6, rel=0.01)
    metric = imaging.Imaging(lambda: network)
    sharp = metric.measure(part(clean[0], 3)).values["imaging"]
    assert np.isfinite(sharp)
    frames = part(clean[0], 3).frames
    frame = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255  # 64 pixels: neither cut nor scaled
    with torch.no_grad():
        assert sharp == pytest.approx(float(network(frame).mean()) / 100, abs=1e-6)
    path = tmp_path / "musiq.pth"
    torch.save(network.state_dict(), path)
    with pytest.raises(UsageError, match="never trained"):
        imaging.load_musiq(path)
    state = network.state_dict()
    state["gn_root.weight"] += 0.1
    torch.save(state, path)
    assert size(imaging.load_musiq(path)) == size(network)


def test_imaging_quality_without_pyiqa_or_with_large_frames(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    monkeypatch.setitem(sys.modules, "pyiqa.archs.musiq_arch", None)
    with pytest.raises(MissingExtra, match="pyiqa") as missing:
        imaging.musiq()
    assert "--extra iqa" in missing.value.hint
    frames = np.full((2, 600, 1024, 3), 51, np.uint8)
    found = imaging.whole(frames)
    assert found.shape == (2, 3, 300, 512)
    assert torch.allclose(found, torch.tensor(0.2))
