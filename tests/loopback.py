"""A web server on loopback that serves a folder, and fails in the ways that it is told to."""

import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_ENDLESS = ("endless", "bomb", "trickle", "silent", "headers")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[str] = []
        """Every path that was asked for, in order."""
        self.heads: list[dict[str, str]] = []
        """The headers that came with each."""
        self.queries: list[str] = []
        self.faults: dict[str, list[str | int]] = defaultdict(list)
        """What befalls the next requests for a path, first to last: a status to answer with,
        `cut` (half of the file, then the connection ends), `hang up` (no answer at all), `other`
        (bytes of the right number, but others), `slow` (a pause in the middle), `endless` (spaces
        without end), `bomb` (the same, compressed), `trickle` (a byte now and then), `silent`
        (nothing) or `headers` (more and more of them)."""
        self.sent = 0
        """Bytes of endless answers that were taken from it."""

    def times(self, path: str) -> int:
        return self.asked.count(path)


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def __init__(self, request, client_address, server: Server) -> None:
        super().__init__(request, client_address, server, directory=str(server.root))

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.asked.append(path)
        self.server.heads.append(dict(self.headers))
        self.server.queries.append(query)
        fault = self.server.faults[path].pop(0) if self.server.faults[path] else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "hang up":
            self.close_connection = True
        elif fault is None:
            super().do_GET()
        elif fault in _ENDLESS:
            self.close_connection = True
            with suppress(OSError):  # until the other side has had enough
                self._send_without_end(fault)
        else:
            self._send(Path(self.translate_path(path)).read_bytes(), fault)

    def _send(self, data: bytes, fault: str) -> None:
        if fault == "other":
            data = bytes(255 - byte for byte in data)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        half = len(data) // 2
        self.wfile.write(data[:half])
        if fault == "cut":
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(0.7)
        self.wfile.write(data[half:])

    def _send_without_end(self, fault: str) -> None:
        if fault == "silent":
            time.sleep(60)
        while fault == "headers":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n" if not self.server.sent else b"x: y\r\n")
            self.server.sent += 6
        pack = zlib.compressobj(wbits=31)
        self.send_response(200)
        if fault == "bomb":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        data = b" " * (1 if fault == "trickle" else 1 << 20)
        while True:
            self.wfile.write(pack.compress(data) if fault == "bomb" else data)
            self.server.sent += len(data)
            if fault == "trickle":
                time.sleep(0.02)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    with Server(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
