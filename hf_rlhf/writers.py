"""Models that write replies, critiques and revisions: loaded here, or behind a server."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from hf_rlhf.data.tokens import require_chat_template, tokenize_prompts
from hf_rlhf.endpoints.client import EndpointError, Post
from hf_rlhf.errors import InputError
from hf_rlhf.judges.chat import ChatEndpoint
from hf_rlhf.models.adapted import load_policy
from hf_rlhf.models.adapter_files import adapter_folder
from hf_rlhf.models.load import load_tokenizer, public_name
from hf_rlhf.models.positions import positions
from hf_rlhf.models.precision import NATIVE, current_device
from hf_rlhf.rollout.collect import trajectory_of
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.stops import stop_at_end_of_turn
from hf_rlhf.types import Message, Model


class Written(NamedTuple):
    """Text that a model wrote, and whether it came to an end before the length limit.

    `again` says that the model did not write it, and that a run that resumes asks for it: a server was down.
    """

    text: str
    finished: bool
    again: bool = False


NOTHING = Written("", finished=False, again=True)
"""Stand-in for a text that nothing could be asked for."""


class Writer(Protocol):
    """A model that continues dialogues.

    Attributes:
        name: under which rows name it.
        keep_errors: so many dialogues of a call may get no text, where a server fails. One more ends the call.
        failed: dialogues that got none so far.
    """

    name: str
    keep_errors: int
    failed: int

    def write(self, dialogues: Sequence[list[Message]], seeds: Sequence[int], max_tokens: int) -> list[Written]:
        """Return the next turn of each dialogue. Turn b depends on `dialogues[b]` and `seeds[b]` alone."""
        ...


class ModelWriter:
    """A causal language model with a chat template, sampled by an engine of `hf_rlhf.rollout`.

    Args:
        model: with or without a PEFT wrapper.
        tokenizer: the model's.
        name: under which rows name it.
        temperature: of all samples; 0 is greedy.
        batch_size: dialogues sampled together.

    Raises `InputError` when the tokenizer has no chat template.
    """

    def __init__(self, model: Model, tokenizer, *, name: str, temperature: float = 1.0, batch_size: int = 16):
        require_chat_template(tokenizer, source=f"model_name_or_path={name}")
        self.keep_errors, self.failed = 0, 0
        self.model, self.tokenizer, self.name, self.temperature = model, tokenizer, name, temperature
        self._engine = TransformersEngine(model, tokenizer, batch_size)
        self.max_length = positions(model)

    @classmethod
    def load(cls, name_or_path: str, *, dtype: str = NATIVE, **settings) -> "ModelWriter":
        """Load a model or adapter by folder, Hub name or as the embedded one; `settings` are those of the class."""
        tokenizer = load_tokenizer(adapter_folder(name_or_path))
        require_chat_template(tokenizer, source=f"model_name_or_path={name_or_path}")
        model = load_policy(name_or_path, adds_adapter=True, dtype=dtype).to(current_device())
        return cls(model, tokenizer, name=public_name(name_or_path), **settings)

    def write(self, dialogues: Sequence[list[Message]], seeds: Sequence[int], max_tokens: int) -> list[Written]:
        """Like `Writer.write`. Raises `InputError` for a dialogue that the chat template or the positions refuse."""
        sampling = Sampling(max_completion_length=max_tokens, temperature=self.temperature)
        ids = tokenize_prompts(dialogues, self.tokenizer, source=self.name)
        longest = max(map(len, ids), default=0)
        if self.max_length is not None and longest + max_tokens > self.max_length:
            raise InputError(
                f"the model {self.name} takes {self.max_length} tokens, and a dialogue with the {max_tokens} to write"
                f" has {longest + max_tokens}. Give shorter prompts, or let it write fewer tokens"
                " (max_completion_length and max_critique_length, or max_tokens of a simulated user)."
            )
        rows = [{"prompt": dialogue, "prompt_ids": each} for dialogue, each in zip(dialogues, ids, strict=True)]
        if rows:
            stop_at_end_of_turn(self.model, self.tokenizer, rows[0], sampling)
        found = self._engine.generate(ids, sampling, seeds)
        written = [trajectory_of(row, each, self.tokenizer) for row, each in zip(rows, found, strict=True)]
        return [Written(each.text.strip(), each.completion.stopped) for each in written]


class EndpointWriter:
    """A model behind an OpenAI-compatible server.

    Args:
        model: by the server's name.
        url: of the server, see `ChatEndpoint`.
        temperature: of all samples.
        request: see `ChatEndpoint`.
        connection: see `ChatEndpoint`.
    """

    def __init__(
        self,
        model: str,
        url: str,
        *,
        temperature: float = 1.0,
        request: str | Mapping[str, Any] | None = None,
        **connection: Any,
    ):
        self.chat = ChatEndpoint(model, url, request=request, **connection)
        self.name, self.temperature = model, temperature
        self.keep_errors, self.failed = 0, 0

    def write(self, dialogues: Sequence[list[Message]], seeds: Sequence[int], max_tokens: int) -> list[Written]:
        """Like `Writer.write`, as far as the server honors seeds. Raises `EndpointError`."""

        def call(asked: tuple[list[Message], int], post: Post) -> Written:
            messages, seed = asked
            sampling = {"temperature": self.temperature, "max_tokens": max_tokens, "seed": seed}
            answer = self.chat.ask(post, messages, **sampling)
            return Written(answer.text.strip(), answer.finished)

        asked = list(zip(dialogues, seeds, strict=True))
        found = self.chat.endpoint.call_all(call, asked, keep_errors=self.keep_errors)
        self.failed += sum(isinstance(each, EndpointError) for each in found)
        return [
            Written("", finished=False, again=each.again) if isinstance(each, EndpointError) else each for each in found
        ]
