"""A judge as a reward: a rating by a rubric, or the win rate against a reference reply."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.judges.base import Judge
from hf_rlhf.judges.comparison import agreement
from hf_rlhf.models.load import EMBEDDED_MODEL
from hf_rlhf.models.precision import NATIVE
from hf_rlhf.rewards.failures import Failures
from hf_rlhf.rewards.texts import column_of

_OF_A_SERVER = {"api_key_env": None, "temperature": 0.0, "max_tokens": 16, "request": None, "concurrency": 16, "timeout": 60.0, "retries": 4}  # fmt: skip


class JudgeReward:
    """The rating of a completion from 1 to 5, or the probability that it is better than a reference.

    With `column`, each completion is compared with the reference that the column holds, in both orders. The reward is
    the mean over the orders: 1 where the completion won twice, 0.5 for a tie, 0 where it lost twice. A row without a
    reference (None) is unscored.

    A run logs the share of unreadable answers, and of comparisons, the share that survives swapping.

    Args:
        judge: that is asked.
        column: holds the reference replies, as text or messages; None for ratings.
        failures: what to do with completions that have no answer.
    """

    name = "judge"

    def __init__(self, judge: Judge, column: str | None = None, failures: Failures | None = None):
        self.judge, self.column = judge, column
        self.failures = failures or Failures()
        self.required_columns = () if column is None else (column,)

    @property
    def cache_key(self) -> str | None:
        """Text that names everything the reward depends on besides the row; None if it is random."""
        key = self.judge.cache_key
        return None if key is None else json.dumps(["judge", self.column, key])

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one value for each completion. Raises `RunFailed` where answers are missing, see `Failures`."""
        log: Callable[[str, float], None] = columns.get("log_metric", lambda *_: None)
        rows = list(range(len(completions)))
        references: Sequence[Any] = []
        if self.column is not None:
            references = column_of(columns, self.column, self.name)
            rows = [row for row in rows if references[row] is not None]
        chosen = [prompts[row] for row in rows], [completions[row] for row in rows]
        unreadable = self.judge.counts["unreadable"]
        self.judge.keep_errors = self.failures.allowance(len(rows)) * (1 if self.column is None else 2)
        answers: list[float | None]
        if self.column is None:
            answers = self.judge.rate(*chosen)
        else:
            found = self.judge.compare(*chosen, [references[row] for row in rows])
            answers = [comparison.probability for comparison in found]
            if (share := agreement(found).survived_share) is not None:
                log(f"{self.name}/survived_swap", share)
        missing = answers.count(None)
        if answers:
            log(f"{self.name}/unanswered", missing / len(answers))
        unreadable = self.judge.counts["unreadable"] - unreadable
        self.failures.settle(self.name, missing, len(rows), self._why(unreadable))
        by_row = dict(zip(rows, answers, strict=True))
        return [by_row.get(row) for row in range(len(completions))]

    def _why(self, unreadable: int) -> str:
        return (
            f"answers of {self.judge.name} that could not be read, such as {self.judge.example[:200]!r}. Take a model"
            " that follows the instruction, or raise max_tokens for one that thinks first"
            if unreadable
            else f"requests to {self.judge.name} that failed"
        )


class ModelJudgeReward(JudgeReward):
    """A reward by a judge that is loaded here, and computes where the policy does."""

    def to(self, device: Any) -> None:
        """Move the judge's model to a device."""
        self.judge.model.to(device)  # pyright: ignore[reportAttributeAccessIssue]


class EndpointJudgeReward(JudgeReward):
    """A reward by a judge behind a server, which is waited for while other rewards are computed."""

    def require_reachable(self) -> None:
        """Raise `EndpointError` where no server answers, before anything expensive starts."""
        self.judge.chat.endpoint.require_reachable()  # pyright: ignore[reportAttributeAccessIssue]

    async def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Like `JudgeReward.__call__`, in a thread."""
        try:
            return await asyncio.to_thread(super().__call__, prompts, completions, **columns)
        except asyncio.CancelledError:  # another reward failed
            self.judge.chat.endpoint.give_up()  # pyright: ignore[reportAttributeAccessIssue]
            raise


def judge_reward(
    *,
    model: str = EMBEDDED_MODEL,
    url: str | None = None,
    rubric: str | None = None,
    question: str | None = None,
    column: str | None = None,
    api_key_env: str | None = None,
    temperature: float = 0.0,
    max_tokens: int = 16,
    request: str | None = None,
    concurrency: int = 16,
    timeout: float = 60.0,
    retries: int = 4,
    dtype: str = NATIVE,
    batch_size: int = 16,
    on_error: str = "raise",
    max_failed_share: float = 0.1,
) -> JudgeReward:
    """Return the reward `judge`: of a server's model where `url` is given, else of one that is loaded here.

    Args:
        model: by the server's name; or a folder, adapter, Hub name or the embedded model.
        url: of an OpenAI-compatible server.
        rubric: what a rating asks; text, or a .txt or .md file.
        question: what a comparison asks, likewise.
        column: of reference replies; then completions are compared with them, and not rated.
        api_key_env, temperature, max_tokens, request, concurrency, timeout, retries: see `EndpointJudge`.
        dtype, batch_size: see `ModelJudge`.
        on_error, max_failed_share: see `Failures`.

    Raises `InputError` for anything wrong in these.
    """
    failures = Failures(on_error, max_failed_share)
    of_a_server = {
        "api_key_env": api_key_env,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "request": request,
        "concurrency": concurrency,
        "timeout": timeout,
        "retries": retries,
    }
    if url is not None:
        from hf_rlhf.judges.endpoint import EndpointJudge

        judge: Judge = EndpointJudge(model, url, rubric=rubric, question=question, **of_a_server)
        return EndpointJudgeReward(judge, column, failures)
    if wrong := [name for name, value in of_a_server.items() if value != _OF_A_SERVER[name]]:
        raise InputError(f"{wrong[0]} is for a judge behind a server. Give its url, or omit {wrong[0]}.")
    from hf_rlhf.judges.local import ModelJudge

    settings = {"rubric": rubric, "question": question, "batch_size": batch_size}
    return ModelJudgeReward(ModelJudge.load(model, dtype=dtype, **settings), column, failures)
