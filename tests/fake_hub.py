"""A stand-in for the Hugging Face hub on this machine: the part of its HTTP that huggingface_hub speaks with us."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
TOKEN = "hf_token_of_a_test"
ROUTES = {
    "info": re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?"),
    "tree": re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)"),
    "resolve": re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"),
    "preupload": re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/main"),
    "commit": re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/commit/main"),
    "batch": re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    "lfs": re.compile(r"/lfs/(\w+)"),
}


@dataclass
class Repository:
    """A repository with all its commits."""

    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    """Commit -> path -> content, oldest first."""

    def commit(self, files: Files) -> str:
        """Adds a commit that has these files; returns its name."""
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}{list(files.values())}".encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def at(self, revision: str) -> str | None:
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None


class FakeHub:
    """The hub at `url`, for as long as the block lasts."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        """(models or datasets, OWNER/NAME) -> repository."""
        self.large: Files = {}
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, kind: str, name: str, folder: Path, inside: str = "", private: bool = False) -> str:
        """Commits all files of `folder` into a repository; returns the commit."""
        files = {f"{inside}{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        repository = self.repositories.setdefault((kind, name), Repository(private=private))
        return repository.commit(files)


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self._answer()

        do_HEAD = do_POST = do_PUT = do_GET

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.requests.append(f"{self.command} {path}")
            if path == "/api/validate-yaml":
                return self._json({})
            if path == "/api/repos/create":
                return self._create(json.loads(self.body))
            for name, route in ROUTES.items():
                if match := route.fullmatch(path):
                    return getattr(self, f"_{name}")(*match.groups())  # type: ignore[no-any-return]
            self._send(404, b"{}", {})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _json(self, value: Any, status: int = 200) -> None:
            self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _error(self, status: int, code: str) -> None:
            self._send(status, b"{}", {"X-Error-Code": code} if code else {})

        def _allowed(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _repository(self, kind: str, name: str) -> Repository | None:
            found = hub.repositories.get((kind, name))
            if found is None or (found.private and not self._allowed()):
                self._error(404 if self._allowed() else 401, "RepoNotFound")
                return None
            return found

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked['organization']}/{asked['name']}"
            if not self._allowed():
                return self._json({"error": "Invalid username or password."}, 401)
            if asked["organization"] == "others":
                return self._json({"error": "You don't have the rights to create a model there"}, 403)
            there = ("models", name) in hub.repositories
            if not there:
                hub.repositories["models", name] = Repository(private=asked.get("visibility") == "private")
                hub.repositories["models", name].commit({})
            return self._json({"url": f"{hub.url}/{name}"}, 409 if there else 200)

        def _info(self, kind: str, name: str, revision: str | None) -> None:
            if (found := self._repository(kind, name)) is None:
                return
            if (sha := found.at(revision or "main")) is None:
                return self._error(404, "RevisionNotFound")
            siblings = [{"rfilename": path} for path in found.commits[sha]]
            self._json({"id": name, "sha": sha, "private": found.private, "siblings": siblings})

        def _tree(self, kind: str, name: str, revision: str) -> None:
            if (found := self._repository(kind, name)) is None:
                return
            if (sha := found.at(revision)) is None:
                return self._error(404, "RevisionNotFound")
            files = found.commits[sha].items()
            self._json([{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files])

        def _resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
            if (found := self._repository("datasets" if kind else "models", name)) is None:
                return
            sha = found.at(revision)
            if sha is None or path not in found.commits[sha]:
                return self._error(404, "EntryNotFound")
            content = found.commits[sha][path]
            self._send(200, content, {"X-Repo-Commit": sha, "ETag": f'"{_oid(content)}"'})

        def _preupload(self, kind: str, name: str) -> None:
            files = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in files}
            self._json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

        def _batch(self, name: str) -> None:
            objects = json.loads(self.body)["objects"]
            for asked in objects:
                asked["actions"] = {"upload": {"href": f"{hub.url}/lfs/{asked['oid']}"}}
            self._json({"transfer": "basic", "objects": objects})

        def _lfs(self, oid: str) -> None:
            hub.large[oid] = self.body
            self._send(200, b"", {})

        def _commit(self, kind: str, name: str) -> None:
            found = hub.repositories[kind, name]
            files = dict(found.commits[found.at("main") or ""])
            for line in map(json.loads, self.body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            sha = found.commit(files)
            self._json({"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha})

    return Handler


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
