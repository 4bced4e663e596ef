"""A hub on this machine: as much of its API as a push and a download of small files need."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_that_may_write"
COMMIT = "c" * 40


class Hub:
    """What it was asked and what it holds."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """By `owner/name/path`."""
        self.repositories: dict[str, bool] = {}
        """Name -> private."""
        self.messages: list[str] = []
        self.cards: list[str] = []
        """Whose front matter it was asked to check."""
        self.url = ""


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """Serves on a free port until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/")
            if path == "api/whoami-v2":
                self._answer({"name": "me", "type": "user"} if self._allowed() else None)
                return
            content = hub.files.get(path.replace("/resolve/main/", "/", 1))
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            tag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = unquote(urlsplit(self.path).path)
            if not self._allowed():
                self._answer(None)
            elif path == "/api/repos/create":
                wanted = json.loads(body)
                owner = wanted.get("organization") or "me"
                if owner != "me":
                    self._send(403, b'{"error": "not yours"}', {})
                    return
                hub.repositories[f"{owner}/{wanted['name']}"] = (
                    wanted.get("visibility") == "private"
                )
                self._answer({"url": f"{hub.url}/{owner}/{wanted['name']}"})
            elif path == "/api/validate-yaml":
                hub.cards.append(json.loads(body)["content"])
                self._answer({"errors": [], "warnings": []})
            elif "/preupload/" in path:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self._answer({"files": files})
            elif "/commit/" in path:
                owner, name = path.split("/")[3:5]
                for line in body.splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "header":
                        hub.messages.append(value["summary"])
                    else:
                        content = base64.b64decode(value["content"])
                        hub.files[f"{owner}/{name}/{value['path']}"] = content
                url = f"{hub.url}/{owner}/{name}/commit/{COMMIT}"
                self._answer({"commitUrl": url, "commitOid": COMMIT})
            else:
                self._send(404, b"{}", {})

        def _allowed(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _answer(self, value: Any) -> None:
            status, said = (401, {"error": "who are you?"}) if value is None else (200, value)
            self._send(status, json.dumps(said).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
