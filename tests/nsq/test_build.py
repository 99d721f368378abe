"""Dataset builds with hash-made clips: contents, reading back, resuming, refusing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from nsq_fakes import ColourScorer, HashGenerator, write_conditions

from ft2.errors import Interrupted, RunError, UsageError
from ft2.nsq.build import build
from ft2.nsq.config import NsqConfig
from ft2.pairs import DIMENSIONS, Scores, read_clips, read_pair_records, read_pairs
from ft2.runs import Silent, read_json


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of all that a build publishes, and of its record of scores."""
    names = [folder / n for n in ("README.md", "manifest.json", "stats.json", "result.json")]
    files = [*names, *folder.rglob("*.arrow")]
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def test_build_writes_pairs_that_follow_the_scores(config: NsqConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = build(config, out, HashGenerator(), ColourScorer(), progress=Silent())
    assert summary["num_clips"] == 30
    clips = read_clips(out, "train")
    assert len(clips) == 18
    total = 0
    for index, d in enumerate(DIMENSIONS):
        pairs = read_pairs(out, d)
        total += len(pairs)
        assert len(pairs) == summary["splits"][0][d]
        for pair in pairs:
            assert pair.chosen.scores.get(d) >= 0.5 > pair.rejected.scores.get(d)
            assert pair.chosen.condition_id == pair.rejected.condition_id
            assert pair.margin == pytest.approx(
                pair.chosen.scores.values()[index] - pair.rejected.scores.values()[index]
            )
    assert total > 0
    for pair in read_pairs(out, "fusion"):
        assert pair.chosen.scores.answers() == (True, True, True)
        assert pair.rejected.scores.answers() == (False, False, False)


def test_median_answers_split_a_critic_that_finds_all_clips_bad(
    config: NsqConfig, tmp_path: Path
) -> None:
    class Harsh(ColourScorer):
        def score(self, paths: Sequence[Path]) -> list[Scores]:
            return [Scores(*(0.2 * v for v in s.values())) for s in super().score(paths)]

    out = tmp_path / "out"
    fixed = build(config, out, HashGenerator(), Harsh(), progress=Silent())
    assert fixed["pairs"] == {"motion": 0, "lip": 0, "quality": 0, "fusion": 0}
    assert read_pairs(out, "lip") == []
    pairing = config.pairing.model_copy(update={"yes_from": "median"})
    relative = config.model_copy(update={"pairing": pairing})
    summary = build(relative, tmp_path / "b", HashGenerator(), Harsh(), progress=Silent())
    train = summary["splits"][0]
    for index, d in enumerate(DIMENSIONS):
        scores = sorted(c.scores.values()[index] for c in read_clips(tmp_path / "b").values())
        assert train["yes_from"][d] == pytest.approx((scores[8] + scores[9]) / 2, abs=1e-6)
        assert train[f"yes_{d}"] == 0.5
        for pair in read_pairs(tmp_path / "b", d):
            assert pair.chosen.scores.get(d) >= train["yes_from"][d] > pair.rejected.scores.get(d)


def test_media_in_the_shards_are_the_generated_files(config: NsqConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(config, out, HashGenerator(), ColourScorer(), progress=Silent())
    for record in read_clips(out, "dev").values():
        video, audio, portrait = record.write_media(tmp_path / "media")
        original = out / "candidates" / record.condition_id / f"{record.seed:04d}.mp4"
        assert video.read_bytes() == original.read_bytes()
        assert ColourScorer().score([video])[0].values() == pytest.approx(
            record.scores.values(), abs=1e-6
        )
        assert audio.stat().st_size > 0
        assert portrait.read_bytes()[:4] == b"\x89PNG"


def test_labels_agree_with_scores_and_stores(config: NsqConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(config, out, HashGenerator(), ColourScorer(), progress=Silent())
    records = list(read_pair_records(out, "train"))
    assert records
    for record in records:
        for label, a, b in zip(
            record.labels, record.scores_a.answers(), record.scores_b.answers(), strict=True
        ):
            assert label == ("tie" if a == b else "A" if a else "B")


@pytest.mark.parametrize("limit", [0, 7, 13, 29])
def test_resume_after_an_interruption_gives_the_same_bytes(
    config: NsqConfig, tmp_path: Path, limit: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    build(config, whole, HashGenerator(), ColourScorer(), progress=Silent())
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        build(config, broken, HashGenerator(limit=limit), ColourScorer(), progress=Silent())
    generator = HashGenerator()
    build(config, broken, generator, ColourScorer(), resume=True, progress=Silent())
    assert generator.calls == 30 - limit
    assert fingerprint(broken) == fingerprint(whole)


def test_signal_stops_between_two_clips(config: NsqConfig, tmp_path: Path) -> None:
    class Signalled(HashGenerator):
        def generate(self, conditions, seeds, output_dir):  # type: ignore[no-untyped-def]
            for clip in super().generate(conditions, seeds, output_dir):
                if self.calls == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield clip

    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.raises(Interrupted) as caught:
        build(config, out, Signalled(), ColourScorer(), progress=Silent())
    assert caught.value.exit_code == 143
    assert "--resume" in caught.value.hint
    generator = HashGenerator()
    build(config, out, generator, ColourScorer(), resume=True, progress=Silent())
    assert generator.calls == 25
    build(config, whole, HashGenerator(), ColourScorer(), progress=Silent())
    assert fingerprint(out) == fingerprint(whole)


def test_lost_shard_is_rewritten_with_the_same_bytes(config: NsqConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(config, out, HashGenerator(), ColourScorer(), progress=Silent())
    before = fingerprint(out)
    (out / "result.json").unlink()
    next((out / "data" / "clips").glob("train-*.arrow")).unlink()
    (out / "data" / "clips" / ".train-00000-of-00003.arrow.tmp").write_bytes(b"half")
    (out / "work").mkdir()
    scorer = ColourScorer()
    build(config, out, HashGenerator(limit=0), scorer, resume=True, progress=Silent())
    assert scorer.calls == 0
    assert fingerprint(out) == before


def test_finished_build_does_nothing(config: NsqConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = build(config, out, HashGenerator(), ColourScorer(), progress=Silent())
    second = build(
        config, out, HashGenerator(limit=0), ColourScorer(), resume=True, progress=Silent()
    )
    assert first == second
    with pytest.raises(UsageError, match="already exists"):
        build(config, out, HashGenerator(), ColourScorer(), progress=Silent())


def test_clip_in_another_format_is_dropped_and_counted(config: NsqConfig, tmp_path: Path) -> None:
    generator = HashGenerator(broken=[("c0", 2), ("c4", 0)])
    config = config.model_copy(update={"max_failed_fraction": 0.1})
    summary = build(config, tmp_path / "out", generator, ColourScorer(), progress=Silent())
    assert (summary["num_clips"], summary["num_dropped"]) == (28, 2)
    (reason,) = summary["dropped"]
    assert (reason["reason"], reason["count"]) == ("format", 2)
    assert {row["seed"] for row in reason["examples"]} == {0, 2}
    assert "3 frames" in reason["examples"][0]["detail"]
    assert "- format: 2" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("field", ["identity_id", "audio_id"])
def test_identity_or_speech_in_two_splits_is_refused(
    config: NsqConfig, tmp_path: Path, field: str
) -> None:
    path = Path(config.conditions)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[4][field] = lines[0][field]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UsageError, match=f"{field} .* is in the splits test .*, train "):
        build(config, tmp_path / "out", HashGenerator(), ColourScorer(), progress=Silent())
    assert not (tmp_path / "out").exists()


def test_bad_condition_lines_are_named_together(tmp_path: Path) -> None:
    from ft2.pairs import read_conditions

    path = write_conditions(tmp_path, ["train", "train", "dev"])
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace("face1.png", "nobody.png")
    lines[2] = "{"
    path.write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(UsageError) as caught:
        read_conditions(path)
    assert "conditions.jsonl:2: no portrait file" in caught.value.message
    assert "conditions.jsonl:3:" in caught.value.message
    assert "conditions.jsonl:4: condition_id 'c0' is there twice" in caught.value.message


def test_generator_that_leaves_clips_out_is_an_error(config: NsqConfig, tmp_path: Path) -> None:
    class Lazy(HashGenerator):
        def generate(self, conditions, seeds, output_dir):  # type: ignore[no-untyped-def]
            yield from list(super().generate(conditions, seeds, output_dir))[:-1]

    with pytest.raises(RunError, match="left out 1 clips"):
        build(config, tmp_path / "out", Lazy(), ColourScorer(), progress=Silent())


def test_scorer_answers_are_probabilities(config: NsqConfig, tmp_path: Path) -> None:
    class Wild(ColourScorer):
        def score(self, paths: Sequence[Path]) -> list[Scores]:
            return [Scores(float("nan"), 0.5, 0.5) for _ in paths]

    with pytest.raises(RunError, match=r"30 of 30 clips failed(.|\n)*no probability"):
        build(config, tmp_path / "out", HashGenerator(), Wild(), progress=Silent())


def test_unknown_store_and_split_are_refused(config: NsqConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(config, out, HashGenerator(), ColourScorer(), progress=Silent())
    with pytest.raises(UsageError, match="unknown dimension 'lips'"):
        read_pairs(out, "lips")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no clips of split 'valid'") as caught:
        read_pairs(out, "lip", "valid")
    assert "train" in caught.value.hint
    assert read_json(out / "manifest.json")["schema"] == 2


def test_kill_during_the_build_then_resume(config: NsqConfig, tmp_path: Path) -> None:
    """A real SIGKILL at several moments; the directory always resumes to the same bytes."""
    whole = tmp_path / "whole"
    build(config, whole, HashGenerator(), ColourScorer(), progress=Silent())
    (tmp_path / "config.json").write_text(config.model_dump_json())
    code = """
        import sys
        from pathlib import Path
        from ft2.nsq.build import build
        from ft2.nsq.config import NsqConfig
        from ft2.runs import Silent
        from nsq_fakes import ColourScorer, HashGenerator
        config = NsqConfig.model_validate_json(Path(sys.argv[1]).read_text())
        print("go", flush=True)
        build(config, Path(sys.argv[2]), HashGenerator(), ColourScorer(), resume=True,
              progress=Silent())
    """
    root = Path(__file__).parent
    out = tmp_path / "killed"
    command = [sys.executable, "-c", textwrap.dedent(code)]
    command += [str(tmp_path / "config.json"), str(out)]
    for wait in (0.02, 0.15, 0.3):
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert subprocess.run(command, cwd=root, check=False, capture_output=True).returncode == 0
    assert fingerprint(out) == fingerprint(whole)


@pytest.mark.parametrize("limit", [500, 9_000, 14_000, 40_000])
def test_full_disk_loses_nothing(config: NsqConfig, tmp_path: Path, limit: int) -> None:
    """Files above a size fail as on a full disk: at clips, chunks, shards and the score store."""
    import resource

    whole, out = tmp_path / "whole", tmp_path / "out"
    build(config, whole, HashGenerator(), ColourScorer(), progress=Silent())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(RunError, match="cannot write") as caught:
            build(config, out, HashGenerator(), ColourScorer(), progress=Silent())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "--resume" in caught.value.hint
    assert not (out / "manifest.json").exists()
    build(config, out, HashGenerator(), ColourScorer(), resume=True, progress=Silent())
    assert fingerprint(out) == fingerprint(whole)
