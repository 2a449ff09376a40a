"""One call of a reward function: on all completions, or on those that a cache does not hold."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from hf_rlhf.distributed import rank
from hf_rlhf.errors import InputError
from hf_rlhf.models.fingerprints import identity
from hf_rlhf.rewards.cache import Kept, RewardCache, content_key
from hf_rlhf.rewards.calls import accepted, takes_by_name
from hf_rlhf.rewards.values import Unkept, Value, checked_values
from hf_rlhf.types import Trajectory

logger = logging.getLogger(__name__)


class PendingCall:
    """A call of the reward `name` on `B` trajectories.

    Attributes:
        rows: those to call it on; all of them until `look_up` finds some in a cache.
        arguments: of these rows.
        values: of all `B`, once `receive` got the others.
        hits: 1.0 for a row that the cache held, else 0.0; empty without a cache.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], arguments: dict[str, Any], trajectories: Sequence[Trajectory]
    ):
        self.name = name
        self.function = function
        self.arguments: dict[str, Any] = arguments
        self.trajectories = trajectories
        self.rows = list(range(len(trajectories)))
        self.values: list[Value] = [None] * len(trajectories)
        self.hits: list[float] = []
        self._cache: RewardCache | None = None
        self._keys: list[bytes | None] = []
        self._extras: dict[str, list[Any]] = {}  # of all `B`, None where nothing was logged
        self._log_extra: Callable[[str, Sequence[Any]], None] = arguments["log_extra"]

    def look_up(self, cache: RewardCache, identity: str, columns: Sequence[str]) -> None:
        """Take the values that `cache` holds under this identity, and leave the other rows to be called."""
        self._cache = cache
        self._keys = self._content_keys(identity, columns)
        found = cache.find([key for key in self._keys if key is not None])
        for row, key in enumerate(self._keys):
            if key in found:
                self.values[row] = found[key].value
                self._add_extras(row, found[key].extra)
        self.rows = [row for row, key in enumerate(self._keys) if key not in found]
        self.hits = [float(key in found) for key in self._keys]
        lists = {name for name, value in self.arguments.items() if isinstance(value, list)}
        self.arguments = {
            name: [value[row] for row in self.rows] if name in lists else value
            for name, value in self.arguments.items()
        } | {"log_extra": self._keep_extra}  # fmt: skip

    def receive(self, result: Any) -> None:
        """Check what the function returned for `rows`, and keep it in the cache.

        Raises `InputError` for values that break the contract.
        """
        values = checked_values(self.name, result, [self.trajectories[row] for row in self.rows])
        for row, value in zip(self.rows, values, strict=True):
            self.values[row] = value
        if self._cache is None:
            return
        keeps_none = getattr(self.function, "deterministic", False)
        kept: dict[bytes, Kept] = {}
        for row, given, value in zip(self.rows, result, values, strict=True):
            key = self._keys[row]
            # A list with a number for each token is not kept: it belongs to one tokenizer's tokens, the key to the text
            if (
                key is None
                or isinstance(given, Unkept)
                or isinstance(value, list)
                or (value is None and not keeps_none)
            ):
                continue
            kept[key] = Kept(value, {column: values[row] for column, values in self._extras.items()})
        self._cache.store(kept)

    def log_extras(self) -> None:
        """Log what the function logged with `log_extra` now, and what it had logged of the rows from the cache."""
        for column, values in self._extras.items():
            self._log_extra(column, values)

    def _content_keys(self, identity: str, columns: Sequence[str]) -> list[bytes | None]:
        read = getattr(self.function, "cached_columns", getattr(self.function, "required_columns", None))
        if read is None:
            taken = accepted(self.function, self.arguments)
            read = [*columns, *(["completion_ids"] if takes_by_name(self.function, "completion_ids") else [])]
            read = [name for name in read if name in taken]
        prompts, completions = self.arguments["prompts"], self.arguments["completions"]
        given = {name: self.arguments[name] for name in read if name in self.arguments}
        return [
            content_key(identity, prompts[row], completions[row], {name: given[name][row] for name in given})
            for row in self.rows
        ]

    def _keep_extra(self, column: str, values: Sequence[Any]) -> None:
        """Keep what the function logs about `rows`, as its `log_extra`."""
        if len(values) != len(self.rows):
            raise InputError(
                f"reward {self.name!r} logged {len(values)} values as {column!r} for {len(self.rows)} completions;"
                " log_extra takes one for each"
            )
        for row, value in zip(self.rows, values, strict=True):
            self._add_extras(row, {column: value.tolist() if hasattr(value, "tolist") else value})

    def _add_extras(self, row: int, extra: Mapping[str, Any]) -> None:
        for column, value in extra.items():
            self._extras.setdefault(column, [None] * len(self.values))[row] = value


def known_identities(functions: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    """Return the identity of each reward that can be cached, by its name; say which cannot.

    Raises `InputError` for a `cache_key` that is no text, and for one that two functions of the same name share.
    """
    found: dict[str, str] = {}
    without: list[str] = []
    for name, function in functions.items():
        key = getattr(function, "cache_key", None)
        if key is not None and not (isinstance(key, str) and key):
            raise InputError(f"reward {name!r} has the cache_key {key!r}. Make it a text that is not empty")
        if key is not None and takes_by_name(function, "trainer_state"):
            raise InputError(
                f"reward {name!r} has a cache_key and takes trainer_state, on which its values may depend. Keep one"
            )
        named = hasattr(function, "shaping")
        if key is None:
            if hasattr(function, "cache_key") or not named:  # such a named reward is computed faster than looked up
                without.append(name)
            continue
        own = named or hasattr(function, "cached_columns")  # a reward model
        found[name] = key if own else identity(*_place(function), key)
        twin = next((each for each in found if each != name and found[each] == found[name]), None)
        if twin is not None and not own and functions[twin] is not function:
            raise InputError(
                f"reward {name!r} has the cache_key {key!r} of {twin!r}, so each would get the kept rewards of the"
                " other. Put what tells them apart into the cache_key"
            )
    if without and rank() == 0:
        logger.warning(
            "reward_cache: %s %s not kept there: no cache_key says when its values change (docs/how-to/rewards.md)",
            ", ".join(without),
            "is" if len(without) == 1 else "are",
        )
    return found


def _place(function: Any) -> tuple[str, str]:
    if isinstance(function, partial):
        return _place(function.func)
    named = function if hasattr(function, "__qualname__") else type(function)
    return str(named.__module__), named.__qualname__
