"""Publish a dataset directory on the Hugging Face Hub: first a plan, then the upload."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from ft2.errors import RunError, UsageError
from ft2.runs import hash_file, read_json

PLAN_NAME = "push-plan.json"
_HUB_FILES = ("README.md", "manifest.json")


@dataclass(frozen=True)
class PlannedFile:
    """One file of an upload."""

    path: str
    """Relative to the dataset directory; the same on the Hub."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PushPlan:
    """What a push would do; nothing in it needs the network."""

    repo: str
    private: bool
    files: tuple[PlannedFile, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain values."""
        return {**asdict(self), "total_bytes": self.total_bytes}


class HubApi(Protocol):
    """The two calls of `huggingface_hub.HfApi` that a push makes."""

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> object:
        """Make the dataset repository, or do nothing where it exists."""
        ...

    def upload_file(
        self, *, path_or_fileobj: str, path_in_repo: str, repo_id: str, repo_type: str
    ) -> object:
        """Upload one file as one commit."""
        ...


def plan_push(dataset_dir: Path, repo: str, *, private: bool = True) -> PushPlan:
    """Return what would be uploaded: the card, the manifest and its shards, never candidates.

    Raises:
        UsageError: not a finished dataset, a shard differs from the manifest, or a bad name.
    """
    if repo.count("/") > 1 or not all(repo.split("/")) or any(c.isspace() for c in repo):
        raise UsageError(f"{repo!r} is no repository name", "write NAME or OWNER/NAME")
    if not (dataset_dir / "manifest.json").is_file():
        raise UsageError(
            f"{dataset_dir} is not a finished dataset: it has no manifest.json",
            "build it, or finish it: ft2 nsq build ... --resume",
        )
    manifest = read_json(dataset_dir / "manifest.json")
    files = [_planned(dataset_dir, name) for name in _HUB_FILES]
    for table in manifest["tables"]:
        for shard in table["shards"]:
            planned = _planned(dataset_dir, shard["path"])
            if planned.sha256 != shard["sha256"]:
                raise UsageError(
                    f"{dataset_dir / shard['path']} is not what the manifest says",
                    "a shard was changed after the build: build the dataset anew",
                )
            files.append(planned)
    return PushPlan(repo, private, tuple(files))


def push(dataset_dir: Path, plan: PushPlan, api: HubApi | None = None) -> str:
    """Upload the files of a plan, the card last, and return the address of the dataset.

    Args:
        dataset_dir: The directory that the plan was made from.
        plan: From `plan_push`.
        api: Something that uploads; None means `huggingface_hub.HfApi` with the stored login.

    Raises:
        RunError: the Hub refused or could not be reached; a second push goes on.
    """
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(plan.repo, repo_type="dataset", private=plan.private, exist_ok=True)
        for file in sorted(plan.files, key=lambda f: f.path in _HUB_FILES):
            api.upload_file(
                path_or_fileobj=str(dataset_dir / file.path),
                path_in_repo=file.path,
                repo_id=plan.repo,
                repo_type="dataset",
            )
    except Exception as error:
        raise RunError(
            f"the push to {plan.repo} failed: {error}",
            "log in with `hf auth login`, then push again: finished files cost nothing",
        ) from error
    return f"https://huggingface.co/datasets/{plan.repo}"


def _planned(dataset_dir: Path, name: str) -> PlannedFile:
    path = dataset_dir / name
    if not path.is_file():
        raise UsageError(f"{path} is missing", "build the dataset anew")
    return PlannedFile(name, path.stat().st_size, hash_file(path))
