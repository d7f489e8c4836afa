"""A small Hub on loopback: enough of the protocol for the real clients, with faults that can be switched on.

It speaks what huggingface_hub, datasets and transformers ask of the Hub for models and data sets over LFS: whoami,
create and delete, repo info, tree, paths-info, validate-yaml, preupload, commit, LFS batch, PUT and verify, resolve
with ETag, X-Repo-Commit and Range, branches, tags, refs and commits. Clients need ``HF_ENDPOINT`` (or ``endpoint=``)
and ``HF_HUB_DISABLE_XET=1``, unless the server is made with ``xet=True``: then it also hands out Xet tokens, and large
files go by Xet. File contents lie in a folder by their SHA-256, the rest in memory.

    with HubServer(tmp_path) as hub:
        hub.faults.append(Fault("error", "POST", "/commit/", status=500))
        HfApi(endpoint=hub.endpoint, token="hf_test").create_repo("org/name")
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from tests.hub_collections import collection
from tests.hub_listing import listed
from tests.hub_store import Account, Commit, HubStore, Repo, is_lfs
from tests.hub_xet import XetStore
from tests.hub_yaml import HEAD, benchmark_errors, results_errors, yaml_errors

STAMP = "2026-01-01T00:00:00.000Z"
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")


@dataclass
class Fault:
    """Something that goes wrong for the next ``times`` requests whose method and path match."""

    kind: Literal["error", "rate_limit", "drop", "lose_response", "flip", "cut"]
    """``error``: answer ``status``. ``rate_limit``: 429 with Retry-After. ``drop``: hang up before doing anything.
    ``lose_response``: do it, then hang up. ``flip``: change one bit of the body that is sent. ``cut``: send half of the
    body, then hang up."""
    method: str
    pattern: str
    """Regular expression, searched in the request's path."""
    times: int = 1
    status: int = 500
    retry_after: int = 0


class HubServer(HubStore):
    """The server and its state; a context manager.

    Attributes:
        endpoint: what goes into ``HF_ENDPOINT``.
        faults: what shall go wrong; used up from the front.
        requests: (method, path) of everything that was asked, in order.
        ranges: the Range header of every request that had one.
        page: entries on one page of a tree listing.
        xet: the storage for large files; None where they go over LFS.
    """

    def __init__(self, folder: Path, *, page: int = 1000, xet: bool = False) -> None:
        super().__init__(folder)
        self.page = page
        self.xet = XetStore(folder / "xet") if xet else None
        self.ranges: list[str] = []
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []

    def __enter__(self) -> HubServer:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def environment(self, home: Path, *, token: str | None = "hf_test") -> dict[str, str]:
        """Environment variables for a client in a process of its own."""
        found = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
        }
        return {**found, "HF_TOKEN": token} if token else found

    def count(self, method: str, pattern: str) -> int:
        """How many requests with this method had a path that matches."""
        return sum(m == method and re.search(pattern, path) is not None for m, path in self.requests)


