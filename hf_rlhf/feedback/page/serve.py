"""A server of the page in a thread of its own, on a port that is bound before anything is promised."""

import errno
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any

from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.feedback.page.desk import Desk
from hf_rlhf.feedback.page.security import Rules, hosts_of
from hf_rlhf.feedback.page.server import make_app, require_extra

PORT = 8642
_START_SECONDS = 20.0


class Server:
    """The page, served while the block runs.

    Args:
        desk: hands out tasks.
        host: address to listen on.
        port: 0 takes a free one.

    Raises `InputError` for an address that cannot be listened on, or when the extra `label` is not installed.
    """

    def __init__(self, desk: Desk, host: str = "127.0.0.1", port: int = PORT):
        require_extra()
        self.desk, self.host = desk, host
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.rules = Rules(secrets.token_urlsafe(24), self.port, hosts_of(host, self.port))

    @property
    def address(self) -> str:
        """The address to open, with the token of this launch."""
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        shown = f"[{shown}]" if ":" in shown else shown
        return f"http://{shown}:{self.port}/?token={self.rules.token}"

    def __enter__(self) -> "Server":
        self._server, self._thread = run_in_thread(make_app(self.desk, self.rules), self._socket)
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()

    def wait(self, seconds: float) -> bool:
        """Wait, and return whether the server still runs."""
        self._thread.join(seconds)
        return self._thread.is_alive()


def run_in_thread(app: Callable[..., Any], listening: socket.socket) -> tuple[Any, threading.Thread]:
    """Start uvicorn on a socket in a thread; return the server, once it answers, and the thread."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        timeout_keep_alive=75,
        ws="none",
        h11_max_incomplete_event_size=32768,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    waited = 0.0
    while not server.started:
        thread.join(0.02)
        waited += 0.02
        if not thread.is_alive() or waited > _START_SECONDS:
            raise RunFailed("the server of the page did not start. The lines above say why.")
    return server, thread


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises `InputError` when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(
            f"host={host} is invalid: it is no address of this machine ({error.strerror or error}). Give 127.0.0.1 or"
            " an address that others reach."
        ) from error
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port={port} is invalid: another program listens on it, perhaps an hf-rlhf label that still runs. End"
                " that one, or give --port 0 for a free port."
            ) from error
        raise InputError(
            f"host={host} port={port} is invalid: {error.strerror or error}. Give another host or port."
        ) from error
    return listening
