"""A small Hugging Face Hub on loopback: repositories, LFS, commits, listing, download."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "x" * 34


class Hub:
    """What the server knows, and how it should misbehave."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.puts = 0
        self.commits: list[list[str]] = []
        self.cut_at_commit: int | None = None
        """The commit, counted from 0, at which the line is cut."""
        self.cut_after: int | None = None
        """Uploads after which the line is cut in the middle of the next one."""
        self.token = TOKEN
        self.url = ""

    def files(self, repo: str) -> dict[str, bytes]:
        return dict(self.repos[repo]["files"])


class Handler(BaseHTTPRequestHandler):
    """Answers like the Hub; `server.hub` is the state."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer of two writes waits for a delayed ACK, 40 ms

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, value: object = None, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def refused(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return False
        self.body()
        self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        return True

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.refused():
            return
        if path == "/api/whoami-v2":
            self.answer(
                {"name": "me", "type": "user", "orgs": [], "auth": {"type": "access_token"}}
            )
        elif path.startswith("/datasets/") and "/resolve/" in path:
            repo, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
            self.send_file(repo, rest.partition("/")[2])
        elif path.startswith("/api/datasets/"):
            self.describe(path.removeprefix("/api/datasets/"))
        else:
            self.answer({"error": f"no {path}"}, 404)

    do_HEAD = do_GET

    def describe(self, path: str) -> None:
        repo = "/".join(path.split("/")[:2])
        if path.endswith("/discussions") and repo in self.hub.repos:
            requests = self.hub.repos[repo]["requests"]
            found = [
                {k: v for k, v in request.items() if k != "files"}
                for request in requests if request["status"] == "open"
            ]  # fmt: skip
            self.answer({"discussions": found, "count": len(found), "start": 0})
            return
        if repo not in self.hub.repos:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return
        files = self.hub.repos[repo]["files"]
        if "/tree/" in path:
            self.list_tree(files, path.partition("/tree/")[2].partition("/")[2])
            return
        siblings = [{"rfilename": name} for name in sorted(files)]
        info = {"_id": "1", "id": repo, "sha": "1" * 40, "siblings": siblings}
        self.answer({**info, "private": self.hub.repos[repo]["private"], "tags": []})

    def list_tree(self, files: dict[str, bytes], under: str) -> None:
        """List a folder with its files and folders, all levels if the query says recursive."""
        start = f"{under}/" if under else ""
        deep = "recursive=true" in self.path.lower()
        found: dict[str, dict[str, Any]] = {}
        for name, data in sorted(files.items()):
            if not name.startswith(start):
                continue
            parts = name.removeprefix(start).split("/")
            for depth in range(1, len(parts)) if deep else range(1, min(len(parts), 2)):
                folder = start + "/".join(parts[:depth])
                found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
            if deep or len(parts) == 1:
                found[name] = self.entry(name, data)
        if found or not under:
            self.answer(list(found.values()))
        else:
            self.answer({"error": "no such folder"}, 404, X_Error_Code="EntryNotFound")

    def entry(self, name: str, data: bytes) -> dict[str, Any]:
        oid = hashlib.sha256(data).hexdigest()
        known = {"type": "file", "path": name, "size": len(data), "oid": oid[:40]}
        lfs = {"oid": oid, "size": len(data), "pointerSize": 130}
        return known | ({"lfs": lfs} if name.endswith(".parquet") else {})

    def send_file(self, repo: str, name: str) -> None:
        data = self.hub.repos.get(repo, {"files": {}})["files"].get(name)
        if data is None:
            self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
            return
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"ETag": etag, "X_Repo_Commit": "1" * 40, "Accept_Ranges": "bytes"}
        span = self.headers.get("Range")
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            stop = int(last) + 1 if last else len(data)
            part = data[int(first) : stop]
            reach = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self.answer(part, 206, **headers, Content_Range=reach)
        else:
            self.answer(data, **headers)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.refused():
            return
        data = self.body()
        if path == "/api/repos/create":
            self.create(json.loads(data))
        elif path.endswith("/objects/batch"):
            self.batch(json.loads(data))
        elif "/preupload/" in path:
            files = json.loads(data)["files"]
            self.answer({"files": [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".parquet") else "regular"}
                for f in files
            ]})  # fmt: skip
        elif "/commit/" in path:
            repo, _, revision = path.removeprefix("/api/datasets/").partition("/commit/")
            self.commit(repo, revision, [json.loads(line) for line in data.splitlines()])
        elif path.endswith("/merge"):
            repo, _, rest = path.removeprefix("/api/datasets/").partition("/discussions/")
            request = self.hub.repos[repo]["requests"][int(rest.split("/")[0]) - 1]
            self.hub.repos[repo]["files"] = request.pop("files")
            request["status"] = "merged"
            self.answer({})
        elif "/paths-info/" in path:
            repo, _, revision = path.removeprefix("/api/datasets/").partition("/paths-info/")
            wanted = parse_qs(data.decode())["paths"]
            files = self.branch(repo, revision)
            self.answer([self.entry(n, files[n]) for n in wanted if n in files])
        elif path == "/api/validate-yaml":
            self.answer({"warnings": [], "errors": []})
        else:
            self.answer({"error": f"no {path}"}, 404)

    def create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        url = f"{self.hub.url}/datasets/{repo}"
        if repo in self.hub.repos:
            self.answer({"error": "You already created this dataset repo", "url": url}, 409)
            return
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.hub.repos[repo] = {
            "private": private,
            "requests": [],
            "files": {".gitattributes": b"*.parquet lfs"},
        }
        self.answer({"url": url, "name": repo, "id": "1"})

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            href = {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}
            known = item["oid"] in self.hub.objects
            objects.append({**item, **({} if known else {"actions": {"upload": href}})})
        self.answer({"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.hub.cut_after is not None and self.hub.puts >= self.hub.cut_after:
            self.rfile.read(min(length, 100))
            self.close_connection = True
            self.connection.close()
            return
        data = self.rfile.read(length)
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self.hub.puts += 1
        self.answer(b"")

    def branch(self, repo: str, revision: str) -> dict[str, bytes]:
        """The files of the main branch or of a pull request."""
        known: dict[str, Any] = self.hub.repos[repo]
        number = revision.removeprefix("refs/pr/")
        files: dict[str, bytes] = (
            known["requests"][int(number) - 1]["files"] if number != revision else known["files"]
        )
        return files

    def commit(self, repo: str, revision: str, lines: list[dict[str, Any]]) -> None:
        if self.hub.cut_at_commit == len(self.hub.commits):
            self.close_connection = True
            self.connection.close()
            return
        names, more = [], {}
        if "create_pr=1" in self.path:
            requests = self.hub.repos[repo]["requests"]
            title = next(line["value"]["summary"] for line in lines if line["key"] == "header")
            requests.append({
                "title": title, "num": len(requests) + 1, "status": "open", "isPullRequest": True,
                "createdAt": "2025-01-01T00:00:00.000Z", "author": {"name": "me"},
                "repo": {"name": repo, "type": "dataset"},
                "files": dict(self.hub.repos[repo]["files"]),
            })  # fmt: skip
            revision = f"refs/pr/{len(requests)}"
            page = f"{self.hub.url}/datasets/{repo}/discussions/{len(requests)}"
            more = {"pullRequestUrl": page}
        files = self.branch(repo, revision)
        for line in lines:
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                continue
            names.append(value["path"])
        self.hub.commits.append(names)
        url = f"{self.hub.url}/datasets/{repo}/commit/{'1' * 40}"
        self.answer({"commitUrl": url, "commitOid": "1" * 40, "success": True, **more})


@contextmanager
def loopback_hub() -> Iterator[Hub]:
    """A running Hub; its address is `hub.url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = Hub()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