class Answer(Exception):  # noqa: N818 - it carries the answer out of nested code, error or not
    """A response to send."""

    def __init__(self, status: int, body: Any = b"", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {"Content-Type": "application/json"} if not isinstance(body, bytes) else {}
        self.headers.update(headers or {})


def refuse(status: int, message: str, code: str | None = None) -> Answer:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return Answer(status, {"error": message}, headers)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `HubServer.requests` is the log."""

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        self.raw_route = parts.path
        self.content = self.body()
        self.hub.ranges += [self.headers["Range"]] if self.headers.get("Range") else []
        with self.hub.lock:
            self.hub.requests.append((self.command, self.route))
            fault = self.take_fault()
            if fault and fault.kind == "drop":
                return self.hang_up()
            try:
                if fault and fault.kind == "error":
                    raise refuse(fault.status, "Internal Error - We're working hard to fix this as soon as possible!")
                if fault and fault.kind == "rate_limit":
                    raise Answer(429, {"error": "Too many requests"}, {"Retry-After": str(fault.retry_after)})
                self.dispatch()
                raise refuse(404, f"no such page: {self.command} {self.route}")
            except Answer as answer:
                if fault and fault.kind == "lose_response":
                    return self.hang_up()
                if fault and fault.kind == "flip":
                    answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])
                if fault and fault.kind == "cut":
                    answer.headers["Content-Length"] = str(len(answer.body))
                    answer.body = answer.body[: len(answer.body) // 2]
                    self.send(answer)
                    return self.hang_up()
                return self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815 - http.server's names

    def take_fault(self) -> Fault | None:
        for fault in self.hub.faults:
            if fault.method == self.command and re.search(fault.pattern, self.route):
                fault.times -= 1
                if fault.times == 0:
                    self.hub.faults.remove(fault)
                return fault
        return None

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    # --- who asks, and for what

    def account(self) -> Account | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.hub.accounts:
            raise refuse(401, "Invalid credentials in Authorization header")
        return self.hub.accounts[token]

    def writer(self, repo_id: str) -> Account:
        account = self.account()
        if account is None:
            raise refuse(401, "Invalid username or password.")
        owner = repo_id.split("/")[0]
        if account.role != "write" or owner not in (account.user, *account.orgs):
            raise refuse(403, f"You don't have the rights to write under the namespace {owner}")
        return account

    def visible(self, repo_id: str, repo: Repo) -> bool:
        account = self.account()
        return not repo.private or (account is not None and repo_id.split("/")[0] in (account.user, *account.orgs))

    def repo(self, kind: str, repo_id: str) -> Repo:
        account, repo = self.account(), self.hub.repos.get((kind, repo_id))
        if repo is None or not self.visible(repo_id, repo):
            raise refuse(401 if account is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> Commit:
        commit = repo.resolve(revision)
        if commit is None:
            raise refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def dispatch(self) -> None:
        if self.route == "/api/whoami-v2":
            raise self.whoami()
        if self.route == "/api/validate-yaml":
            raise self.validate_yaml()
        if self.route in ("/api/repos/create", "/api/repos/delete"):
            raise self.create_or_delete()
        if match := re.fullmatch(
            r"/api/(model|dataset|space)s/([^/]+/[^/]+)/xet-(write|read)-token/[^/]+", self.raw_route
        ):
            raise self.xet_token(*match.groups())
        if match := re.fullmatch(r"/lfs/(\w+)", self.raw_route):
            raise self.lfs_object(match[1])
        if match := re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.raw_route):
            raise self.lfs_batch(match[2])
        if match := re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.raw_route):
            raise self.resolve((match[1] or "models/")[:-2], match[2], unquote(match[3]), unquote(match[4]))
        if match := re.fullmatch(r"/api/collections(?:/([^/]+/[^/]+)(?:/(items))?)?", self.route):
            asked = json.loads(self.content or b"{}")
            self.writer(f"{asked.get('namespace') or (match[1] or '').split('/')[0]}/")
            raise Answer(*collection(self.hub, self.command, match[1] or "", match[2] or "", asked))
        if match := re.fullmatch(r"/api/(model|dataset)s", self.route):
            raise Answer(200, listed(self.hub, match[1], self.query.get("filter", []), self.visible))
        if match := re.fullmatch(
            r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+))?(/.+)?)?", self.raw_route
        ):
            kind, repo_id, action, argument, rest = match.groups()
            revision = unquote(argument or "main")
            raise self.repo_call(kind, unquote(repo_id), action or "revision", revision, unquote(rest or "")[1:])

    def repo_call(self, kind: str, repo_id: str, action: str, revision: str, rest: str) -> Answer:
        repo = self.repo(kind, repo_id)
        call = (self.command, action)
        if call == ("GET", "revision"):
            return self.info(repo_id, repo, self.commit_of(repo, revision))
        if call == ("GET", "tree"):
            return self.tree(self.commit_of(repo, revision), rest)
        if call == ("POST", "paths-info"):
            form = parse_qs(self.content.decode())
            listing = self.entries(self.commit_of(repo, revision))
            return Answer(200, [listing[path] for path in form.get("paths", []) if path in listing])
        if call == ("GET", "refs"):
            return self.refs(repo)
        if call == ("GET", "commits"):
            log = [
                {"id": c.sha, "title": c.title, "message": "", "authors": [], "date": STAMP}
                for c in repo.history(revision)
            ]
            return Answer(200, log)
        self.writer(repo_id)
        if call == ("POST", "preupload"):
            return self.preupload(self.commit_of(repo, revision))
        if call == ("POST", "commit"):
            return self.take_commit(repo, repo_id, revision)
        if call == ("POST", "branch"):
            if revision in repo.branches:
                return refuse(409, f"Reference already exists: {revision}")
            start = json.loads(self.content or b"{}").get("startingPoint", "main")
            repo.branches[revision] = self.commit_of(repo, start).sha
            return Answer(200, {})
        if call == ("POST", "tag"):
            repo.tags[json.loads(self.content)["tag"]] = self.commit_of(repo, revision).sha
            return Answer(200, {})
        return refuse(404, f"no such call: {self.command} {action}")

    # --- answers

    def whoami(self) -> Answer:
        account = self.account()
        if account is None:
            return refuse(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in account.orgs]
        token = {"displayName": "test", "role": account.role}
        return Answer(200, {"type": "user", "name": account.user, "orgs": orgs, "auth": {"accessToken": token}})

    def validate_yaml(self) -> Answer:
        found = [[{"message": text} for text in texts] for texts in yaml_errors(json.loads(self.content)["content"])]
        return Answer(400 if found[0] else 200, dict(zip(("errors", "warnings"), found, strict=True)))

    def create_or_delete(self) -> Answer:
        asked = json.loads(self.content)
        account = self.account()
        if account is None:
            return refuse(401, "Invalid username or password.")
        kind, repo_id = asked.get("type", "model"), f"{asked.get('organization') or account.user}/{asked['name']}"
        self.writer(repo_id)
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"
        if self.route.endswith("delete"):
            self.hub.repos.pop((kind, repo_id), None)
            return Answer(200, {})
        if not NAME.fullmatch(asked["name"]) or "reserved" in asked["name"]:
            return refuse(400, f"Invalid repo name: {repo_id} - name is not allowed")
        if (kind, repo_id) in self.hub.repos:
            return Answer(409, {"error": f"You already created this {kind} repo: {repo_id}", "url": url})
        if kind == "space" and asked.get("sdk") not in ("static", "gradio", "docker"):
            return refuse(400, "sdk is missing")
        self.hub.create(kind, repo_id, private=asked.get("visibility") == "private")
        return Answer(200, {"url": url, "name": repo_id})

    def info(self, repo_id: str, repo: Repo, commit: Commit) -> Answer:
        card = {}
        if "README.md" in commit.files:
            text = self.hub.object(commit.files["README.md"].sha256).decode()
            found = HEAD.match(text)
            card = yaml.safe_load(found[1]) if found else {}
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        names = {"_id": "0", "id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": commit.sha}
        dates = {"lastModified": STAMP, "createdAt": STAMP}
        flags = {"private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return Answer(200, {**names, **dates, **flags, "siblings": siblings, "cardData": card})

    def entries(self, commit: Commit) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path, blob in commit.files.items():
            for folder in list(Path(path).parents)[:-1]:
                oid = hashlib.sha1(str(folder).encode()).hexdigest()
                found[str(folder)] = {"type": "directory", "oid": oid, "size": 0, "path": str(folder)}
            entry: dict[str, Any] = {"type": "file", "oid": blob.git_sha1, "size": blob.size, "path": path}
            if blob.lfs:
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{blob.sha256}\nsize {blob.size}\n"
                entry["oid"] = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer.encode()).hexdigest()
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(pointer)}
            found[path] = entry
        return dict(sorted(found.items()))

    def tree(self, commit: Commit, folder: str) -> Answer:
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        listing = [e for path, e in self.entries(commit).items() if path.startswith(prefix)]
        if folder and not listing:
            return refuse(404, f"{folder} does not exist", "EntryNotFound")
        if not recursive:
            listing = [e for e in listing if "/" not in e["path"][len(prefix) :]]
        start = int(self.query.get("cursor", ["0"])[0])
        rest = listing[start + self.hub.page :]
        next_page = f"{self.hub.endpoint}{self.raw_route}?recursive={recursive}&cursor={start + self.hub.page}"
        return Answer(
            200, listing[start : start + self.hub.page], {"Link": f'<{next_page}>; rel="next"'} if rest else {}
        )

    def refs(self, repo: Repo) -> Answer:
        def listed(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in names.items()]

        return Answer(
            200, {"branches": listed("heads", repo.branches), "converts": [], "tags": listed("tags", repo.tags)}
        )

    def preupload(self, commit: Commit) -> Answer:
        answers = []
        for asked in json.loads(self.content)["files"]:
            path, known = asked["path"], commit.files.get(asked["path"])
            mode = "lfs" if is_lfs(path, asked["size"]) else "regular"
            answers.append(
                {"path": path, "uploadMode": mode, "shouldIgnore": False, **({"oid": known.etag} if known else {})}
            )
        return Answer(200, {"files": answers})

    def take_commit(self, repo: Repo, repo_id: str, branch: str) -> Answer:
        lines = [json.loads(line) for line in self.content.splitlines() if line]
        header = lines[0]["value"]
        head = repo.branches.get(branch)
        if head is None:
            return refuse(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if header.get("parentCommit") not in (None, head):
            return refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head].files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = self.hub.store(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                if not (self.hub.folder / "objects" / value["oid"]).is_file() and not self.fetch_from_xet(value["oid"]):
                    return refuse(400, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = self.hub.store(self.hub.object(value["oid"]), lfs=True)
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
            elif line["key"] == "deletedFolder":
                files = {p: b for p, b in files.items() if not p.startswith(value["path"])}
        for path, blob in files.items():
            errors: list[str] = []
            if path == "eval.yaml" and self.route.startswith("/api/datasets/"):
                errors = benchmark_errors(self.hub.object(blob.sha256))
            elif re.fullmatch(r"\.eval_results/[^/]+\.yaml", path) and self.route.startswith("/api/models/"):
                errors = results_errors(self.hub.object(blob.sha256))
            if errors:
                return refuse(400, f"{path}: {errors[0]}")
        sha = self.hub.commit(repo, branch, files, header["summary"])
        return Answer(
            200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{sha}"}
        )

    def xet_token(self, kind: str, repo_id: str, access: str) -> Answer:
        self.repo(kind, repo_id)
        if access == "write":
            self.writer(repo_id)
        if self.hub.xet is None:
            return refuse(404, "no Xet storage here")
        named = self.hub.xet.token(access)
        body = {
            "casUrl": named["X-Xet-Cas-Url"],
            "accessToken": named["X-Xet-Access-Token"],
            "exp": int(named["X-Xet-Token-Expiration"]),
        }
        return Answer(200, body, named)

    def fetch_from_xet(self, sha256: str) -> bool:
        content = self.hub.xet.read(sha256) if self.hub.xet else None
        if content is not None:
            self.hub.store(content, lfs=True)
        return content is not None

    def lfs_batch(self, repo_id: str) -> Answer:
        self.writer(repo_id)
        objects = []
        for asked in json.loads(self.content)["objects"]:
            known = (self.hub.folder / "objects" / asked["oid"]).is_file()
            here = f"{self.hub.endpoint}/lfs/{asked['oid']}"
            actions = {"upload": {"href": here, "header": {}}, "verify": {"href": here, "header": {}}}
            objects.append({**asked, **({} if known else {"actions": actions})})
        return Answer(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def lfs_object(self, oid: str) -> Answer:
        if self.command == "PUT":
            if hashlib.sha256(self.content).hexdigest() != oid:
                return refuse(400, "content does not match its hash")
            self.hub.store(self.content, lfs=True)
            return Answer(200)
        asked = json.loads(self.content)
        whole = self.hub.folder / "objects" / asked["oid"]
        return Answer(200) if whole.is_file() and whole.stat().st_size == asked["size"] else refuse(404, "not uploaded")

    def resolve(self, kind: str, repo_id: str, revision: str, path: str) -> Answer:
        commit = self.commit_of(self.repo(kind, unquote(repo_id)), revision)
        named = {"X-Repo-Commit": commit.sha}
        blob = commit.files.get(path)
        if blob is None:
            answer = refuse(404, f"{path} does not exist on {revision}", "EntryNotFound")
            answer.headers.update(named)
            return answer
        headers = {
            **named,
            "ETag": f'"{blob.etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(Path(path).name)}"
        if blob.lfs:
            headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
            known = self.hub.xet.file_hash(blob.sha256) if self.hub.xet else None
            if known:
                url = f"{self.hub.endpoint}/api/{kind}s/{repo_id}/xet-read-token/{commit.sha}"
                headers |= {"X-Xet-Hash": known[0], "X-Xet-Refresh-Route": url}
        content = self.hub.object(blob.sha256)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return Answer(200, content, headers)
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last), len(content) - 1) if first and last else len(content) - 1
        if start >= len(content):
            return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return Answer(206, content[start : end + 1], headers)
