"""How fast and how large: Talking-NSQ from a score store to shards, beside other tools.

Synthetic scores, no media, for the build (`--pairs`, again with ten times as many by `--scale`):
score store -> judged rows -> pairs -> shards -> manifest in a process of its own, whose peak memory
is taken; the writer of the table `pairs` alone; `datasets.Dataset.from_generator` on the same rows.
Then blobs of the size of a clip (`--blobs`): random reads and an epoch through `datasets` on our
shards, beside MosaicML streaming and WebDataset in an interpreter that has them
(`uv venv V; uv pip install -p V mosaicml-streaming webdataset`, `--peers V/bin/python`).

    python benchmarks/nsq.py [--clips 120000] [--scale 10] [--blobs 2000] [--peers PYTHON]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ft2.nsq.assemble import assemble
from ft2.nsq.config import NsqConfig, PairingConfig
from ft2.nsq.manifest import ContentHash, describe_shards
from ft2.nsq.scored import write_rows
from ft2.nsq.shards import write_table
from ft2.nsq.store import ScoreStore
from ft2.nsq.tables import Media, Provenance
from ft2.nsq.validate import validate
from ft2.pairs import DIMENSIONS, Scores, clip_schema, pair_schema, read_table
from ft2.runs import Silent, write_json

RESULT = Path(__file__).parent / "results" / "nsq.json"
CRITIC, CANDIDATES, BLOB = "critic 0123456789ab", 12, 150_000
NOTHING = Media(str.encode, lambda _: b"", lambda _: b"")


def main() -> None:
    """Run the benchmark, or, with --stage, one measured part of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=120_000)
    parser.add_argument("--cap", type=int, default=24, help="pairs of a condition in a store")
    parser.add_argument("--scale", type=int, default=10, help="the larger build; 1 leaves it out")
    parser.add_argument("--blobs", type=int, default=2000)
    parser.add_argument("--peers", default="", help="interpreter with streaming and webdataset")
    parser.add_argument("--folder", default=None, help="where to write; needs some GB")
    parser.add_argument("--stage", default="")
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(STAGES[options.stage](Path(options.folder), options)))
        return
    setting = {k: getattr(options, k) for k in ("clips", "cap", "scale", "blobs")}
    command = f"python benchmarks/nsq.py --scale {options.scale} --peers PYTHON"
    report: dict[str, Any] = {"command": command, "machine": machine(), "setting": setting}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        one, large = Path(folder) / "one", Path(folder) / "large"
        report["build"] = measure(one, options, options.clips)
        others = ("write_pairs", "from_generator")
        report["other_writers"] = {name: stage(name, one, options) for name in others}
        report["validate"] = stage("validate", one, options)
        save(report)
        shutil.rmtree(one)
        if options.blobs:
            report["readers"] = readers(Path(folder), options)
            save(report)
        if options.scale > 1:
            report["large"] = measure(large, options, options.clips * options.scale)
            save(report)
            report["large_validate"] = stage("validate", large, options)
    save(report)


def save(report: dict[str, Any]) -> None:
    """Write and print what is known so far."""
    report["ratios"] = ratios(report)
    RESULT.parent.mkdir(exist_ok=True)
    write_json(RESULT, report)
    print(json.dumps(report, indent=1), flush=True)


def measure(folder: Path, options: argparse.Namespace, clips: int) -> dict[str, Any]:
    """Make a store of scores, then measure the build in a process of its own."""
    folder.mkdir(parents=True)
    options.clips = clips
    stage("make_store", folder, options)
    return stage("build", folder, options)


