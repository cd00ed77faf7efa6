"""A model server on 127.0.0.1 in PaddleNLP's and the Hugging Face hub's layouts, with faults."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PADDLE_URL = re.compile(r"/paddlenlp/models/community/(?P<repo>.+/.+)/(?P<file>[^/]+)")
HUB_URL = re.compile(r"/(?P<repo>.+/.+)/resolve/(?P<revision>[^/]+)/(?P<file>[^/]+)")


class Request(NamedTuple):
    method: str
    file: str
    range: str | None
    layout: str  # "paddle" or "hub"


class FileServer(ThreadingHTTPServer):
    """Serves what is put into `paddle` and `hub`, {repository: {file: bytes}}.

    `break_after` {file: N} closes the connection after N bytes of that file, once; `delay` waits
    so many seconds before each answer; `status` answers all requests with that code;
    `ignore_range` sends the whole file whatever was asked. `requests` lists what came in.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paddle: dict[str, dict[str, bytes]] = {}
        self.hub: dict[str, dict[str, bytes]] = {}
        self.break_after: dict[str, int] = {}
        self.delay = 0.0
        self.status = 0
        self.ignore_range = False
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self, file: str | None = None) -> list[Request]:
        """GET requests for a file, or all of them."""
        return [r for r in self.requests if r.method == "GET" and file in (None, r.file)]


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        server = self.server
        match, repos, layout = PADDLE_URL.fullmatch(self.path), server.paddle, "paddle"
        if match is None:
            match, repos, layout = HUB_URL.fullmatch(self.path), server.hub, "hub"
        repo, file = (match["repo"], match["file"]) if match else ("", self.path)
        asked = self.headers.get("Range")
        server.requests.append(Request(self.command, file, asked, layout))
        time.sleep(server.delay)
        body = repos.get(repo, {}).get(file)
        if server.status or body is None:
            self.send_response(server.status or 404)
            if layout == "hub" and not server.status:
                self.send_header(
                    "X-Error-Code", "EntryNotFound" if repo in repos else "RepoNotFound"
                )
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if server.ignore_range:
            start = 0
        if start >= len(body) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not with_body:
            return
        stop = server.break_after.pop(file, len(body))
        self.wfile.write(body[start:stop])
        if stop < len(body):
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[FileServer]:
    """A FileServer that runs inside the with block."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
