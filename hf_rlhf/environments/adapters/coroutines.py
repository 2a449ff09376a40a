"""Coroutines of other libraries, called from code that is not async."""

import asyncio
import threading
from collections.abc import Awaitable, Sequence
from functools import lru_cache
from typing import Any


def run_together(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    """Return the results of all, which wait at the same time. Raises the first exception.

    They run in the one loop of a thread of its own: a notebook's thread has a loop already, and some libraries tie
    their connections to the loop that made them.
    """

    async def gathered() -> list[Any]:
        return list(await asyncio.gather(*awaitables))

    return asyncio.run_coroutine_threadsafe(gathered(), _loop()).result()


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="environments", daemon=True).start()
    return loop
