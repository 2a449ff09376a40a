"""A real HTTP server in a thread that answers as a test tells it to: late, broken, wrong, or well."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DROP = "drop the connection"
CUT = "send half of an answer, and drop the connection"


class Late:
    """An answer after some seconds."""

    def __init__(self, seconds: float, answer: Any):
        self.seconds, self.answer = seconds, answer


class Status:
    """An answer with a status, a text and headers of its own."""

    def __init__(self, status: int, text: str = "", **headers: str):
        self.status, self.text, self.headers = status, text, {name.replace("_", "-"): v for name, v in headers.items()}


class HTTPDouble:
    """`answer(path, body)` gives what the server does: an object is sent as JSON, a str as it is, or one of the above.

    A list is worked off, one item a request; the last stays. `get` is the answer to GET, which it does not know else.
    """

    def __init__(self, answer: Any, get: Any = None):
        self.answer, self.get, self.requests, self.headers = answer, get, [], []
        self.at_once, self.most_at_once, self._lock = 0, 0, threading.Lock()

    def __enter__(self):
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                double._serve(self, body)

            def do_GET(self):
                if double.get is None:
                    self.send_error(501)
                else:
                    double._send(self, double.get)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, *args):  # a client that gave up
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised):
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler, body):
        with self._lock:
            self.requests.append((handler.path, body))
            self.headers.append(dict(handler.headers))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            given = self.answer
            if isinstance(given, list):
                given = given.pop(0) if len(given) > 1 else given[0]
        try:
            given = given(handler.path, body) if callable(given) else given
            if isinstance(given, Late):
                time.sleep(given.seconds)
                given = given.answer
        finally:
            with self._lock:  # before the client has its answer, and asks the next question
                self.at_once -= 1
        self._send(handler, given)

    def _send(self, handler, given):
        if given is DROP:
            return
        status = (
            given if isinstance(given, Status) else Status(200, given if isinstance(given, str) else json.dumps(given))
        )
        content = status.text.encode()
        if given is CUT:
            content = b'{"score": 1'
        handler.send_response(status.status)
        for name, value in status.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content) + (10 if given is CUT else 0)))
        handler.end_headers()
        handler.wfile.write(content)


def chat(text: str) -> dict[str, Any]:
    """An answer of an OpenAI-compatible server."""
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def dead_url() -> str:
    """An address at which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
