"""Several vLLM servers as one: the next completion goes to the least busy, and a lost server is skipped."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from hf_rlhf.distributed import rank
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.vllm.client import ServerLost, VLLMClient

logger = logging.getLogger(__name__)

_NOTICE_SECONDS = 8.0  # between two lines about servers that are waited for


class NoServerLeft(Exception):
    """A pool whose servers are all out of use."""


class Server:
    """State of one server, from a rank's view.

    adapter: name of the adapter that the server loaded last, where this rank loaded it.
    checked: whether its model was compared with the policy's, and nothing since says that it was started again.
    in_use: whether completions go to it.
    turn: how often it was taken into use; a request that failed in an earlier turn says nothing about this one.
    lost_because: why it is out of use, empty when it is in use.
    requests, tokens: outstanding, and how many tokens they have at most, prompts included.
    """

    def __init__(self, url: str):
        self.client = VLLMClient(url)
        self.adapter: str | None = None
        self.checked = False
        self.in_use = False
        self.turn = 0
        self.lost_because = ""
        self.requests = 0
        self.tokens = 0

    @property
    def url(self) -> str:
        """Address of the server."""
        return self.client.base_url


class ServerPool:
    """Servers with the same adapter. None is in use until `use` says so.

    Args:
        urls: their addresses.
        limit: most requests of this rank at the same time at each of them.
    """

    def __init__(self, urls: Sequence[str], limit: int):
        self.servers = [Server(url) for url in urls]
        self.limit = limit
        self.answered: set[str] = set()  # addresses of those that completed something
        self._changed = threading.Condition()

    @property
    def in_use(self) -> list[Server]:
        """The servers that completions go to."""
        return [server for server in self.servers if server.in_use]

    @property
    def lost(self) -> dict[str, str]:
        """Addresses of the servers that are out of use, with the reasons."""
        return {server.url: server.lost_because for server in self.servers if server.lost_because}

    def take(self, tokens: int) -> tuple[Server, int]:
        """Return the server with the fewest outstanding tokens, and its turn; wait while each has `limit` requests.

        Equally busy servers are taken in an order that starts elsewhere on each rank. Raises `NoServerLeft`.
        """
        with self._changed:
            while servers := self.in_use:
                if free := [server for server in servers if server.requests < self.limit]:
                    first = rank() % len(free)
                    server = min(free[first:] + free[:first], key=lambda each: each.tokens)
                    server.requests += 1
                    server.tokens += tokens
                    return server, server.turn
                self._changed.wait()
        raise NoServerLeft

    def give_back(self, server: Server, tokens: int) -> None:
        """End the request that `take` began."""
        with self._changed:
            server.requests -= 1
            server.tokens -= tokens
            self._changed.notify()

    def use(self, server: Server) -> None:
        """Send completions to the server from now on."""
        with self._changed:
            server.in_use, server.lost_because = True, ""
            server.turn += 1
            self._changed.notify_all()

    def stop_using(self, server: Server, turn: int, reason: str) -> int | None:
        """Send no more completions to the server; return how many it has not finished.

        Returns None for a server that has been taken out of use since that turn.
        """
        with self._changed:
            if not server.in_use or server.turn != turn:
                return None
            server.in_use = False
            server.lost_because = reason
            self._changed.notify_all()
            return server.requests

    def follow(self, states: Sequence[tuple[str, bool]]) -> None:
        """Take over the address of each server, and whether it is in use, from another rank."""
        for server, (url, in_use) in zip(self.servers, states, strict=True):
            if server.url != url:  # only the main rank knows the port of a server that it started
                server.client = VLLMClient(url)
            if in_use and not server.in_use:
                self.use(server)
            elif not in_use:
                self.stop_using(server, server.turn, "the main rank could not reach it")


def on_each(
    servers: Sequence[Server], call: Callable[[Server, Callable[[], bool]], object], doing: str
) -> dict[Server, ServerLost | InputError | None]:
    """Call `call(server, given_up)` for all servers at the same time; return what each raised.

    Every few seconds a line says which servers have not finished `doing`. `given_up` is true once the wait has ended
    early.
    """
    ended, start = threading.Event(), time.monotonic()
    with ThreadPoolExecutor(max(len(servers), 1), thread_name_prefix="vllm-each") as pool:
        futures = {server: pool.submit(call, server, ended.is_set) for server in servers}
        try:
            while unfinished := wait(futures.values(), timeout=_NOTICE_SECONDS).not_done:
                names = addresses([server for server, future in futures.items() if future in unfinished])
                logger.warning("Waiting for %s to %s (%.0f s)", names, doing, time.monotonic() - start)
        finally:
            ended.set()
    problems: dict[Server, ServerLost | InputError | None] = {}
    for server, future in futures.items():
        problem = future.exception()
        if problem is not None and not isinstance(problem, (ServerLost, InputError)):
            raise problem
        problems[server] = problem
    return problems


def addresses(servers: Sequence[Server]) -> str:
    """Name the servers, as in `the vLLM servers at http://a:8000 and http://b:8000`."""
    urls = [server.url for server in servers]
    return f"the vLLM server{'s' if len(urls) > 1 else ''} at {' and '.join(urls)}"
