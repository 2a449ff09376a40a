"""Requests to HTTP servers that answer in JSON: timeouts, retries, bounded concurrency, and errors without tokens."""

import json
import logging
import random
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException
from typing import Any, TypeVar

from hf_rlhf.credentials import hide_tokens, printable
from hf_rlhf.endpoints.addresses import checked_url, key_in
from hf_rlhf.endpoints.answers import Answer, send
from hf_rlhf.errors import InputError, RunFailed

T = TypeVar("T")
Item = TypeVar("Item")
Post = Callable[[str, Mapping[str, Any], Callable[[Any], Any]], Any]
"""`post(path, body, read)`: what `Endpoint.call_all` gives to its calls, see `Endpoint.post`."""

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 60.0  # before the second try, and before any
_NOTICE_SECONDS = 8.0  # between two warnings about one server
_BUSY = (408, 425, 429)  # these, and 5xx, may be answered the next time
_FOR_ALL = (401, 403, 404, 405)  # these would be the answer to every request

logger = logging.getLogger(__name__)


class Unusable(ValueError):
    """An answer that is JSON, but not what was asked for. Functions that read answers raise it; it is asked again."""


class EndpointError(RunFailed):
    """A request that had no usable answer after all tries. The message names URL, status and the answer's beginning.

    Attributes:
        for_all: whether every other request would fail in the same way, such as for a wrong key or path.
        again: whether the same request may be answered at another time, such as by a server that was down.
    """

    def __init__(self, message: str, *, for_all: bool = False, again: bool = False):
        super().__init__(message)
        self.for_all, self.again = for_all, again


class _Failed(Exception):
    """One try that failed: why, whether another may succeed, and after how many seconds at least."""

    def __init__(self, reason: str, *, again: bool, after: float | None = None, for_all: bool = False):
        super().__init__(reason)
        self.again, self.after, self.for_all = again, after, for_all


