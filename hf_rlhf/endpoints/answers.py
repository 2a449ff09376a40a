"""One request to an HTTP server, and its whole answer."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, NamedTuple

_LARGEST_ANSWER = 2**24  # bytes


class Answer(NamedTuple):
    """Response of a server to one request."""

    status: int
    text: str
    headers: Mapping[str, str] = MappingProxyType({})

    @property
    def json(self) -> Any:
        """The answer as JSON; None when it is none."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None

    @property
    def message(self) -> str:
        """Message of the server about an error."""
        content = self.json
        error = content.get("error") if isinstance(content, dict) else None
        message = error.get("message") if isinstance(error, dict) else error if isinstance(error, str) else None
        return str(message or self.text.strip()[:500] or "nothing")

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the server wants to be asked again, which it gives as seconds or as a date."""
        value = self.headers.get("Retry-After")
        if value is None:
            return None
        try:
            return float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None


def send(request: urllib.request.Request, timeout: float) -> Answer:
    """Send a request and return the whole answer, whatever its status; no redirect is followed.

    Raises `TimeoutError` after `timeout` seconds, also where the answer comes byte by byte; other `OSError`s,
    `HTTPException` and `ValueError` where there is none.
    """
    try:
        response: Any = _OPENER.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        response = error
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else error from error
    with response:
        content = _read_within(response, time.monotonic() + timeout)
        return Answer(response.status, content.decode(errors="replace"), response.headers)


def _read_within(response: Any, end: float) -> bytes:
    """Read the whole answer. Raises TimeoutError when it takes too long, OSError when it is too large."""
    parts, size = [], 0
    while part := response.read1(2**16):
        parts.append(part)
        size += len(part)
        if size > _LARGEST_ANSWER:
            raise OSError(f"the answer has more than {_LARGEST_ANSWER:,} bytes")
        if time.monotonic() > end:
            raise TimeoutError
    if response.length:  # which `read` would raise as IncompleteRead
        raise OSError(f"the connection was closed {response.length} bytes before the end of the answer")
    return b"".join(parts)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A handler that follows no redirect: it would send a POST request, or the key, elsewhere as something else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """Like `HTTPRedirectHandler.redirect_request`, but the redirect itself is the answer."""
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
