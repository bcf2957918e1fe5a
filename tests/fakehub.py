"""A stand-in for the Hub on the loopback interface: what pushing and pulling ask of its HTTP API, in memory.

    with FakeHub() as hub:
        subprocess.run(command, env=hub.environment(home))
    hub.requests   # [("POST", "/api/repos/create"), ...], in order
    hub.files("user/model")   # {"config.json": b"...", ...}, as last committed

The client has to be a process of its own: `huggingface_hub` reads the address of the Hub when it is imported. Files
are uploaded by the git-lfs protocol; the newer one, xet, is switched off for the client.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


DATE = "2026-01-01T00:00:00.000Z"
LARGE_FILE = re.compile(r"\.(safetensors|bin|pt|parquet|arrow|png|jpg)$")


@dataclass(frozen=True)
class File:
    """Content of a file, and whether it came by git-lfs."""

    content: bytes
    is_large: bool = False

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def entry(self, path: str) -> dict:
        """The file as `tree` and `paths-info` list it."""
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.git_oid}
        if self.is_large:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return entry


@dataclass
class Repository:
    """Every commit is a full map of paths to files; branches and tags point at commits."""

    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File]) -> str:
        sha = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class Handler(BaseHTTPRequestHandler):
    """Answers one request. A route is a pattern and the method that its named groups are passed to."""

    protocol_version = "HTTP/1.1"
    hub: "FakeHub"

    repository = r"(?P<name>[^/]+/[^/]+)"
    routes = (
        (r"/api/whoami-v2", "whoami"),
        (r"/api/validate-yaml", "validate_card"),
        (r"/api/repos/create", "create_repository"),
        (r"/lfs/(?P<oid>\w+)", "large_file"),
        (rf"/(?:datasets/)?{repository}\.git/info/lfs/objects/batch", "negotiate_large_files"),
        (rf"/(?:(?P<kind>dataset)s/)?{repository}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
        (rf"/api/(?P<kind>model|dataset)s/{repository}/preupload/(?P<revision>[^/]+)", "choose_upload_modes"),
        (rf"/api/(?P<kind>model|dataset)s/{repository}/commit/(?P<revision>[^/]+)", "commit"),
        (rf"/api/(?P<kind>model|dataset)s/{repository}/(?:branch|tag)/(?P<revision>[^/]+)", "create_ref"),
        (rf"/api/(?P<kind>model|dataset)s/{repository}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
        (rf"/api/(?P<kind>model|dataset)s/{repository}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        (rf"/api/(?P<kind>model|dataset)s/{repository}(?:/revision/(?P<revision>[^/]+))?", "describe"),
    )

    def log_message(self, *args) -> None:
        """The requests are kept in `FakeHub.requests`, not printed."""

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.body = self.read_body()
        with self.hub.lock:
            self.hub.requests.append((self.command, url.path))
            for pattern, method in self.routes:
                if match := re.fullmatch(pattern, url.path):
                    groups = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    return getattr(self, method)(**groups)
            self.refuse("EntryNotFound", 404)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def reply(self, content: bytes | dict | list = b"", status: int = 200, **headers: str) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content_Type", "application/json")
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code: str, status: int, **headers: str) -> None:
        self.reply({"error": code}, status, X_Error_Code=code, X_Error_Message=code, **headers)

    def find(self, kind: str | None, name: str, revision: str | None) -> tuple[Repository, str] | None:
        """The repository and the commit that a request means; None after it has been refused."""
        repository = self.hub.repositories.get((kind or "model", name))
        if repository is None:
            return self.refuse("RepoNotFound", 401)
        sha = repository.resolve(revision or "main")
        if sha is None:
            return self.refuse("RevisionNotFound", 404)
        return repository, sha

    def whoami(self) -> None:
        self.reply({"type": "user", "name": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_card(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def create_repository(self) -> None:
        wanted = json.loads(self.body)
        kind, name = wanted.get("type") or "model", f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repositories:
            return self.reply({"error": "exists", "url": url}, 409)
        self.hub.repositories[kind, name] = Repository()
        self.hub.repositories[kind, name].commit("main", {})
        self.reply({"url": url, "name": name, "id": name})

    def negotiate_large_files(self, name: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            is_known = wanted["oid"] in self.hub.large_files
            objects.append({**wanted, "authenticated": True} | ({} if is_known else {"actions": actions}))
        self.reply({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def large_file(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.refuse("BadRequest", 400)
        self.hub.large_files[oid] = self.body
        self.reply()

    def choose_upload_modes(self, kind: str, name: str, revision: str) -> None:
        files = [
            {"path": path, "uploadMode": "lfs" if LARGE_FILE.search(path) else "regular", "shouldIgnore": False}
            for path in (file["path"] for file in json.loads(self.body)["files"])
        ]
        self.reply({"files": files})

    def commit(self, kind: str, name: str, revision: str) -> None:
        if (found := self.find(kind, name, revision)) is None:
            return
        repository, sha = found
        files = dict(repository.commits[sha])
        for operation in map(json.loads, self.body.splitlines()):
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]))
                case "lfsFile":
                    files[value["path"]] = File(self.hub.large_files[value["oid"]], is_large=True)
                case "deletedFile":
                    files.pop(value["path"], None)
        sha = repository.commit(revision, files)
        self.reply({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def create_ref(self, kind: str, name: str, revision: str) -> None:
        """A branch is named by the address and starts at `main`; a tag is named by the body and marks `revision`."""
        tag = json.loads(self.body or b"{}").get("tag")
        if (found := self.find(kind, name, revision if tag else "main")) is not None:
            repository, sha = found
            repository.refs.setdefault(tag or revision, sha)
            self.reply({})

    def download(self, kind: str | None, name: str, revision: str, path: str) -> None:
        if (found := self.find(kind, name, revision)) is None:
            return
        repository, sha = found
        file = repository.commits[sha].get(path)
        if file is None:
            return self.refuse("EntryNotFound", 404, X_Repo_Commit=sha)
        headers = {"ETag": f'"{file.sha256 if file.is_large else file.git_oid}"', "X_Repo_Commit": sha}
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), min(int(span[2] or len(file.content)), len(file.content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(file.content)}"
            return self.reply(file.content[first : last + 1], 206, **headers)
        self.reply(file.content, **headers)

    def tree(self, kind: str, name: str, revision: str, path: str | None) -> None:
        if (found := self.find(kind, name, revision)) is None:
            return
        repository, sha = found
        folder = f"{path}/" if path else ""
        inside = {at: file for at, file in repository.commits[sha].items() if at.startswith(folder)}
        if path and not inside:
            return self.refuse("EntryNotFound", 404, X_Repo_Commit=sha)
        if self.query.get("recursive", "").lower() in ("true", "1"):
            return self.reply([file.entry(at) for at, file in inside.items()])
        names = {at: at.removeprefix(folder) for at in inside}
        folders = {folder + name.split("/")[0] for name in names.values() if "/" in name}
        entries = [file.entry(at) for at, file in inside.items() if "/" not in names[at]]
        self.reply(entries + [{"type": "directory", "path": at, "size": 0, "oid": ""} for at in sorted(folders)])

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        if (found := self.find(kind, name, revision)) is None:
            return
        repository, sha = found
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        wanted = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode())["paths"]
        files = repository.commits[sha]
        self.reply([files[path].entry(path) for path in wanted if path in files])

    def describe(self, kind: str, name: str, revision: str | None) -> None:
        if (found := self.find(kind, name, revision)) is None:
            return
        repository, sha = found
        about = {"id": name, "author": name.split("/")[0], "sha": sha, "lastModified": DATE, "createdAt": DATE}
        state = {"private": False, "disabled": False, "gated": False, "downloads": 0, "likes": 0, "tags": []}
        self.reply(about | state | {"siblings": [{"rfilename": path} for path in repository.commits[sha]]})


class FakeHub:
    """The server, on a free port of the loopback interface, from `with` to the end of its block."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, name: str, kind: str = "model") -> dict[str, bytes]:
        """What the newest commit of a repository's main branch holds."""
        repository = self.repositories[kind, name]
        return {path: file.content for path, file in repository.commits[repository.refs["main"]].items()}

    def environment(self, home: str | Path) -> dict[str, str]:
        """The variables of a client process that knows no other Hub, and keeps its cache in `home`."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_token",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