def stage(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a part in its own process and return what it prints: its time and peak memory."""
    command = [sys.executable, __file__, "--stage", name, "--folder", str(folder)]
    command += ["--clips", str(options.clips), "--cap", str(options.cap)]
    command += ["--blobs", str(options.blobs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run work and return its facts with wall and CPU seconds and the peak memory."""
    wall, cpu = time.perf_counter(), time.process_time()
    facts = work()
    facts["seconds"] = round(time.perf_counter() - wall, 2)
    facts["cpu_seconds"] = round(time.process_time() - cpu, 2)
    facts["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return facts


def clip_name(number: int) -> str:
    """Return a clip id that looks like a hash."""
    return hashlib.sha256(clip_media(number)).hexdigest()


def clip_media(number: int) -> bytes:
    """Return the few bytes that stand for a clip."""
    return f"clip {number}".encode()


def make_store(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Fill a score store with uniform scores."""
    rng = np.random.default_rng(0)
    with ScoreStore(folder / "store.sqlite") as store:
        for start in range(0, options.clips, 50_000):
            stop = min(start + 50_000, options.clips)
            scores = rng.random((stop - start, 3)).round(6)
            rows = zip(range(start, stop), scores, strict=True)
            store.put(CRITIC, (((clip_name(i), "a"), Scores(*map(float, s))) for i, s in rows))
    return {}


def build(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Score store -> judged rows -> pairs -> shards -> manifest."""

    def work() -> dict[str, Any]:
        config = NsqConfig(
            conditions="c.jsonl", generator="nano/generate", critic="none",
            num_candidates=CANDIDATES, pairing=PairingConfig(max_per_condition=options.cap),
        )  # fmt: skip
        out, chunks = folder / "out", []
        began = time.perf_counter()
        with ScoreStore(folder / "store.sqlite") as store:
            for start in range(0, options.clips, 6000):
                path = out / "scores" / f"chunk-{start // 6000:05d}.arrow"
                write_rows(path, judged_rows(store, start, min(start + 6000, options.clips)))
                chunks.append(path)
        judged = time.perf_counter() - began
        made = assemble(config, out, chunks, ["train"], NOTHING, Provenance(CRITIC), Silent())
        manifest = {"schema": 2, "dataset_hash": made.dataset_hash, "tables": made.tables}
        write_json(out / "manifest.json", manifest)
        tables = {t["table"]: t for t in made.tables}
        return {
            "clips": options.clips, "pairs": tables["pairs"]["rows"],
            "columns": len(pair_schema()), "judged_rows_seconds": round(judged, 2),
            "rows": {name: t["rows"] for name, t in tables.items()},
            "bytes": sum(t["bytes"] for t in made.tables),
            "files": sum(len(t["shards"]) for t in made.tables),
        }  # fmt: skip

    return timed(work)


def judged_rows(store: ScoreStore, start: int, stop: int) -> list[dict[str, Any]]:
    """Return the judged rows of some clips, their scores from the store."""
    names = [clip_name(i) for i in range(start, stop)]
    rows = []
    for i, name, found in zip(
        range(start, stop), names, store.get(CRITIC, [(n, "a") for n in names]), strict=True
    ):
        assert isinstance(found, Scores)
        condition = i // CANDIDATES
        rows.append(
            {
                "clip_id": name, "condition_id": f"c{condition:08d}",
                "identity_id": f"person-{condition // 10}", "audio_id": f"voice-{condition}",
                "source_id": "", "reference_id": f"{condition:016x}",
                "prompt": f"A person in room {condition} talks to the camera about the weather.",
                "split": "train", "model": "base", "video": f"clip {i}", "portrait": "p",
                "audio": "a",
                "seed": i % CANDIDATES, "width": 512, "height": 512, "num_frames": 81, "fps": 25.0,
                **{f"score_{d}": found.get(d) for d in DIMENSIONS},
                "media_bytes": BLOB, "dropped": None, "detail": None,
            }
        )  # fmt: skip
    return rows


def write_pairs(folder: Path, _options: argparse.Namespace) -> dict[str, Any]:
    """Write the rows of `pairs` once more with the writer alone."""
    table = read_table(folder / "out", "pairs", "train").combine_chunks()
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    bounds = [table.num_rows * i // 32 for i in range(33)]

    def work() -> dict[str, Any]:
        def cut(start: int, stop: int) -> dict[str, Any]:
            return {name: column.slice(start, stop - start) for name, column in columns.items()}

        write_table(folder / "again", "train", pair_schema(), bounds, cut, 2048)
        return {"rows": table.num_rows}

    return timed(work)


def from_generator(folder: Path, _options: argparse.Namespace) -> dict[str, Any]:
    """Write the same rows by `Dataset.from_generator`; the rows' own making is taken off."""
    import datasets

    datasets.disable_progress_bars()
    path = str(folder / "out")

    def rows() -> Iterator[dict[str, Any]]:
        for batch in read_table(Path(path), "pairs", "train").to_batches():
            yield from batch.to_pylist()

    began, busy = time.perf_counter(), time.process_time()
    count = sum(1 for _ in rows())
    making, making_cpu = time.perf_counter() - began, time.process_time() - busy
    features = datasets.Features.from_arrow_schema(pair_schema())

    def work() -> dict[str, Any]:
        made = datasets.Dataset.from_generator(
            rows, features=features, cache_dir=str(folder / "cache")
        )
        assert len(made) == count
        return {"rows": count, "rows_alone_seconds": round(making, 2)}

    facts = timed(work)
    facts["writing_seconds"] = round(facts["seconds"] - making, 2)
    facts["cpu_writing_seconds"] = round(facts["cpu_seconds"] - making_cpu, 2)
    return facts


def check(folder: Path, _options: argparse.Namespace) -> dict[str, Any]:
    """Validate the dataset without its media, which this benchmark leaves empty."""

    def work() -> dict[str, Any]:
        report = validate(folder / "out", decode="none")
        return {"pairs": report["pairs"], "problems": report["problems"][:3]}

    return timed(work)


def readers(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time random reads and an epoch of blobs through our shards and through the peers'."""
    ours = folder / "ours" / "data" / "clips"
    rng = np.random.default_rng(1)
    blob = rng.bytes(2 * BLOB)

    def columns(start: int, stop: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for field in clip_schema():
            plain = {pa.string(): "x", pa.bool_(): True}.get(field.type, 0)
            values[field.name] = [plain] * (stop - start)
        media = [{"bytes": blob[i : i + BLOB], "path": "v.mp4"} for i in range(start, stop)]
        empty = [{"bytes": b"", "path": "x"}] * (stop - start)
        return values | {"video": media, "audio": empty, "reference": empty}

    write_table(folder / "warm", "train", clip_schema(), [0, 20], columns)  # imports, first pages
    began = time.perf_counter()
    paths = write_table(ours, "train", clip_schema(), [0, options.blobs], columns)
    found = {"ours": {"write_per_second": rate(options.blobs, began)}}
    describe_shards(folder / "ours", "clips", "train", paths, ContentHash())
    found["ours"]["write_and_hash_per_second"] = rate(options.blobs, began)
    found["ours"] |= stage("read_ours", folder, options)
    if options.peers:
        script = Path(__file__).with_name("nsq_peers.py")
        (folder / "media.bin").write_bytes(blob)
        command = [options.peers, str(script), str(folder / "peers"), str(folder / "media.bin")]
        command += [str(options.blobs), str(BLOB)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def read_ours(folder: Path, _options: argparse.Namespace) -> dict[str, Any]:
    """Read blobs through `datasets`."""
    import datasets

    datasets.disable_progress_bars()
    files = str(folder / "ours" / "data" / "clips" / "*.arrow")
    data = datasets.load_dataset(
        "arrow", data_files=files, split="train", cache_dir=str(folder / "cache")
    ).select_columns(["video"])
    order = np.random.default_rng(0).permutation(len(data)).tolist()
    began = time.perf_counter()
    total = sum(len(data[i]["video"]["bytes"]) for i in order)
    random = rate(len(data), began)
    began = time.perf_counter()
    total += sum(len(row["video"]["bytes"]) for row in data)
    assert total == 2 * len(data) * BLOB
    return {"random_per_second": random, "epoch_per_second": rate(len(data), began)}


def rate(count: int, began: float) -> float:
    """Return records a second since `began`."""
    return round(count / (time.perf_counter() - began), 1)


def ratios(report: dict[str, Any]) -> dict[str, Any]:
    """Return the claims as ratios within this run."""
    other = report["other_writers"]
    slow, fast = other["from_generator"], other["write_pairs"]
    found = {}
    for kind in ("", "cpu_"):  # wall seconds and CPU seconds: the machine may be busy
        writing = slow[f"{kind}writing_seconds"]
        found[f"{kind}from_generator_over_writer"] = round(writing / fast[f"{kind}seconds"], 1)
        whole = report["build"][f"{kind}seconds"]
        found[f"{kind}from_generator_over_whole_build"] = round(writing / whole, 2)
    if "large" in report:
        one, large = report["build"], report["large"]
        found["large_pairs"] = round(large["pairs"] / one["pairs"], 2)
        found["large_cpu_seconds"] = round(large["cpu_seconds"] / one["cpu_seconds"], 2)
        found["large_peak_memory"] = round(large["peak_mb"] / one["peak_mb"], 2)
    return found


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    return {"cpu": name, "cores": os.cpu_count(), "load": os.getloadavg()[0],
            "python": platform.python_version(), "pyarrow": pa.__version__}  # fmt: skip


STAGES = {
    "make_store": make_store, "build": build, "write_pairs": write_pairs,
    "from_generator": from_generator, "validate": check, "read_ours": read_ours,
}  # fmt: skip

if __name__ == "__main__":
    main()
