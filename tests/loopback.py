"""A web server on loopback that serves a folder, and fails in the ways that it is told to."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[str] = []
        """Every path that was asked for, in order."""
        self.faults: dict[str, list[str | int]] = defaultdict(list)
        """What befalls the next requests for a path, first to last: a status to answer with,
        `cut` (half of the file, then the connection ends), `hang up` (no answer at all), `other`
        (bytes of the right number, but others) or `slow` (a pause in the middle)."""

    def times(self, path: str) -> int:
        return self.asked.count(path)


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def __init__(self, request, client_address, server: Server) -> None:
        super().__init__(request, client_address, server, directory=str(server.root))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        fault = self.server.faults[path].pop(0) if self.server.faults[path] else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "hang up":
            self.close_connection = True
        elif fault is None:
            super().do_GET()
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
