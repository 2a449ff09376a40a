"""Call several reward functions: each gets the arguments it takes, and the async ones wait at the same time."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Any

ALWAYS_PASSED = ("prompts", "completions")


def call_all(
    functions: Sequence[Callable[..., Any]],
    names: Sequence[str],
    arguments: Sequence[Mapping[str, Any]],
    receivers: Sequence[Callable[[Any], None]],
) -> None:
    """Call each function with its own arguments, and give each result to its receiver as soon as it is there.

    Async functions run together in one event loop in a thread of its own (a notebook's thread has a loop already).
    While they wait, the others run one after the other in the calling thread, where models have to stay. The first
    exception ends all of them and is raised as it is, with a note that names its reward. What an async function
    returned is received in the thread of the loop.
    """
    pending: list[Future] = []
    with ExitStack() as stack:
        loop = None
        for i in sorted(range(len(functions)), key=lambda i: not _is_async(functions[i])):
            completions = arguments[i].get("completions", ())
            with _naming(names[i], completions):
                result = functions[i](**accepted(functions[i], arguments[i]))
            if inspect.isawaitable(result):
                loop = loop or stack.enter_context(_event_loop())
                received = _received(result, names[i], completions, receivers[i])
                pending.append(asyncio.run_coroutine_threadsafe(received, loop))
            else:
                receivers[i](result)
        wait(pending, return_when=FIRST_EXCEPTION)
        for future in pending:
            if future.done():
                future.result()  # raises what the function raised


def accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments that the function takes by name. Prompts and completions are always among them.

    A function with `**kwargs`, or one whose signature cannot be read, takes all.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return arguments
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in arguments.items() if name in taken or name in ALWAYS_PASSED}


def required_arguments(function: Callable[..., Any]) -> set[str]:
    """Return the names of the arguments without which the function cannot be called by keyword."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {each.name for each in parameters if each.kind in named and each.default is each.empty}


def takes_by_name(function: Callable[..., Any], argument: str) -> bool:
    """Return whether the function's signature names the argument."""
    try:
        return argument in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _received(
    result: Awaitable[Any], name: str, completions: Sequence[Any], receiver: Callable[[Any], None]
) -> None:
    with _naming(name, completions):
        value = await result
    receiver(value)


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread of its own for the block, and cancel what has not finished when it ends."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run_until_ended():
        ended = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), ended))
        await ended.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, run_until_ended())
        loop, ended = started.result()
        try:
            yield loop
        finally:
            loop.call_soon_threadsafe(ended.set)


@contextmanager
def _naming(name: str, completions: Sequence[Any]) -> Iterator[None]:
    """Add notes to an exception that a reward raised: its name, and what it was given where it may have taken text."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by the reward {name!r}")
        if isinstance(error, (TypeError, AttributeError)) and completions and isinstance(completions[0], list):
            error.add_note(
                "The prompts are chat messages, so each completion is a list of messages, such as"
                f" {str(completions[0])[:100]}. Its text is completion[0]['content']."
            )
        raise
