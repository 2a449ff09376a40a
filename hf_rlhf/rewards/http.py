"""Reward models and scorers behind HTTP: vLLM, text-embeddings-inference, and servers of one's own."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from hf_rlhf.data.tokens import NOTHING, ROW_OPTIONS, begin_already, chat_text, options_by_row, row_ids
from hf_rlhf.endpoints.client import Endpoint, EndpointError, Post, Unusable
from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.judges.questions import completion_text, transcript
from hf_rlhf.models.load import load_tokenizer
from hf_rlhf.rewards.failures import Failures
from hf_rlhf.rewards.values import finite_number

ROUTES = {"vllm": "/classify", "tgi": "/predict", "generic": ""}
"""The kinds of servers, and the path where the address has none."""

_VLLM_PATHS = ("classify", "pooling", "score")
_SAME = 4  # different texts whose raw score is 1, which two of them may have by chance in bf16


class HTTPReward:
    """The score that a server gives to a completion, one request for each.

    | route | path | request | answer |
    |---|---|---|---|
    | `vllm` | `/classify` | `input` | `data[0].probs` |
    | `vllm` | `/pooling` | `input` | `data[0].data`; of a score for each token, the last |
    | `vllm` | `/score` | `text_1`, the prompt, and `text_2`, the completion | `data[0].score` |
    | `tgi` | `/predict` (text-embeddings-inference) | `inputs` | `[{"label", "score"}, ...]` |
    | `generic` | any | `prompt`, `completion` by TRL's contract | a number, or one as `score` or `reward`; or null |

    Args:
        url: of the server, with or without the path.
        route: the kind of the server.
        model: by vLLM's name; needed where it serves several.
        tokenizer: folder or Hub name of the reward model. Its chat template writes prompt and completion here, as
            `hf-rlhf reward` wrote the training examples; vLLM gets the token ids themselves. Needed for prompts that
            are messages, but not by `generic` and `/score`.
        label: which of several labels is the reward: its name (`tgi`), number from 0 (`vllm`) or key (`generic`).
        raw: ask for the model's own score rather than a probability of it.
        api_key_env, timeout, retries, concurrency: see `Endpoint`.
        on_error, max_failed_share: see `Failures`.

    Raises `InputError` for anything wrong in these.
    """

    name = "http"
    required_columns = ()
    cached_columns = ROW_OPTIONS

    def __init__(
        self,
        *,
        url: str,
        route: str = "generic",
        model: str | None = None,
        tokenizer: str | None = None,
        label: str | None = None,
        raw: bool = True,
        api_key_env: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        concurrency: int = 16,
        on_error: str = "raise",
        max_failed_share: float = 0.1,
    ):
        if route not in ROUTES:
            raise InputError(f"route={route} is invalid: it must be {', '.join(ROUTES)}.")
        self.endpoint = Endpoint(
            url, api_key_env=api_key_env, timeout=timeout, retries=retries, concurrency=concurrency
        )
        if not urlsplit(self.endpoint.url).path:
            self.endpoint.url += ROUTES[route]
        self.path = urlsplit(self.endpoint.url).path.rpartition("/")[2]
        if route == "vllm" and self.path not in _VLLM_PATHS:
            raise InputError(f"url={url} is invalid: route=vllm asks /classify, /pooling or /score. End the url so.")
        self.failures = Failures(on_error, max_failed_share)
        self.route, self.model, self.label, self.raw = route, model, label, raw
        self._ones: set[str] = set()  # different texts that got 1, until one gets another score
        self._differs = False
        self._key = ["http", self.endpoint.url, route, model, tokenizer, label, raw]
        self.tokenizer = None if tokenizer is None else load_tokenizer(tokenizer, distinct_padding=False)

    @property
    def cache_key(self) -> str:
        """Text that names everything the reward depends on besides the row."""
        return json.dumps(self._key)

    def require_reachable(self) -> None:
        """Raise `EndpointError` where no server answers, before anything expensive starts."""
        self.endpoint.require_reachable()

    async def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one value for each completion. Raises `EndpointError` where answers are missing, see `Failures`."""
        try:
            return await asyncio.to_thread(self.score, prompts, completions, **columns)
        except asyncio.CancelledError:  # another reward failed
            self.endpoint.give_up()
            raise

    def score(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one value for each completion, and wait for it."""
        allowed = self.failures.allowance(len(completions))
        given = {name: columns[name] for name in ROW_OPTIONS if columns.get(name) is not None}
        rows = zip(prompts, completions, options_by_row({"prompts": prompts, **given}), strict=True)
        bodies = [self._body(*row) for row in rows]
        read = partial(_READ[self.path if self.route == "vllm" else self.route], label=self.label)

        def call(body: Mapping[str, Any], post: Post) -> float | None:
            return post("", body, read)

        found = self.endpoint.call_all(call, bodies, keep_errors=allowed)
        errors = [each for each in found if isinstance(each, EndpointError)]
        self.failures.settle(self.name, len(errors), len(found), str(errors[-1]) if errors else "")
        scores: list[float | None] = [None if isinstance(each, EndpointError) else each for each in found]
        if self.route != "generic" and not self._differs:
            self._require_different(bodies, scores)
        return scores

    def _require_different(self, bodies: Sequence[Mapping[str, Any]], scores: Sequence[float | None]) -> None:
        """Raise `RunFailed` where all texts so far have the probability of an only label by softmax, which is 1."""
        self._differs = any(score not in (None, 1.0) for score in scores)
        self._ones |= {json.dumps(body) for body, score in zip(bodies, scores, strict=True) if score is not None}
        if len(self._ones) >= _SAME and not self._differs:
            raise RunFailed(
                f"reward {self.name!r}: {self.endpoint.url} gave 1 to {len(self._ones)} different texts, as a softmax"
                " over one label does. Let the server give raw scores: take a later version of it, or start it without"
                """ the softmax (vLLM: --override-pooler-config '{"softmax": false}')"""
            )

    def _body(self, prompt: Any, completion: Any, options: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
        if self.route == "generic":
            return {"prompt": prompt, "completion": completion}
        if self.route == "tgi":
            return {"inputs": self._text(prompt, completion, options), "raw_scores": self.raw, "truncate": False}
        # vLLM before 0.12 knows `activation`, later ones `use_activation`; each ignores the other
        body: dict[str, Any] = {"use_activation": not self.raw, "activation": not self.raw}
        if self.model is not None:
            body["model"] = self.model
        if self.path == "score":
            return body | {"text_1": transcript(prompt), "text_2": completion_text(completion)}
        if self.tokenizer is not None:
            return body | {"input": row_ids(prompt + completion, self.tokenizer, continued=False, options=options)}
        return body | {"input": self._text(prompt, completion, options)}

    def _text(self, prompt: Any, completion: Any, options: Mapping[str, Any]) -> str:
        """Return prompt and completion as one text, without what the server's tokenizer puts before it."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            if isinstance(prompt, str):
                return prompt + completion
            raise InputError(
                f"reward {self.name!r}: the prompts are messages, and the server takes text. Give tokenizer, the folder"
                " or Hub name of the reward model, whose chat template writes them."
            )
        if isinstance(prompt, str):
            end = tokenizer.eos_token or ""
            return prompt + completion.removesuffix(end) + end
        text = chat_text(prompt + completion, tokenizer, continued=False, options=options)
        return text.removeprefix(tokenizer.bos_token or "") if begin_already([text], tokenizer)[0] else text


class _Label(NamedTuple):
    """One label of an answer, with its score."""

    names: tuple[str, ...]
    score: Any


def _read_classify(content: Any, label: str | None) -> float:
    row = _row(content, "probs")
    name, probabilities = row.get("label"), row["probs"]
    if not isinstance(probabilities, list):
        raise Unusable("its data[0].probs is no list")
    single = (str(name),) if len(probabilities) == 1 and name is not None else ()
    return _labelled([_Label((str(number), *single), each) for number, each in enumerate(probabilities)], label)


def _read_pooling(content: Any, label: str | None) -> float:
    values = _row(content, "data")["data"]
    if isinstance(values, list) and values and isinstance(values[-1], list):  # a list for each token
        values = values[-1]
    if not isinstance(values, list):
        raise Unusable("its data[0].data is no list of numbers")
    return _labelled([_Label((str(number),), each) for number, each in enumerate(values)], label)


def _read_score(content: Any, label: str | None) -> float:
    return _number(_row(content, "score")["score"])


def _read_predict(content: Any, label: str | None) -> float:
    if isinstance(content, list) and content and isinstance(content[0], list):
        content = content[0]
    if not isinstance(content, list) or not all(isinstance(each, dict) and "score" in each for each in content):
        raise Unusable("it is no list of labels with scores")
    return _labelled([_Label((str(each.get("label")),), each["score"]) for each in content], label)


def _read_generic(content: Any, label: str | None) -> float | None:
    if isinstance(content, dict):
        keys = ("score", "reward") if label is None else (label,)
        found = [content[key] for key in keys if key in content]
        if not found:
            raise Unusable(f"it has no {' or '.join(keys)}")
        content = found[0]
    return None if content is None else _number(content)


_READ: dict[str, Callable[..., float | None]] = {
    "classify": _read_classify,
    "pooling": _read_pooling,
    "score": _read_score,
    "tgi": _read_predict,
    "generic": _read_generic,
}


def _row(content: Any, key: str) -> Mapping[str, Any]:
    try:
        row = content["data"][0]
        row[key]
    except (KeyError, IndexError, TypeError):
        raise Unusable(f"it has no data[0].{key}") from None
    return row


def _labelled(found: Sequence[_Label], label: str | None) -> float:
    """Return the score of the only label, or of the one that was asked for."""
    if not found:
        raise Unusable("it has no labels")
    if label is None and len(found) == 1:
        return _number(found[0].score)
    names = ", ".join(each.names[-1] for each in found)
    if label is None:
        raise InputError(f"reward 'http': the server's model has {len(found)} labels ({names}). Name one by label.")
    chosen = [each for each in found if label in each.names]
    if not chosen:
        raise InputError(f"label={label} is invalid: the server's model has the labels {names}. Name one of them.")
    return _number(chosen[0].score)


def _number(value: Any) -> float:
    number = None if isinstance(value, (bool, str)) else finite_number(value)
    if number is None:
        raise Unusable("its score is no finite number")
    return number
