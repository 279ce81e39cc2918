"""A model hub on this machine: real HTTP, the endpoints that huggingface_hub calls, no more."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class LocalHub:
    """What the server serves and what it was asked.

    Attributes:
        models: Folder of each model id.
        gated: Ids that answer 403 with the hub's gate message.
        break_after_bytes: Cut the first download of a large file off after so many bytes.
        requests: Method, path and Range header of every request.
        pushed: Content of every file that was committed, by ``model/name``.
    """

    models: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    break_after_bytes: int | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    pushed: dict[str, bytes] = field(default_factory=dict)
    url: str = ""


@contextmanager
def serve_hub(hub: LocalHub) -> Iterator[LocalHub]:
    """Serve ``hub`` on a free port of the loopback interface."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.partition("?")[0].strip("/").split("/")
        self.hub.requests.append(("POST", self.path, None))
        model = "/".join(parts[2:4])
        answer: dict[str, object] = {}
        if parts == ["api", "repos", "create"]:
            asked = json.loads(content)
            answer = {"url": f"{self.hub.url}/{asked.get('organization', 'me')}/{asked['name']}"}
        elif parts[-2:-1] == ["preupload"]:
            files = [one["path"] for one in json.loads(content)["files"]]
            answer = {
                "files": [
                    {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files
                ]
            }
        elif parts[-2:-1] == ["commit"]:
            for line in content.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.hub.pushed[f"{model}/{value['path']}"] = base64.b64decode(value["content"])
            answer = {
                "success": True,
                "commitOid": COMMIT,
                "commitUrl": f"{self.hub.url}/{model}/commit/{COMMIT}",
                "hookOutput": "",
            }
        self._send(200, json.dumps(answer).encode(), {}, body=True)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._answer_api("/".join(parts[2:4]), parts[4:], body=body)
        elif len(parts) > 4 and parts[2] == "resolve":
            self._answer_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body=body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)

    def _answer_api(self, model: str, rest: list[str], *, body: bool) -> None:
        folder = self.hub.models.get(model)
        if folder is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
            return
        if rest and rest[0] in ("revision", "tree") and rest[1] not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
            return
        names = sorted(path.name for path in folder.iterdir())
        if rest and rest[0] == "tree":
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": (folder / name).stat().st_size,
                    "oid": _etag(folder / name)[:40],
                }
                for name in names
            ]
            self._send(200, json.dumps(entries).encode(), {}, body=body)
            return
        answer = {
            "id": model,
            "modelId": model,
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "siblings": [{"rfilename": name} for name in names],
        }
        self._send(200, json.dumps(answer).encode(), {}, body=body)

    def _answer_file(self, model: str, revision: str, name: str, *, body: bool) -> None:
        folder = self.hub.models.get(model)
        if model in self.hub.gated:
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
            self._send(403, b"", headers, body=body)
            return
        if folder is None or revision not in ("main", COMMIT) or not (folder / name).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        content = (folder / name).read_bytes()
        headers = {"ETag": f'"{_etag(folder / name)}"', "X-Repo-Commit": COMMIT}
        status = 200
        requested = self.headers.get("Range")
        if requested is not None:
            start = int(requested.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        limit = self.hub.break_after_bytes
        if body and requested is None and limit is not None and len(content) > limit:
            self.hub.break_after_bytes = None
            self._send(status, content, headers, body=True, cut_after=limit)
            return
        self._send(status, content, headers, body=body)

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str],
        *,
        body: bool,
        cut_after: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[:cut_after])
        if cut_after is not None:
            self.close_connection = True


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
