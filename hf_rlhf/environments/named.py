"""Environments by name with arguments: `dialogue:column=user_turns,max_turns=3`, or `file.py:Class`.

The text reads as that of a named reward, see `hf_rlhf.rewards.named`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_rlhf.environments.base import EnvFactory
from hf_rlhf.environments.dialogue import Dialogue
from hf_rlhf.environments.gym_text import CartPole, FrozenLake, GymText
from hf_rlhf.environments.recommendation import Recommendation
from hf_rlhf.environments.segments import Segmented
from hf_rlhf.environments.tools import ToolUse
from hf_rlhf.environments.users import FunctionUser, ModelUser, ScriptedUser, User
from hf_rlhf.errors import InputError
from hf_rlhf.models.precision import current_device
from hf_rlhf.rewards.functions import did_you_mean, is_function_name, load_function
from hf_rlhf.rewards.named import loaded_rewards, read_named
from hf_rlhf.rewards.sources import resolve_rewards
from hf_rlhf.writers import EndpointWriter, ModelWriter, Writer

ENVIRONMENTS: dict[str, str] = {
    "cart_pole": f"{__name__}:cart_pole",
    "dialogue": f"{__name__}:dialogue",
    "frozen_lake": f"{__name__}:frozen_lake",
    "gym": f"{__name__}:gym",
    "recommendation": f"{__name__}:recommendation",
    "segments": f"{__name__}:segments",
    "tools": f"{__name__}:tools",
    "trl": f"{__name__}:trl",
}
"""The named environments: `module:factory` by name. A factory has arguments as a named reward's has."""

_FLAG = "environment"


def load_environment(text: str) -> EnvFactory:
    """Return what makes the environment of each episode: `NAME:ARGUMENT=VALUE,...`, `file.py:Class` or `module:Class`.

    Raises `InputError` for what is none, and for what cannot make one.
    """
    name, _, rest = text.partition(":")
    if ("=" in rest and not name.endswith(".py")) or (not rest and name.strip() in ENVIRONMENTS):
        factory, arguments = read_named(text, ENVIRONMENTS, flag=_FLAG, kind=_FLAG)
        make_env = factory(**arguments)
    elif is_function_name(text):
        make_env = _load(text)
    else:
        known = f"{did_you_mean(name, ENVIRONMENTS)}The named environments are {', '.join(sorted(ENVIRONMENTS))}"
        raise InputError(
            f"environment={text} is invalid: there is none of that name. {known}; another is file.py:Class."
        )
    _require_env(make_env, text)
    return make_env


def require_columns(make_env: EnvFactory, columns: Sequence[str], text: str) -> None:
    """Raise `InputError` for columns that an environment reads, by its attribute `required_columns`, and that lack."""
    required = getattr(make_env(), "required_columns", ())
    if missing := [name for name in required if name not in columns]:
        raise InputError(
            f"environment={text} is invalid: it reads {', '.join(missing)}, and the dataset has no such column (it has"
            f" {', '.join(columns)}). Add it."
        )


def _load(text: str) -> Any:
    return load_function(text, flag=_FLAG, classes=True)


def _require_env(make_env: EnvFactory, text: str) -> None:
    """Raise `InputError` where no object can be made, or it has not the methods of an environment."""
    try:
        env = make_env()
    except InputError:
        raise
    except Exception as error:  # an author's code
        raise InputError(
            f"environment={text} is invalid: making one raised {type(error).__name__}: {error}. It is called without"
            " arguments; name a function that gives them, such as functools.partial(Class, ...)."
        ) from error
    missing = [name for name in ("reset", "step") if not callable(getattr(env, name, None))]
    if missing:
        hint = (
            f" For a class of trl's environment_factory, write trl:environment={text}." if missing == ["step"] else ""
        )
        raise InputError(
            f"environment={text} is invalid: {type(env).__name__} has no {' and no '.join(missing)}.{hint}"
        )