class Endpoint:
    """A server that takes and gives JSON, for any number of threads.

    A request is repeated after a lost connection, a status of 408, 425, 429 or 5xx, and an answer that is not usable.
    The pauses double from half a second on; the server's `Retry-After` counts where it is longer, up to a minute.

    Args:
        url: `http://host:port`, with or without a path. No token or password may stand in it.
        api_key_env: variable of the environment that holds the key, sent as `Authorization: Bearer`.
        timeout: seconds for one try, until the whole answer is there.
        retries: tries after the first.
        concurrency: most requests at the same time in `call_all`.

    Raises `InputError` for anything wrong in these.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        concurrency: int = 16,
    ):
        self.url = checked_url(url)
        rules = {
            "timeout": (timeout > 0, timeout, "above 0"),
            "retries": (retries >= 0, retries, "0 or above"),
            "concurrency": (concurrency >= 1, concurrency, "at least 1"),
        }
        for name, (holds, value, rule) in rules.items():
            if not holds:
                raise InputError(f"{name}={value} is invalid: it must be {rule}.")
        self.timeout, self.retries, self.concurrency = timeout, retries, concurrency
        self._api_key_env = api_key_env
        self._open()

    def _open(self) -> None:
        """Set what belongs to this process."""
        self._key = key_in(self._api_key_env)
        self._noticed, self._lock = -_NOTICE_SECONDS, threading.Lock()
        self._running: set[threading.Event] = set()  # each is set to end a `call_all`

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process needs: it reads the key from its own environment."""
        own = ("_key", "_noticed", "_lock", "_running")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def post(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """Send `body` as JSON to `url + path` and return what `read` makes of the answer.

        `read` gets the parsed answer, and raises `Unusable` for one of another shape. Raises `EndpointError`.
        """
        return self._post(path, body, read, threading.Event())

    def require_reachable(self) -> None:
        """Ask the server by GET, before anything expensive starts; it need not know GET at this address.

        Raises `EndpointError` where no answer comes after all tries, and where the key is refused (401).
        """

        def look() -> None:
            answer = self._answer(urllib.request.Request(self.url))
            if answer.status == 401:
                raise self._refused(answer)

        self._repeat(look, self.url, threading.Event())

    def call_all(
        self,
        call: Callable[[Item, Post], T],
        items: Sequence[Item],
        *,
        keep_errors: int = 0,
        on_done: Callable[[int], None] = lambda _: None,
    ) -> list[T | EndpointError]:
        """Return `call(item, post)` for each item, in order, `concurrency` of them at the same time.

        Args:
            call: sends its requests by the `post` that it gets.
            items: of the calls.
            keep_errors: so many `EndpointError`s are given in the place of their items, unless they are `for_all`. One
                more ends the other calls and is raised.
            on_done: called in this thread with 1 after each call.
        """
        stopped = threading.Event()
        self._running.add(stopped)

        def post(path: str, body: Mapping[str, Any], read: Callable[[Any], Any]) -> Any:
            return self._post(path, body, read, stopped)

        def one(item: Item) -> T | EndpointError:
            try:
                return call(item, post)
            except EndpointError as error:
                if error.for_all or not keep_errors:
                    raise
                return error

        errors = 0
        pool = ThreadPoolExecutor(min(self.concurrency, max(len(items), 1)), thread_name_prefix="endpoint")
        futures = [pool.submit(one, item) for item in items]
        try:
            for future in as_completed(futures):
                if isinstance(error := future.result(), EndpointError):
                    errors += 1
                    if errors > keep_errors:
                        raise EndpointError(f"{errors} of {len(items)} requests failed, the last so: {error}")
                on_done(1)
        finally:
            stopped.set()
            self._running.discard(stopped)
            pool.shutdown(wait=False, cancel_futures=True)  # an answer under way is not waited for
        return [future.result() for future in futures]

    def give_up(self) -> None:
        """Let each `call_all` that is under way end soon, in an `EndpointError`. For other threads."""
        for stopped in tuple(self._running):
            stopped.set()

    def _post(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T], stopped: threading.Event) -> T:
        url, data = self.url + path, json.dumps(body).encode()
        return self._repeat(lambda: self._try(url, data, read), url, stopped)

    def _repeat(self, attempt: Callable[[], T], url: str, stopped: threading.Event) -> T:
        for number in range(self.retries + 1):
            if stopped.is_set():
                break
            try:
                return attempt()
            except _Failed as failed:
                if number == self.retries or not failed.again:
                    tries = f" after {number + 1} tries" if number else ""
                    message = self._shown(f"{url} gave no usable answer{tries}: {failed}")
                    raise EndpointError(message, for_all=failed.for_all, again=failed.again) from None
                pause = _PAUSE_SECONDS * 2**number * random.uniform(0.8, 1.2)
                pause = min(max(pause, failed.after or 0.0), _LONGEST_PAUSE_SECONDS)
                self._notice(f"{url}: {failed}. Asking again in {pause:.1f} s (try {number + 2} of {self.retries + 1})")
                stopped.wait(pause)
        raise EndpointError(f"{url} was given up", for_all=True)

    def _try(self, url: str, data: bytes, read: Callable[[Any], T]) -> T:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        answer = self._answer(urllib.request.Request(url, data, headers))
        status, text = answer.status, self._shown(answer.text)
        if not 200 <= status < 300:
            raise self._refused(answer)
        try:
            content = json.loads(answer.text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            what = error if isinstance(error, Unusable) else "it is not JSON"
            raise _unusable(status, what, text) from error
        try:
            return read(content)
        except Unusable as error:
            raise _unusable(status, error, text) from error

    def _answer(self, request: urllib.request.Request) -> Answer:
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            return send(request, self.timeout)
        except TimeoutError as error:
            raise _Failed(f"no answer in {self.timeout:g} s", again=True) from error
        except (OSError, HTTPException, ValueError) as error:
            never = isinstance(error, (ssl.SSLCertVerificationError, ValueError))
            reason = f"no connection ({error or type(error).__name__}). Check the url, and that the server runs"
            raise _Failed(reason, again=not never, for_all=never) from error

    def _refused(self, answer: Answer) -> _Failed:
        status, text = answer.status, self._shown(answer.text)
        to = f", to {answer.headers['Location']}: write that address" if 300 <= status < 400 else ""
        return _Failed(
            f"status {status}{to}: {printable(answer._replace(text=text).message, 300)}",
            again=status in _BUSY or status >= 500,
            after=answer.retry_after,
            for_all=status in _FOR_ALL or status < 400,
        )

    def _notice(self, text: str) -> None:
        """Warn about a server that is asked again, at most once in `_NOTICE_SECONDS`."""
        with self._lock:
            now = time.monotonic()
            due = now - self._noticed >= _NOTICE_SECONDS
            self._noticed = now if due else self._noticed
        if due:
            logger.warning("%s", self._shown(text))

    def _shown(self, text: str) -> str:
        """Return text without the key, which servers quote when they refuse it."""
        return hide_tokens(text.replace(self._key, "<token>") if self._key else text)


def _unusable(status: int, what: Any, text: str) -> _Failed:
    return _Failed(f"status {status}, {what}: {printable(text, 300)!r}", again=True)


def _refuse_constant(name: str) -> Any:
    raise Unusable(f"it has {name}, which is no number of JSON")
