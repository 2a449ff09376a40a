"""Routes of the page, as a Starlette application: one static page, and JSON about tasks and answers."""

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.feedback.forms import InvalidAnswer
from hf_rlhf.feedback.page.desk import Desk, Refused
from hf_rlhf.feedback.page.security import Guard, Rules, cookies_of, token_in_address

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_WRONG_PASSWORDS, _PAUSE = 10, 60.0
"""Wrong passwords in so many seconds, after which no more are tried."""


def require_extra() -> None:
    """Raise `InputError` when the packages of the extra `label` are missing."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the page needs a package that is missing ({error.name}). Install the extra: pip install"
            " 'hf-rlhf[label]', or pip install starlette uvicorn."
        ) from error


def make_app(desk: Desk, rules: Rules, password: str | None = None) -> Guard:
    """Return the page as an ASGI application.

    Args:
        desk: hands out tasks.
        rules: that every request has to meet.
        password: asked beside the name, for a page whose address holds no token.
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    routes = _Routes(desk, rules, password)
    table = [
        Route("/", routes.page),
        Route("/static/{name:path}", routes.static),
        Route("/api/session", routes.session, methods=["GET"]),
        Route("/api/session", routes.sign_in, methods=["POST"]),
        Route("/api/tasks", routes.tasks, methods=["POST"]),
        Route("/api/events", routes.events, methods=["POST"]),
        Route("/api/undo", routes.undo, methods=["POST"]),
        Route("/api/agreement", routes.agreement, methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {404: _not_found, 405: _not_found, 500: _broken, RunFailed: _not_saved}
    app = Starlette(routes=table, exception_handlers=handlers)
    return Guard(app, rules, public=("/", "/api/session") if password is not None else ())


class _Routes:
    """The routes. Each runs in a thread of its own, since the store waits for the disk."""

    def __init__(self, desk: Desk, rules: Rules, password: str | None):
        self.desk, self.rules, self.password = desk, rules, password
        self._wrong: list[float] = []
        self._lock = threading.Lock()

    def page(self, request: "Request") -> "Response":
        response = _file("index.html")
        if self.rules.knows(token_in_address(request.scope)):
            response.headers.append("set-cookie", self.rules.cookie(self.rules.session_cookie, self.rules.token))
        return response

    def static(self, request: "Request") -> "Response":
        return _file(request.path_params["name"])

    def session(self, request: "Request") -> "Response":
        cookies = cookies_of(request.scope)
        known = self.rules.knows(cookies.get(self.rules.session_cookie, ""))
        name = self._annotator(request) if known else None
        return _json(
            {
                "annotator": name,
                "fixed": self.desk.annotator is not None,
                "password": self.password is not None and not known,
                "guidelines": (self.desk.store.setting("guidelines") or "") if known else "",
            }
        )

    async def sign_in(self, request: "Request") -> "Response":
        return await _answer(request, self._sign_in)

    def _sign_in(self, request: "Request", given: Mapping[str, Any]) -> "Response":
        known = self.rules.knows(cookies_of(request.scope).get(self.rules.session_cookie, ""))
        if not known and not self._lets_in(given.get("password")):
            return _error(403, "This is not the password. Ask whoever runs this page.")
        name = self.desk.annotator or self.desk.name_of(given.get("name"))
        response = _json({"annotator": name})
        if not known:
            response.headers.append("set-cookie", self.rules.cookie(self.rules.session_cookie, self.rules.token))
        response.headers.append("set-cookie", self.rules.cookie(self.rules.name_cookie, name, lasts=True))
        return response

    async def tasks(self, request: "Request") -> "Response":
        return await _answer(request, self._tasks)

    def _tasks(self, request: "Request", given: Mapping[str, Any]) -> "Response":
        return _json(self.desk.tasks(self._required(request), _holding(given)))

    async def events(self, request: "Request") -> "Response":
        return await _answer(request, self._events)

    def _events(self, request: "Request", given: Mapping[str, Any]) -> "Response":
        annotator = self._required(request, given)
        event = self.desk.record(annotator, given)
        return _json({"saved": event.number, **self.desk.tasks(annotator, _holding(given))})

    async def undo(self, request: "Request") -> "Response":
        return await _answer(request, self._undo)

    def _undo(self, request: "Request", given: Mapping[str, Any]) -> "Response":
        annotator = self._required(request, given)
        return _json(self.desk.undo(annotator, given))

    def agreement(self, request: "Request") -> "Response":
        from hf_rlhf.feedback.agreement import report_of

        return _json({"report": report_of(self.desk.store)})

    def _annotator(self, request: "Request") -> str | None:
        if self.desk.annotator is not None:
            return self.desk.annotator
        try:
            return self.desk.name_of(cookies_of(request.scope).get(self.rules.name_cookie))
        except Refused:
            return None

    def _required(self, request: "Request", given: Mapping[str, Any] | None = None) -> str:
        """Return who asks. Raises `Refused` when they gave no name, or when the answer is of somebody else.

        Two tabs share their cookies, so one may answer under the name that the other has changed.
        """
        name = self._annotator(request)
        if name is None:
            raise Refused("Give your name first: load the page again.")
        if given is not None and given.get("annotator", name) != name:
            raise Refused("Another name was given in another tab. Load the page again.")
        return name

    def _lets_in(self, password: Any) -> bool:
        import hmac

        if self.password is None or not isinstance(password, str):
            return False
        with self._lock:
            now = time.monotonic()
            self._wrong = [each for each in self._wrong if now - each < _PAUSE]
            if len(self._wrong) >= _WRONG_PASSWORDS:
                raise Refused("Too many wrong passwords were tried. Wait for a minute.")
            right = hmac.compare_digest(password.encode("utf-8", "replace"), self.password.encode())
            if not right:
                self._wrong.append(now)
            return right


async def _answer(request: "Request", respond: "Callable[[Request, Mapping[str, Any]], Response]") -> "Response":
    """Read the body of a request, and answer it in a thread; what is wrong with it is an error in words."""
    from starlette.concurrency import run_in_threadpool

    try:
        given = json.loads(await request.body())
        if not isinstance(given, dict):
            raise Refused("The body of a request is a JSON object.")
        json.dumps(given, ensure_ascii=False).encode("utf-8")
        return await run_in_threadpool(respond, request, given)
    except UnicodeError:
        return _error(400, "The text holds half of a character. Type it again.")
    except (InvalidAnswer, Refused) as error:
        return _error(400, str(error))
    except KeyError:
        return _error(404, "There is no such task. Load the page again.")
    except json.JSONDecodeError:
        return _error(400, "The body of a request is JSON.")
    except ValueError as error:
        return _error(409, str(error))


def _holding(given: Mapping[str, Any]) -> list[str]:
    holding = given.get("holding", [])
    if not isinstance(holding, list) or not all(isinstance(each, str) for each in holding):
        raise Refused("holding is a list of tasks.")
    return holding[:8]


def _file(name: str) -> "Response":
    from starlette.responses import Response

    known = {str(file.relative_to(STATIC).as_posix()): file for file in STATIC.rglob("*") if file.suffix in _TYPES}
    if name not in known:
        return _error(404, "There is no such file.")
    return Response(known[name].read_bytes(), media_type=_TYPES[known[name].suffix])


def _json(content: Any, status: int = 200) -> "Response":
    """Return JSON in ASCII, which can hold halves of surrogate pairs, too."""
    from starlette.responses import Response

    return Response(json.dumps(content, allow_nan=False).encode(), status, media_type="application/json")


def _error(status: int, message: str) -> "Response":
    return _json({"error": message}, status)


async def _not_found(request: "Request", error: Exception) -> "Response":
    return _error(
        getattr(error, "status_code", 404), "There is nothing here. Open the address that the terminal shows."
    )


async def _not_saved(request: "Request", error: Exception) -> "Response":
    """Answer where the store cannot be written; the page keeps the answer, and sends it again."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    return _error(507, "The server cannot save answers: its disk is full, or the file is locked. Tell whoever runs it.")


async def _broken(request: "Request", error: Exception) -> "Response":
    return _error(500, "The server failed. The terminal says why; answers that were saved stay saved.")
