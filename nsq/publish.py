"""A dataset directory as it goes to the Hub: Parquet shards, a card with full facts, a manifest."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ft2.config import load_config
from ft2.errors import UsageError
from ft2.hub import PlannedFile, PushPlan, check_repo_name
from ft2.nsq.card import front_matter, render_card, required
from ft2.nsq.config import CardConfig
from ft2.nsq.validate import validate
from ft2.runs import read_json, write_atomic, write_json

_GROUP_BYTES = 100_000_000
_TEXTS = ("manifest.json", "stats.json", "README.md")


def plan_push(dataset: Path, repo: str, card: CardConfig, *, private: bool = True) -> PushPlan:
    """Return what a push would upload: Parquet shards, manifest, statistics and card.

    Args:
        dataset: A finished dataset directory.
        repo: NAME or OWNER/NAME.
        card: Facts for the card.
        private: Whether a new repository is private.

    Raises:
        UsageError: a bad name, an unsound dataset, or a fact that the card must state is missing.
    """
    check_repo_name(repo)
    problems = validate(dataset, "sample")["problems"]
    if problems:
        raise UsageError(
            f"{dataset} is not sound:\n" + "\n".join(problems[:20]),
            "see ft2 nsq validate; build the dataset anew",
        )
    manifest = read_json(dataset / "manifest.json")
    missing = [name for name in required(manifest) if not getattr(card, name).strip()]
    if missing:
        raise UsageError(
            f"the card does not state: {', '.join(missing)}",
            "write them into a YAML file and give it as --card FILE",
        )
    files = [
        PlannedFile(parquet_name(shard["path"]), shard["rows"], shard["bytes"])
        for entry in manifest["tables"]
        for shard in entry["shards"]
        if entry["rows"]
    ]
    texts = [PlannedFile(name, None, (dataset / name).stat().st_size) for name in _TEXTS]
    return PushPlan(repo, private, (*files, *texts))


def read_card(dataset: Path, file: Path | None) -> CardConfig:
    """Return the card's facts: those of the build's config, replaced by those of a YAML file.

    Raises:
        UsageError: the file is missing or has unknown keys.
    """
    path = dataset / "config.yaml"
    built = yaml.safe_load(path.read_text("utf-8")).get("card", {}) if path.is_file() else {}
    if file is None:
        return CardConfig.model_validate(built)
    given = load_config(CardConfig, str(file))
    return CardConfig.model_validate(built | given.model_dump(exclude_unset=True))


def maker(dataset: Path, card: CardConfig) -> Callable[[PlannedFile, Path], Path]:
    """Return what makes the files of a plan, one by one, in a folder."""
    made: dict[str, dict[str, int]] = {}

    def make(file: PlannedFile, folder: Path) -> Path:
        target = folder / file.path.replace("/", "--")
        if file.path == "README.md":
            write_atomic(target, hub_card(dataset, card, made))
        elif file.path == "manifest.json":
            write_json(target, hub_manifest(dataset))
        elif file.rows is None:
            write_atomic(target, (dataset / file.path).read_bytes())
        else:
            made[file.path] = to_parquet(dataset / arrow_name(file.path), target)
        return target

    return make


def local_secrets(dataset: Path) -> list[str]:
    """Return what must be in no published file: folders of this machine, and the Hub's token."""
    from huggingface_hub import get_token

    folders = {str(Path.home()), str(Path.cwd()), str(dataset.resolve())}
    return [*(f for f in sorted(folders) if f != "/"), *filter(None, [get_token()])]


def to_parquet(source: Path, target: Path) -> dict[str, int]:
    """Write a shard as Parquet and return its sizes; row groups have at most about 100 MB."""
    waiting: list[pa.RecordBatch] = []
    size = total = 0
    with (
        pa.memory_map(str(source)) as file,
        pa.ipc.open_stream(file) as reader,
        pq.ParquetWriter(target, reader.schema) as writer,
    ):
        for batch in reader:
            if waiting and size + batch.nbytes > _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting, size = [], 0
            waiting.append(batch)
            size += batch.nbytes
            total += batch.nbytes
        writer.write_table(pa.Table.from_batches(waiting, reader.schema))
    return {"num_bytes": total, "download_size": target.stat().st_size}


def parquet_name(path: str) -> str:
    """Return a shard's name on the Hub."""
    return path.removesuffix(".arrow") + ".parquet"


def arrow_name(path: str) -> str:
    """Return a shard's name in a dataset directory."""
    return path.removesuffix(".parquet") + ".arrow"


def hub_manifest(dataset: Path) -> dict[str, Any]:
    """Return the manifest without the hashes of files that the Hub does not have."""
    manifest = read_json(dataset / "manifest.json")
    tables = [{k: t[k] for k in ("table", "split", "rows")} for t in manifest["tables"]]
    return {**manifest, "tables": tables, "format": "parquet"}


def hub_card(dataset: Path, card: CardConfig, made: Mapping[str, Mapping[str, int]]) -> str:
    """Return README.md for the Hub, with the `dataset_info` of every config."""
    manifest = read_json(dataset / "manifest.json")
    stats = read_json(dataset / "stats.json")
    names = [
        config["config_name"] for config in front_matter(card.model_dump(), manifest)["configs"]
    ]
    infos = [_dataset_info(dataset, name, manifest, made) for name in names]
    return render_card(card, manifest, stats, infos)


def _dataset_info(
    dataset: Path, table: str, manifest: Mapping[str, Any], made: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    from datasets import Features

    entries = [t for t in manifest["tables"] if t["table"] == table and t["rows"]]
    with pa.memory_map(str(dataset / entries[0]["shards"][0]["path"])) as source:
        schema = pa.ipc.open_stream(source).schema
    info = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    splits = []
    for entry in entries:
        sizes = [made.get(parquet_name(shard["path"]), {}) for shard in entry["shards"]]
        splits.append(
            {
                "name": entry["split"],
                "num_bytes": sum(s.get("num_bytes", 0) for s in sizes),
                "num_examples": entry["rows"],
                "download": sum(s.get("download_size", 0) for s in sizes),
            }
        )
    download = sum(int(split.pop("download")) for split in splits)
    return {
        "config_name": table,
        "features": Features.from_dict(info)._to_yaml_list(),
        "splits": splits,
        "download_size": download,
        "dataset_size": sum(int(split["num_bytes"]) for split in splits),
    }
