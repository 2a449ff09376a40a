"""Requests to a vLLM server: what it answers, and what it means when it does not."""

import http.client
import json
import os
import select
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hf_rlhf.errors import InputError

_PATIENCE_SECONDS = 30.0  # with a connection; a server on a busy CPU can be slow to say that it is healthy
_ASK_AGAIN_SECONDS = 0.5
_HEALTH_SECONDS = 30.0  # between looks at a server that lets an answer wait


class ServerLost(ConnectionError):
    """The server does not answer, or ended in the middle of an answer."""


class Answer(NamedTuple):
    """Of the server, to one request."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        """The answer as JSON; None when it is none."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None

    @property
    def message(self) -> str:
        """What the server says about an error."""
        content = self.json
        error = content.get("error") if isinstance(content, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        return str(message or self.text.strip()[:500] or "nothing")


class VLLMClient:
    """Sends requests to the server at `base_url`, from any number of threads. `VLLM_API_KEY` is sent when it is set."""

    def __init__(self, base_url: str):
        parts = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise InputError(f"vllm_server_base_url={base_url!r} is no address; write http://host:8000")
        self.base_url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._connection: Any = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, port
        self._path = urlsplit(self.base_url).path

    def get(self, path: str) -> Answer:
        """GET. Raises `ServerLost`."""
        return self._request("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        """POST of JSON; waits for the answer as long as the server is healthy. Raises `ServerLost`."""
        return self._request("POST", path, json.dumps(body).encode())

    def healthy(self) -> bool:
        """Whether the server answers that it can work."""
        try:
            return self.get("/health").status == 200
        except ServerLost:
            return False

    def wait_until_healthy(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Whether the server became healthy within so many seconds. `meanwhile` is called between two looks."""
        end = time.monotonic() + seconds
        while not self.healthy():
            meanwhile()
            if time.monotonic() > end:
                return False
            time.sleep(_ASK_AGAIN_SECONDS)
        return True

    def _request(self, method: str, path: str, body: bytes | None) -> Answer:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        connection = self._connection(self._host, self._port, timeout=_PATIENCE_SECONDS)
        try:
            connection.request(method, self._path + path, body, headers)
            if body is not None:
                self._wait_for_answer(connection.sock)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException) as error:
            raise ServerLost(f"{self.base_url}: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def _wait_for_answer(self, sock) -> None:
        """Sampling may take any time, so the only limit is that the server stays healthy."""
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while not poll.poll(_HEALTH_SECONDS * 1000):
            if not self.healthy():
                raise ConnectionError("no answer, and no sign of health")
