"""A check of an environment before a run, after Gymnasium's `check_env`."""

import math
import random
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

from hf_rlhf.environments.base import EnvFactory, Turn
from hf_rlhf.errors import InputError

ROLES = ("system", "user", "assistant", "tool")
_ANSWERS = ("yes", "0", "I do not know.", "")


def check_env(make_env: EnvFactory, rows: Sequence[Mapping[str, Any]], *, max_turns: int = 32, seed: int = 0) -> None:
    """Raise `InputError` for what breaks the contract in an episode of each row, played twice with fixed answers.

    Checked are: equal chance gives equal messages and rewards; two objects share no state; messages have a role and a
    content; rewards are finite; a turn ends or says something, and is not both terminated and truncated; the object can
    be copied to another process; `at_limit`, where there is one, ends an episode that has not ended.

    Args:
        make_env: as `PPOTrainer(environment=...)` takes it.
        rows: of the dataset, some of each kind.
        max_turns: most completions of an episode.
        seed: of the environment's chance.
    """
    for number, row in enumerate(rows):
        first, second = make_env(), make_env()
        if first is second:
            raise _wrong(make_env, "the factory returns the same object twice", "Return a new one for each episode")
        transcripts = [_play(env, row, seed + number, max_turns) for env in (first, second)]
        if transcripts[0] != transcripts[1]:
            raise _wrong(
                make_env,
                f"two episodes of row {number} with equal chance differ: {_difference(*transcripts)}",
                "Take all chance from the `rng` of reset, and keep state in the object alone",
            )
        _require_picklable(first, make_env)


def _play(env: Any, row: Mapping[str, Any], seed: int, max_turns: int) -> list[Any]:
    prompt = env.reset(dict(row), random.Random(seed))
    if not isinstance(prompt, str):
        prompt = list(prompt)
        _require_messages(prompt, env, "reset")
    elif not prompt:
        raise _wrong(env, "reset returns an empty text", "A policy needs a token to begin with")
    transcript: list[Any] = [prompt]
    for turn in range(max_turns):
        answer = env.step(_ANSWERS[(seed + turn) % len(_ANSWERS)])
        require_turn(answer, env)
        _require_messages(answer.messages, env, "step")
        transcript.append((answer.messages, answer.reward, answer.terminated, answer.truncated))
        if answer.ends:
            _require_over(env)
            break
    else:
        if hasattr(env, "at_limit"):
            end = env.at_limit()
            require_end(end, env)
            transcript.append((end.reward, end.terminated, end.truncated))
    return transcript


def require_turn(turn: Any, env: Any, where: str = "step") -> None:
    """Raise `InputError` for what is no valid `Turn`."""
    if not isinstance(turn, Turn):
        raise _wrong(env, f"{where} returns {turn!r}, which is no Turn", "Return hf_rlhf.environments.Turn(...)")
    if turn.terminated and turn.truncated:
        raise _wrong(env, "a Turn is terminated and truncated", "It can be one of them")
    if not math.isfinite(turn.reward):
        raise _wrong(env, f"a Turn has the reward {turn.reward}", "Give a finite number")
    for name, value in turn.info.items():
        if not isinstance(value, str) and not _is_number(value):
            raise _wrong(env, f"a Turn has the info {name}={value!r}", "Give numbers and texts")
    if not turn.ends and not turn.messages:
        raise _wrong(env, "a Turn neither ends the episode nor says anything", "Set terminated, or give messages")


def require_end(turn: Any, env: Any) -> None:
    """Raise `InputError` for what `at_limit` may not return."""
    require_turn(turn, env, "at_limit")
    if not turn.ends:
        raise _wrong(env, "at_limit returns a Turn that does not end the episode", "Set terminated or truncated")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _require_messages(messages: Sequence[Any], env: Any, where: str) -> None:
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise _wrong(env, f"{where} gives {message!r}, which is no message", 'Give {"role": ..., "content": ...}')
        if message.get("role") not in ROLES:
            raise _wrong(env, f"{where} gives the role {message.get('role')!r}", f"Use one of {', '.join(ROLES)}")


def _require_over(env: Any) -> None:
    """Raise `InputError` where an episode that ended can be continued, unless the environment takes it in silence."""
    try:
        answer = env.step("once more")
    except Exception:  # as it should
        return
    if isinstance(answer, Turn) and not answer.ends:
        raise _wrong(
            env, "an episode that ended goes on when step is called again", "Raise an error there, or end again"
        )


def _require_picklable(env: Any, make_env: EnvFactory) -> None:
    try:
        ForkingPickler.dumps(env)
    except Exception as error:
        raise _wrong(
            make_env, f"its object cannot be copied to another process ({error})", "Keep open files and locks out of it"
        ) from error


def _difference(one: Sequence[Any], other: Sequence[Any]) -> str:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return f"{str(a)[:100]} and {str(b)[:100]}"
    return f"{len(one) - 1} and {len(other) - 1} turns"


def _wrong(env: Any, reason: str, fix: str) -> InputError:
    name = getattr(env, "__name__", type(env).__name__)
    return InputError(f"environment={name} is invalid: {reason}. {fix}.")
