"""Requests to a vLLM server, its answers, and the errors when it does not answer."""

import http.client
import json
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from hf_rlhf.endpoints.addresses import server_address
from hf_rlhf.endpoints.answers import Answer
from hf_rlhf.errors import InputError

_PATIENCE_SECONDS = 30.0  # with a connection; a server on a busy CPU can be slow to say that it is healthy
_LOOK_SECONDS = 10.0  # for a look at a server that is waited for, and looked at again
_ASK_AGAIN_SECONDS = 0.5
_HEALTH_SECONDS = 30.0  # between looks at a server that lets an answer wait
_GIVEN_UP_SECONDS = 0.5  # between looks at whether anybody still wants that answer


def server_addresses(flag: str, urls: Sequence[str]) -> list[str]:
    """Return all addresses as `server_address` does. Raises `InputError` when there is none, or one comes twice."""
    if isinstance(urls, str) or not urls:
        raise InputError(
            f"{flag}={urls} is invalid: it is not a list of addresses. Write [http://a:8000, http://b:8000]."
        )
    found = [server_address(flag, url) for url in urls]
    for number, url in enumerate(found):
        if url in found[:number]:
            raise InputError(f"{flag}={' '.join(urls)} is invalid: {url} is given twice. Name each server once.")
    return found


def _never() -> bool:
    return False


class ServerLost(ConnectionError):
    """A server that does not answer, or that ended in the middle of an answer."""


class VLLMClient:
    """A client of the server at `base_url`, for any number of threads.

    It sends `VLLM_API_KEY` if that is set.
    """

    def __init__(self, base_url: str):
        self.base_url = server_address("vllm_server_base_url", base_url)
        parts = urlsplit(self.base_url)
        self._connection: Any = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path

    def get(self, path: str, patience: float | None = None) -> Answer:
        """Send a GET request.

        Raises `ServerLost`, also when the server sends nothing for `patience` seconds (30 by default).
        """
        return self._request("GET", path, None, patience or _PATIENCE_SECONDS, _never)

    def post(self, path: str, body: dict[str, Any], given_up: Callable[[], bool] = _never) -> Answer:
        """Send a POST request with JSON; wait for the answer while the server is healthy and `given_up` is false.

        Raises `ServerLost`.
        """
        return self._request("POST", path, json.dumps(body).encode(), _PATIENCE_SECONDS, given_up)

    def healthy(self, patience: float | None = None) -> bool:
        """Return whether the server answers that it can work."""
        try:
            return self.get("/health", patience).status == 200
        except ServerLost:
            return False

    def wait_until_healthy(self, seconds: float, given_up: Callable[[], bool] = _never) -> bool:
        """Return whether the server became healthy within so many seconds, and before `given_up` was true."""
        end = time.monotonic() + seconds
        while not self.healthy(_LOOK_SECONDS):
            if given_up() or time.monotonic() > end:
                return False
            time.sleep(_ASK_AGAIN_SECONDS)
        return True

    def _request(
        self, method: str, path: str, body: bytes | None, patience: float, given_up: Callable[[], bool]
    ) -> Answer:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        connection = self._connection(self._host, self._port, timeout=patience)
        try:
            connection.request(method, self._path + path, body, headers)
            if body is not None:
                self._wait_for_answer(connection.sock, given_up)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException) as error:
            raise ServerLost(f"{self.base_url}: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def _wait_for_answer(self, sock, given_up: Callable[[], bool]) -> None:
        """Wait for an answer while the server is healthy and the answer is wanted.

        There is no time limit, since sampling may take any time.
        """
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        look = time.monotonic() + _HEALTH_SECONDS
        while not poll.poll(_GIVEN_UP_SECONDS * 1000):
            if given_up():
                raise ConnectionError("the request was given up")
            if time.monotonic() > look:
                if not self.healthy():
                    raise ConnectionError("no answer, and no sign of health")
                look = time.monotonic() + _HEALTH_SECONDS
