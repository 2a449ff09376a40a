"""Whole trajectories of a run: one Parquet file an iteration, with every token and the numbers that the loss saw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rlhf.data.token_texts import texts_of_tokens
from hf_rlhf.errors import RunFailed
from hf_rlhf.records import TRAJECTORIES, write_whole
from hf_rlhf.types import Reward, Score, Trajectory

if TYPE_CHECKING:
    from hf_rlhf.ppo.experience import Experience, Rollout

COLUMNS: dict[str, str] = {
    "iteration": "PPO iteration, counted from 1, as in `metrics.jsonl`.",
    "step": "Optimizer updates made before it was sampled.",
    "row": "Place of the completion in its iteration, counted from 0.",
    "prompt": "Text of the prompt as the policy saw it, special tokens included.",
    "prompt_ids": "Its tokens.",
    "completion": "The answer, special tokens omitted; of an episode of several turns, the last one.",
    "completion_ids": "All tokens behind the prompt: those of the policy and, in an episode, those of the environment.",
    "tokens": "Text of each of them. A character made of several tokens is the text of the last one.",
    "completion_mask": "True where a token counts in the loss: nowhere in an episode that failed or has no reward.",
    "turns": "Who wrote which tokens: `role` (policy or environment), `start`, `end` (one past the last), `text`.",
    "stopped": "True if the last completion ended by itself, and not by the length limit.",
    "truncated": "True if a limit ended the episode, so that the value beyond it counts.",
    "failure": "What the environment raised, if it did.",
    "reward": "Weighted sum of the rewards, untouched; null without a reward, and then no token counts.",
    "rewards": "Each reward by its name, unweighted; null if they have no names.",
    "score": "What PPO pays: the reward after scaling, clipping and penalties.",
    "kl_coef": "Weight of the KL in this iteration.",
    "bootstrap": "Value beyond the last token of a truncated episode; null without an environment.",
    "per_token_rewards": "Score and KL penalty laid out over tokens.",
    "values": "Value of the state before each token, by the critic.",
    "advantages": "Advantage of each token, as the loss takes it (whitened, unless the run does not).",
    "returns": "The critic's target.",
    "kl": "KL to the reference, by the estimator of the run.",
    "logprobs": "Log-probability of each token under the policy that sampled it.",
    "reference_logprobs": "The same under the reference.",
    "sampler_logprobs": "The same, by the sampler's arithmetic.",
    "entropy": "Entropy of the distribution that each token was drawn from, in nats.",
}
"""The columns of a file, in words. From `per_token_rewards` on, each holds a number for each token behind the prompt,
in float32, and null where `completion_mask` is False."""

PER_TOKEN = tuple(COLUMNS)[list(COLUMNS).index("per_token_rewards") :]
POLICY, ENVIRONMENT = "policy", "environment"

_FILE = re.compile(r"iteration-(\d+)\.parquet")


def trajectory_files(run: Path) -> dict[int, Path]:
    """Return the file of each iteration that the run in a folder wrote, in their order."""
    found = {int(match[1]): file for file in (run / TRAJECTORIES).glob("*") if (match := _FILE.fullmatch(file.name))}
    return dict(sorted(found.items()))


def trajectory_rows(
    rollout: Rollout, scores: Sequence[Score | None], experience: Experience, tokenizer, limit: int
) -> list[dict[str, Any]]:
    """Return the first `limit` completions of this rank as rows of a file.

    `scores` and `experience` are those of the same completions, with advantages and returns.
    """
    rows = []
    for b, (trajectory, reward, score) in enumerate(zip(*rollout, scores, strict=True)):
        if b == limit:
            break
        rows.append(
            {
                **_tokens(trajectory, tokenizer),
                **_reward(reward, score),
                "kl_coef": experience.kl_coef,
                "bootstrap": None if experience.bootstrap is None else experience.bootstrap[b].item(),
                **_numbers(experience, b, len(trajectory.completion.ids)),
            }
        )
    return rows


def write_trajectories(run: Path, rows: Sequence[dict[str, Any]], *, iteration: int, step: int) -> Path:
    """Write the rows of an iteration, in place of those that an earlier attempt at it wrote; return the file.

    Raises `RunFailed` where the disk does not take it.
    """
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"iteration": iteration, "step": step, "row": place, **row} for place, row in enumerate(rows)]
    content = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows, schema=_schema(rows)), content)
    file = run / TRAJECTORIES / f"iteration-{iteration:06d}.parquet"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(file, content.getvalue().to_pybytes())
    except OSError as error:
        raise RunFailed(
            f"{file} cannot be written: {error}. Free the disk, or resume without log_trajectories."
        ) from error


def remove_trajectories(run: Path, *, after: int) -> None:
    """Remove the files of the iterations beyond `after`, to which a resumed run comes again."""
    for iteration, file in trajectory_files(run).items():
        if iteration > after:
            file.unlink()


def _tokens(trajectory: Trajectory, tokenizer) -> dict[str, Any]:
    ids = trajectory.completion.ids
    texts = [_encodable(text) for text in texts_of_tokens(ids, tokenizer)]
    return {
        "prompt": _encodable(tokenizer.decode(trajectory.prompt_ids, skip_special_tokens=False)),
        "prompt_ids": trajectory.prompt_ids,
        "completion": _encodable(trajectory.text),
        "completion_ids": ids,
        "tokens": texts,
        "turns": [
            {"role": role, "start": start, "end": end, "text": "".join(texts[start:end])}
            for role, start, end in _turns(trajectory)
        ],
        "stopped": trajectory.completion.stopped,
        "truncated": trajectory.truncated,
        "failure": _encodable(str(trajectory.info["failure"])) if "failure" in trajectory.info else None,
    }


def _turns(trajectory: Trajectory) -> list[tuple[str, int, int]]:
    """Return role, first token and the one past the last of each turn."""
    count, turns, done = len(trajectory.completion.ids), [], 0
    for start, end in [(0, count)] if trajectory.spans is None else trajectory.spans:
        turns += [(ENVIRONMENT, done, start)] if start > done else []
        turns.append((POLICY, start, end))
        done = end
    return turns + ([(ENVIRONMENT, done, count)] if count > done else [])


def _reward(reward: Reward, score: Score | None) -> dict[str, Any]:
    return {"reward": reward.total, "rewards": reward.parts or None, "score": None if score is None else score.total}


def _numbers(experience: Experience, b: int, count: int) -> dict[str, list[Any]]:
    """Return mask and numbers of completion `b`, which has `count` tokens; None where a token does not count."""
    mask = experience.mask[b, :count].tolist()
    columns: dict[str, Any] = {"completion_mask": mask}
    for name in PER_TOKEN:
        tensor = getattr(experience, name)
        assert tensor is not None, name
        numbers = tensor[b, :count].tolist()
        columns[name] = [number if counts else None for number, counts in zip(numbers, mask, strict=True)]
    return columns


def _encodable(text: str) -> str:
    """Escape the halves of characters, which Parquet has not."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _schema(rows: Sequence[dict[str, Any]]) -> Any:
    """Return the types of the columns, which do not depend on which numbers an iteration lacks."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row["rewards"] or ()))
    turn = pa.struct([("role", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("text", pa.string())])
    types = {
        **dict.fromkeys(("iteration", "step", "row"), pa.int64()),
        **dict.fromkeys(("prompt", "completion", "failure"), pa.string()),
        **dict.fromkeys(("prompt_ids", "completion_ids"), pa.list_(pa.int32())),
        **dict.fromkeys(("stopped", "truncated"), pa.bool_()),
        **dict.fromkeys(("reward", "score", "kl_coef"), pa.float64()),
        **dict.fromkeys(PER_TOKEN, pa.list_(pa.float32())),
        "tokens": pa.list_(pa.string()),
        "completion_mask": pa.list_(pa.bool_()),
        "turns": pa.list_(turn),
        "rewards": pa.struct([(name, pa.float64()) for name in names]) if names else pa.null(),
        "bootstrap": pa.float32(),
    }
    return pa.schema([(name, types[name]) for name in COLUMNS])
