"""Chat completions of an OpenAI-compatible server: vLLM, TGI, llama.cpp, Ollama, OpenAI and others."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hf_rlhf.credentials import refuse_secrets
from hf_rlhf.endpoints.client import Endpoint, Post, Unusable
from hf_rlhf.errors import InputError
from hf_rlhf.types import Message

_PATH = "/chat/completions"
_THINKING = re.compile(r"\A\s*<(think|thinking|reasoning)>.*?</\1>\s*", re.DOTALL)


class ChatAnswer(NamedTuple):
    """The answer of a model behind a server."""

    text: str  # without a leading block of thoughts
    finished: bool  # before the limit of tokens


class ChatEndpoint:
    """A model behind a server of chat completions.

    Args:
        model: by the server's name.
        url: of the server, as `http://host:8000`, `https://host/v1`, or up to `/chat/completions`.
        request: more keys of each request as JSON or a dict, such as `{"reasoning_effort": "low"}`. They replace ours
            of the same name, and null omits one.
        connection: `api_key_env`, `timeout`, `retries` and `concurrency` of `Endpoint`.

    Raises `InputError` for anything wrong in these.
    """

    def __init__(self, model: str, url: str, *, request: str | Mapping[str, Any] | None = None, **connection: Any):
        if not model:
            raise InputError("model is missing. Give the name by which the server knows it.")
        self.model = model
        self.more = _as_object(request)
        self.endpoint = Endpoint(_chat_url(url), **connection)

    @property
    def url(self) -> str:
        """Address that requests go to."""
        return self.endpoint.url

    def ask(
        self,
        post: Post,
        messages: Sequence[Message],
        *,
        temperature: float,
        max_tokens: int,
        seed: int | None = None,
    ) -> ChatAnswer:
        """Return the answer to a dialogue. Raises `EndpointError`."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": None if seed is None else seed % 2**31,
            **self.more,
        }
        return post("", {key: value for key, value in body.items() if value is not None}, _read_answer)


def _read_answer(content: Any) -> ChatAnswer:
    try:
        choice = content["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise Unusable("it has no choices[0].message.content") from None
    if text is not None and not isinstance(text, str):
        raise Unusable("its choices[0].message.content is no text")
    # null: a model that thought until its tokens were used up
    return ChatAnswer(_THINKING.sub("", text or ""), choice.get("finish_reason") != "length")


def _chat_url(url: str) -> str:
    """Return the address of chat completions; what is no address stays as it is, and `Endpoint` refuses it."""
    try:
        parts = urlsplit(url)
    except (AttributeError, TypeError, ValueError):
        return url
    if not parts.netloc or parts.path.rstrip("/").endswith(_PATH):
        return url
    return url.rstrip("/") + ("" if parts.path.rstrip("/") else "/v1") + _PATH


def _as_object(request: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if request is None:
        return {}
    try:
        found = json.loads(request) if isinstance(request, str) else dict(request)
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f'request={request} is invalid: it is no JSON object. Write it as {{"top_p": 0.9}}.')
    refuse_secrets(found, "request")
    return found