def dialogue(
    column: str | None = None,
    lines: str | None = None,
    user: str | None = None,
    model: str | None = None,
    url: str | None = None,
    api_key_env: str | None = None,
    persona: str | None = None,
    goal: str | None = None,
    temperature: float = 1.0,
    max_tokens: int = 64,
    reached: str | None = None,
    max_turns: int = 4,
) -> EnvFactory:
    """Return dialogues with a user.

    Args:
        column: of the dataset, with a list of lines for each row.
        lines: a text file with the user's lines, one below the other, for every row.
        user: a function, as `file.py:name`; see `FunctionUser`.
        model: that plays the user: a folder, a Hub name, an embedded model or, with `url`, a server's name for it.
        url: of an OpenAI-compatible server.
        api_key_env: variable of the environment that holds the server's key.
        persona, goal: see `ModelUser`.
        temperature: of the model.
        max_tokens: of the model's message.
        reached: a function, as `file.py:name`; see `Dialogue`.
        max_turns: see `Dialogue`.
    """
    sources = {"column": column, "lines": lines, "user": user, "model": model}
    if len(given := [name for name, value in sources.items() if value is not None]) != 1:
        raise InputError(
            f"environment=dialogue is invalid: it has {' and '.join(given) or 'no user'}. Give one of"
            f" {', '.join(sources)}."
        )
    for name, value in (("url", url), ("api_key_env", api_key_env), ("persona", persona), ("goal", goal)):
        if value is not None and (model is None or (name == "api_key_env" and url is None)):
            needs = "url" if name == "api_key_env" and model is not None else "model"
            raise InputError(f"{name}={value} is invalid without {needs}. Omit it, or give {needs}.")
    played: User
    if model is not None:
        writer = _writer(model, url, api_key_env, temperature)
        played = ModelUser(writer, persona=persona, goal=goal, max_tokens=max_tokens)
    elif user is not None:
        played = FunctionUser(_load(user))
    else:
        played = ScriptedUser(None if lines is None else _lines_of(lines), column=column)
    return partial(Dialogue, played, reached=None if reached is None else _load(reached), max_turns=max_turns)


def _writer(model: str, url: str | None, api_key_env: str | None, temperature: float) -> Writer:
    """Load the model, or ask its server whether it is there."""
    if url is None:
        return ModelWriter.load(model, temperature=temperature)
    writer = EndpointWriter(model, url, temperature=temperature, api_key_env=api_key_env)
    writer.chat.endpoint.require_reachable()
    return writer


def _lines_of(file: str) -> list[str]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"lines={file} is invalid: it cannot be read ({error}). Give a text file in UTF-8.") from error
    return [line for line in text.splitlines() if line.strip()]


def tools(functions: str, max_calls: int = 8, max_result_length: int = 2000, error_penalty: float = 0.0) -> EnvFactory:
    """Return episodes with tools.

    Args:
        functions: as `file.py:name`, several with spaces between them.
        max_calls, max_result_length, error_penalty: see `ToolUse`.
    """
    loaded: list[Callable[..., Any]] = [_load(name) for name in functions.split()]
    if not loaded:
        raise InputError("functions is invalid: it names none. Write tools:functions=file.py:name.")
    limits: dict[str, Any] = {"max_calls": max_calls, "max_result_length": max_result_length}
    return partial(ToolUse, loaded, error_penalty=error_penalty, **limits)


def gym(env: str, render: str, parse: str, penalty: float = 0.1) -> EnvFactory:
    """Return episodes of a Gymnasium environment.

    Args:
        env: its id, or a function that makes it, as `file.py:name`.
        render, parse: functions, as `file.py:name`; see `GymText`.
        penalty: see `GymText`.
    """
    made = _load(env) if ".py:" in env else env
    return partial(GymText, made, _load(render), _load(parse), penalty=penalty)


def frozen_lake(is_slippery: bool = False, size: int = 4, progress: bool = False, penalty: float = 0.1) -> EnvFactory:
    """Return episodes of `FrozenLake`."""
    return partial(FrozenLake, is_slippery=is_slippery, size=size, progress=progress, penalty=penalty)


def cart_pole(penalty: float = 0.1) -> EnvFactory:
    """Return episodes of `CartPole`."""
    return partial(CartPole, penalty=penalty)


def recommendation(
    items: int = 4, history: int = 8, kinds: str | None = None, liked: float = 0.9, other: float = 0.1
) -> EnvFactory:
    """Return users who click on one of several items.

    Args:
        kinds: of items, with spaces between them.
        items, history, liked, other: see `Recommendation`.
    """
    named = {} if kinds is None else {"kinds": tuple(kinds.split())}
    return partial(Recommendation, items=items, history=history, liked=liked, other=other, **named)


def segments(environment: str, reward: str, turns: int = 4, render: str | None = None) -> EnvFactory:
    """Return episodes of a game that a reward of segments pays, and not the game.

    Args:
        environment: of the game, as the flag has it; in quotes where it has arguments.
        reward: a reward model that was trained on preferences between segments, or another reward.
        turns: of a segment, as in the preferences.
        render: makes text of a segment, as `file.py:name`; see `Segmented`.
    """
    source = loaded_rewards(reward, None)
    loaded = resolve_rewards(source, None, policy=None, device=current_device(), weights=None).functions[0]
    rendered = {} if render is None else {"render": _load(render)}
    return partial(Segmented, load_environment(environment), turns=turns, reward=loaded, **rendered)


def trl(environment: str, max_calls: int = 8, error_penalty: float = 0.0) -> EnvFactory:
    """Return episodes of a class that was written for trl's `environment_factory`.

    Args:
        environment: the class, as `file.py:name`.
        max_calls, error_penalty: see `ToolUse`.
    """
    from hf_rlhf.environments.adapters.trl import from_trl_environment

    return from_trl_environment(_load(environment), max_calls=max_calls, error_penalty=error_penalty)
