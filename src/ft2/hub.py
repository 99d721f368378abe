"""Publish files on the Hugging Face Hub, as a dataset or a model, all at once.

Nothing of a push is visible before its end: a push that was cut leaves the repository as it was,
and the next one sends only the files that the Hub does not have yet. The Hub advises fewer than 100
files a commit, so more than that go into a pull request, commit by commit, which is merged at last.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ft2.errors import RunError, UsageError
from ft2.runs import Progress, Silent

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_KEEP_BYTES = 10_000_000
"""Files below this may be small enough for git itself, and stay on disk until the commit."""
_MOST_FILES = 99
"""Files of one commit; the Hub advises fewer than 100."""
_IGNORED = {".gitattributes"}
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
_BLOCK = 1 << 22


@dataclass(frozen=True)
class PlannedFile:
    """One file of a push."""

    path: str
    """On the Hub."""
    rows: int | None
    """Rows of a table's shard; None for texts."""
    bytes: int
    """Bytes of the local file that it is made from."""


@dataclass(frozen=True)
class PushPlan:
    """What a push would do; nothing in it needs the network."""

    repo: str
    private: bool
    files: tuple[PlannedFile, ...]

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain values."""
        total = sum(file.bytes for file in self.files)
        rows = sum(file.rows or 0 for file in self.files)
        counts = {"num_files": len(self.files), "commits": len(_groups(self.files))}
        return {**asdict(self), **counts, "rows": rows, "total_bytes": total}


def check_repo_name(repo: str) -> None:
    """Refuse what cannot be a repository's name.

    Raises:
        UsageError: the name has spaces, too many parts, or an empty one.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise UsageError(f"{repo!r} is no repository name", "write NAME or OWNER/NAME")


def push(
    plan: PushPlan,
    make: Callable[[PlannedFile, Path], Path],
    *,
    secrets: Sequence[str],
    update: bool = False,
    api: "HfApi | None" = None,
    progress: Progress | None = None,
    kind: Literal["dataset", "model"] = "dataset",
) -> str:
    """Upload the files of a plan, all visible at once, and return the address of the repository.

    Args:
        plan: What to upload.
        make: Writes a planned file into a folder and returns its path; called file by file, and
            large files are removed once they are sent.
        secrets: Texts that must be in no file: local folders, tokens.
        update: Allow a repository that already has files; theirs are replaced, others stay.
        api: The Hub's client; None uses the stored login.
        progress: Told of every file.
        kind: What the repository is.

    Raises:
        UsageError: the repository has files already and `update` is off.
        RunError: no login, a secret in a file, or the Hub refused or could not be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # one bar a file, beside ours
    api, progress = api or HfApi(), progress or Silent()
    with _hub_errors(plan.repo), tempfile.TemporaryDirectory() as folder:
        api.whoami()
        url = api.create_repo(plan.repo, repo_type=kind, private=plan.private, exist_ok=True)
        repo = url.repo_id
        _check_free(api, repo, update, kind)
        operations: list[Any] = []
        for done, file in enumerate(plan.files, start=1):
            path = make(file, Path(folder))
            find_secret(path, file.path, secrets)
            operation = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=str(path))
            api.preupload_lfs_files(repo, additions=[operation], repo_type=kind)
            if path.stat().st_size >= _KEEP_BYTES and path.parent == Path(folder):
                path.unlink()
            operations.append(operation)
            progress.update("upload", done, len(plan.files), file.path)
        _commit(api, repo, operations, kind)
    return str(url)


ItemT = TypeVar("ItemT")


def _groups(items: Sequence[ItemT]) -> list[Sequence[ItemT]]:
    """Return what each commit takes, about the same number of files in order."""
    count = -(-len(items) // _MOST_FILES)
    bounds = [len(items) * i // max(1, count) for i in range(count + 1)]
    return [items[a:b] for a, b in pairwise(bounds)]


def _commit(api: "HfApi", repo: str, operations: Sequence[Any], kind: str) -> None:
    """Commit uploaded files: to the main branch, or, where they are many, by a pull request.

    A pull request that a cut push has left open is used again.
    """
    title = f"Upload by ft2: {kind}"
    groups = _groups(operations)
    if len(groups) == 1:
        api.create_commit(repo, operations, repo_type=kind, commit_message=title)
        return
    opened = api.get_repo_discussions(
        repo, repo_type=kind, discussion_type="pull_request", discussion_status="open"
    )
    number = next((request.num for request in opened if request.title == title), None)
    for group in groups:
        if number is None:
            made = api.create_commit(
                repo, group, repo_type=kind, commit_message=title, create_pr=True
            )
            number = made.pr_num
            continue
        revision = f"refs/pr/{number}"
        left = _missing(api, repo, group, kind, revision)
        if left:
            api.create_commit(repo, left, repo_type=kind, commit_message=title, revision=revision)
    assert number is not None
    api.merge_pull_request(repo, number, repo_type=kind)


def _check_free(api: "HfApi", repo: str, update: bool, kind: str) -> None:
    files = set(api.list_repo_files(repo, repo_type=kind)) - _IGNORED
    if files and not update:
        raise UsageError(
            f"the {kind} {repo} exists and has {len(files)} files",
            "choose another --repo, or replace its files with --update",
        )


def find_secret(path: Path, name: str, secrets: Sequence[str]) -> None:
    """Refuse a file whose bytes contain a local folder or a token.

    Raises:
        RunError: with what was found, a token only by its first letters.
    """
    wanted = [text.encode() for text in secrets if len(text) > 1]
    overlap = max([len(w) for w in wanted] + [64])
    tail = b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            data = tail + block
            token = _TOKEN.search(data)
            found = token.group()[:6] if token else next((w for w in wanted if w in data), None)
            if found is not None:
                raise RunError(
                    f"{name} contains {found.decode()!r}, which must not be published",
                    "ids, prompts and names are published as they are: change them and build anew",
                )
            tail = data[-overlap:]


def _missing(
    api: "HfApi", repo: str, operations: Sequence[Any], kind: str, revision: str
) -> list[Any]:
    """Return the operations whose files the revision does not have yet."""
    paths = [operation.path_in_repo for operation in operations]
    found = api.get_paths_info(repo, paths, repo_type=kind, revision=revision)
    there = {}
    for file in found:
        stored = getattr(file, "lfs", None)
        if stored is not None:
            there[file.path] = stored.sha256
    return [o for o in operations if there.get(o.path_in_repo) != o.upload_info.sha256.hex()]


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into an error that says how to go on."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except (UsageError, RunError):
        raise
    except LocalTokenNotFoundError as error:
        raise RunError(f"no login for {repo}", "log in with: hf auth login") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = str(error).strip().splitlines()[-1]
        if status in (401, 403):
            raise RunError(
                f"the Hub refused the token (HTTP {status}): {reason}",
                "log in with a token that may write: hf auth login",
            ) from error
        raise RunError(
            f"the push to {repo} failed: {reason}", "push again: files that are there are kept"
        ) from error
    except Exception as error:
        raise RunError(
            f"the push to {repo} was cut: {type(error).__name__}: {error}",
            "nothing is visible yet; push again: files that are there are kept",
        ) from error
