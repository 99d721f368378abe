"""Base training: batches that depend on the step alone, dense targets, exact resume."""

import json

import numpy as np
import pytest
import torch
from critic_toys import SMALL

from ft2.critic import base, heads
from ft2.critic.arrays import CURVES, MIRRORED, Arrays, Sampler, load_arrays, loudness
from ft2.critic.publish import publish
from ft2.critic.vary import retexture
from ft2.errors import UsageError
from ft2.qwen.thinker import load_thinker
from ft2.qwen.tokens import build_processor
from ft2.qwen.view import composite
from ft2.runs import Silent, hash_file, load_tensors, read_json, save_tensors, write_json

NUM, FRAMES = 12, SMALL.clip.num_frames


def write_shards(folder, seed):
    rng = np.random.default_rng(seed)
    for split in ("train", "dev"):
        (folder / split).mkdir(parents=True)
        rows = [
            {
                "identity_id": f"face{i % 3}",
                "audio_id": f"voice{i % 4}",
                "caption": "",
                "defects": ["jitter" if i % 2 else "", "", "blur" if i % 3 else ""],
            }
            for i in range(NUM)
        ]
        tensors = {
            "frames": rng.integers(0, 256, (NUM, FRAMES, 64, 64, 3), dtype=np.uint8),
            "audio": rng.integers(-9999, 9999, (NUM, SMALL.clip.num_samples), dtype=np.int16),
            "curves": rng.standard_normal((NUM, FRAMES, len(CURVES))).astype(np.float32),
            "shown": rng.standard_normal((NUM, FRAMES, len(CURVES))).astype(np.float32),
            "labels": rng.integers(0, 2, (NUM, 3), dtype=np.uint8),
        }
        path = folder / split / "shard-00000.safetensors"
        save_tensors(
            path, {k: torch.from_numpy(v) for k, v in tensors.items()}, {"clips": json.dumps(rows)}
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    write_shards(folder, 0)
    return folder


@pytest.fixture(scope="module")
def arrays(data) -> Arrays:
    return load_arrays(data / "train", SMALL)


def test_shards_are_read_with_their_defects(arrays):
    assert len(arrays) == NUM
    assert arrays.mel.shape == (NUM, 128, SMALL.clip.num_samples // 160)
    jitter = arrays.kind_names.index("jitter")
    assert arrays.kinds[:, jitter].tolist() == [0, 1] * (NUM // 2)


def test_clips_of_another_length_are_refused(data):
    other = SMALL.model_copy(update={"clip": SMALL.clip.model_copy(update={"num_frames": 13})})
    with pytest.raises(UsageError, match="9 frames"):
        load_arrays(data / "train", other)


def test_plain_composites_equal_the_view(arrays):
    batch = Sampler(arrays, SMALL, 0).plain(torch.arange(3))
    for i in range(3):
        seen = composite(arrays.frames[i].numpy(), SMALL)
        assert np.abs(batch.pixels[i].numpy().astype(int) - seen).max() <= 1


def test_batch_depends_on_seed_and_step_and_covers_an_epoch(arrays):
    one, other = Sampler(arrays, SMALL, 5), Sampler(arrays, SMALL, 5)
    for step in (0, 7):
        assert torch.equal(one.batch(step, 5).pixels, other.batch(step, 5).pixels)
    assert not torch.equal(one.batch(0, 5).pixels, one.batch(1, 5).pixels)
    spoken = torch.cat([Sampler(arrays, SMALL, 1, swap=0).batch(s, 4).spoken for s in range(3)])
    assert {tuple(x) for x in spoken[:, 1, :2].tolist()} == {
        tuple(x) for x in arrays.spoken[:, 1, :2].tolist()
    }


def test_swapped_sound_is_never_synchronous(arrays):
    every = Sampler(arrays, SMALL, 2, swap=1.0)
    batch = every.batch(0, NUM)
    own = (batch.spoken[:, None] == arrays.spoken[None]).all((2, 3)).float().argmax(1)
    pose = batch.shown[:, :, :6]  # mirroring leaves these curves alone
    who = (pose[:, None] == arrays.shown[None][..., :6]).all((2, 3)).float().argmax(1)
    for sound, face, label in zip(own.tolist(), who.tolist(), batch.labels.tolist(), strict=True):
        assert label[1] == (bool(arrays.labels[face, 1]) and sound == face)


def test_mirroring_turns_yaw_roll_and_tx_only(arrays):
    sampler = Sampler(arrays, SMALL, 3)
    seen = set()
    for step in range(4):
        batch = sampler.batch(step, NUM)
        for row in batch.shown:
            match = (row[:, :6] == arrays.shown[:, :, :6]).all((1, 2)).nonzero()[0, 0]
            ratio = (row / arrays.shown[match]).mean(0).round()
            assert all(ratio[c] == 1 for c in range(len(CURVES)) if c not in MIRRORED)
            seen.add(tuple(int(ratio[c]) for c in MIRRORED))
    assert seen == {(1, 1, 1), (-1, -1, -1)}


def test_loudness_is_the_log_of_the_energy():
    sound = np.concatenate([np.full(100, 0.1), np.full(100, 0.01), np.zeros(100)])
    assert np.allclose(loudness(sound, 3), [-2, -4, -6], atol=0.01)


def test_motion_targets_are_differences_of_the_pose(arrays):
    batch = Sampler(arrays, SMALL, 0).plain(torch.arange(4))
    scale = heads.fit_scale(arrays.shown)
    target = heads.picture_targets(batch, scale, 32)
    yaw = batch.shown[:, :, 6]
    want = (yaw[:, 3] - yaw[:, 2]) / scale.velocity[6]
    assert torch.allclose(target.inside[:, 1, 0], want.clamp(-6, 6), atol=1e-5)
    want = (yaw[:, 2] - yaw[:, 1]) / scale.velocity[6]
    assert torch.allclose(target.into[:, 1, 0], want.clamp(-6, 6), atol=1e-5)
    bend = (yaw[:, 3] - 2 * yaw[:, 2] + yaw[:, 1]) / scale.acceleration[6]
    assert torch.allclose(target.into[:, 1, 10], bend.clamp(-6, 6), atol=1e-4)
    first, second = batch.pixels[0, 2:4, :32, 32:64, 1].float()
    want = ((second - first).abs().mean() + 0.2).log()
    assert torch.allclose(target.change[0, 1, 1, 0], want, atol=1e-4)


def test_resume_gives_the_same_weights(data, tmp_path):
    config = base.PretrainConfig(
        model=SMALL, data=str(data), towers_steps=2, model_steps=2, batch_size=4,
        checkpoint_steps=1, warmup_steps=1,
    )  # fmt: skip

    class Stop:
        def update(self, stage, done, total, note=""):
            if done == 4:
                raise KeyboardInterrupt

    result = base.pretrain(config, tmp_path / "whole", False, Silent())
    assert np.isfinite(result["held_out"]["gap"])
    with pytest.raises(KeyboardInterrupt):
        base.pretrain(config, tmp_path / "cut", False, Stop())
    base.pretrain(config, tmp_path / "cut", True, Silent())
    name = "weights/thinker.safetensors"
    assert hash_file(tmp_path / "whole" / name) == hash_file(tmp_path / "cut" / name)


def test_published_base_is_the_run_in_half_precision(data, tmp_path):
    config = base.PretrainConfig(
        model=SMALL, data=str(data), towers_steps=1, model_steps=1, batch_size=4
    )
    result = base.pretrain(config, tmp_path / "run", False, Silent())
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "provenance.json", {"sha256": {"dit.safetensors": "x"}})
    entry = publish([tmp_path / "run"], tmp_path / "out", {"lip": 0.9})
    known = read_json(tmp_path / "out" / "provenance.json")
    assert known["thinker"] == entry
    assert known["sha256"] == {"dit.safetensors": "x"}
    assert str(tmp_path) not in json.dumps(known)
    assert entry["runs"][0]["steps"] == result["steps"] == 2
    for name, digest in entry["sha256"].items():
        assert hash_file(tmp_path / "out" / name) == digest
    spec = SMALL.model_copy(update={"weights": str(tmp_path / "out")})
    thinker, processor = load_thinker(spec)
    trained, _ = load_tensors(tmp_path / "run" / "weights" / "thinker.safetensors")
    for name, tensor in thinker.state_dict().items():
        assert torch.equal(tensor, trained[name].half().float())
    assert processor.tokenizer("Yes").input_ids == build_processor(SMALL).tokenizer("Yes").input_ids


def test_random_textures_are_one_a_clip_and_keep_its_mean_and_spread() -> None:
    rng = torch.Generator().manual_seed(5)
    still = 255 * torch.rand(6, 1, 16, 16, 3, generator=rng)
    clips = torch.cat([still, still.roll(2, dims=3), still], dim=1)
    made = retexture(clips, torch.Generator().manual_seed(3), 1.0)
    assert torch.equal(made[:, 0], made[:, 2])  # what stands still stays still
    inner = (slice(None), slice(None), slice(3, -3))
    torch.testing.assert_close(  # what moves is moved, away from the borders
        made[:, 0].roll(2, dims=2)[inner], made[:, 1][inner], rtol=1e-4, atol=1e-2
    )
    for axis in range(3):
        theirs, ours = clips[..., axis].flatten(1), made[..., axis].flatten(1)
        torch.testing.assert_close(ours.mean(1), theirs.mean(1), rtol=1e-3, atol=1e-2)
        assert (ours.std(1) <= theirs.std(1) * 1.001).all()  # a mixture spreads no more
    assert (made - clips).abs().mean() > 10
    assert retexture(clips, rng, 0.0) is clips
    half = retexture(clips.repeat(40, 1, 1, 1, 1), torch.Generator().manual_seed(4), 0.5)
    changed = (half != clips.repeat(40, 1, 1, 1, 1)).flatten(1).any(1).float().mean()
    assert 0.4 < changed < 0.6
