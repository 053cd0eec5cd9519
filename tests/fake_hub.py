"""A hub on loopback with one repository, so that the real huggingface_hub is what fetches."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REVISION = "a" * 40


class FakeHub:
    """What is there, and what was asked.

    Attributes:
        files: By repository, then by name. Safetensors are told with a SHA-256, others with git's.
        told: Contents that checksums are told of, where they are not those that are sent.
        breaks_after: Bytes of a safetensors file after which the connection ends, once.
        ranges: The ranges that were asked for.
        sent: Bytes of files that were sent, by file.
    """

    def __init__(self, files: Mapping[str, Mapping[str, bytes]]) -> None:
        self.files, self.told = files, dict[str, bytes]()
        self.breaks_after: int | None = None
        self.ranges: list[str] = []
        self.sent: Counter[str] = Counter()
        self.endpoint = ""

    def sibling(self, name: str, content: bytes) -> dict[str, Any]:
        """Return a file as ``model_info`` tells it."""
        content = self.told.get(name, content)
        told: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _git(content)}
        if name.endswith(".safetensors"):
            told["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 1}
        return told

    def entry(self, name: str, content: bytes) -> dict[str, Any]:
        """Return a file as the tree of a repository tells it."""
        told = self.sibling(name, content)
        lfs = told.get("lfs")
        entry = {"type": "file", "path": name, "size": told["size"], "oid": told["blobId"]}
        return entry | (
            {"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 1}} if lfs else {}
        )


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a hub until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
                self._tell(found[1], found[2] or "")
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._send_file(found[1], found[2])
            else:
                self._send(404, b"")

        def _tell(self, repository: str, rest: str) -> None:
            files = hub.files.get(repository)
            if files is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif rest.startswith("/tree/"):
                self._send_json([hub.entry(*item) for item in files.items()])
            else:
                siblings = [hub.sibling(*item) for item in files.items()]
                self._send_json({"id": repository, "sha": REVISION, "siblings": siblings})

        def _send_file(self, repository: str, name: str) -> None:
            if name not in hub.files.get(repository, {}):
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            content = hub.files[repository][name]
            told = hub.sibling(name, content)
            tag = told["lfs"]["sha256"] if "lfs" in told else told["blobId"]
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
            start, rest, status = 0, content, 200
            if asked := self.headers.get("Range"):
                hub.ranges.append(asked)
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, status = int(first), 206
                rest = content[start : int(last) + 1 if last else None]
                end = start + len(rest) - 1
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            hub.sent[name] += len(rest) if self.command == "GET" else 0
            is_cut = self.command == "GET" and name.endswith(".safetensors")
            if is_cut and hub.breaks_after is not None:
                sent, hub.breaks_after = rest[: hub.breaks_after], None
                self._send(status, rest, headers, sent)
                self.close_connection = True
            else:
                self._send(status, rest, headers)

        def _send_json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(
            self,
            status: int,
            body: bytes,
            headers: Mapping[str, str] | None = None,
            sent: bytes | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body if sent is None else sent)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
