"""Every address outside the repository, in one place: a new one is added here when it was opened.

No test opens them: what a page says changes without us. Papers are cited by arXiv number and
repositories by owner/name; an address stands where a reader is to click.
"""

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
LINKS = {
    "https://arxiv.org/abs/2508.11255",  # FantasyTalking2
    "https://docs.astral.sh/uv/",
    "https://huggingface.co/docs/hub/repositories-recommendations",  # files a commit, a folder
}
NAMES = {"http://www.w3.org/2000/svg", "http://www.apache.org/licenses/"}
"""Names of formats and licences, not pages to open."""

TEXTS = r"\.(md|py|ipynb|cff|toml|ya?ml|j2|html|js|css)$|^[^.]*$"
ADDRESS = re.compile(r"https?://[^\s)\"'<>`\]\\]+")


def addresses() -> dict[str, set[str]]:
    """Return each address that is not this machine's own, with the files that name it."""
    found: dict[str, set[str]] = {}
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        path = ROOT / name
        if not re.search(TEXTS, name) or not path.is_file() or path == Path(__file__):
            continue
        for match in ADDRESS.findall(path.read_text(encoding="utf-8", errors="ignore")):
            address = match.rstrip(".,;:")
            if not re.match(r"https?://(127|localhost|\{)", address):
                found.setdefault(address, set()).add(name)
    return found


def test_every_address_is_listed_here_and_used():
    found = {a: files for a, files in addresses().items() if not a.startswith(tuple(NAMES))}
    told = {a: sorted(files) for a, files in found.items() if a not in LINKS}
    assert not told, "open it, then add it to LINKS"
    assert set(found) == LINKS, "take out what no file names any more"


def test_addresses_are_well_formed_and_encrypted():
    for address in LINKS:
        parts = urlsplit(address)
        assert parts.scheme == "https"
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc)
        assert not parts.query
