"""One of several items for a simulated user, whose click is the reward."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rlhf.environments.base import Turn
from hf_rlhf.environments.gym_text import with_text
from hf_rlhf.errors import InputError
from hf_rlhf.types import Prompt

KINDS = ("jazz", "golf", "soup", "news", "cars", "yoga")


class Recommendation:
    """An episode of one turn: the policy recommends an item by its number or its name, and a click pays 1.

    Each user likes one kind of items. The policy reads no more of it than the clicks of the past, which are in the
    prompt, behind that of the row. Whether the user would click is drawn for every item before the choice, so two
    policies with equal seeds meet equal users. `info` has `invalid`, 1 for text that names no item of the list, and
    `best`, 1 for an item of the kind that the user likes.

    Args:
        items: to choose from, each of another kind.
        history: items that the user saw before.
        kinds: of items.
        liked, other: chance of a click on an item of the user's kind, and on another.
    """

    def __init__(
        self,
        *,
        items: int = 4,
        history: int = 8,
        kinds: Sequence[str] = KINDS,
        liked: float = 0.9,
        other: float = 0.1,
    ):
        wrong = [kind for kind in kinds if not re.fullmatch(r"[^\W\d]\w*", str(kind))]
        if wrong or len({str(kind).lower() for kind in kinds}) < len(kinds):
            raise InputError(
                f"kinds={list(kinds)} is invalid: each is one word that is no number, and no two are equal. Change it."
            )
        if not 2 <= items <= len(kinds):
            raise InputError(
                f"items={items} is invalid: there are {len(kinds)} kinds, and a list has at least 2. Change it."
            )
        if history < 0 or not 0 <= other < liked <= 1:
            raise InputError(
                f"history={history}, liked={liked}, other={other} is invalid: history is at least 0, and the chances go"
                " from 0 to 1, that of liked above that of other. Change it."
            )
        self.items, self.history, self.kinds = items, history, tuple(kinds)
        self.liked, self.other = liked, other

    def reset(self, row: Mapping[str, Any], rng: random.Random) -> Prompt:
        """Draw a user, what they saw and clicked, and the items to choose from."""
        self._kind = rng.choice(self.kinds)
        seen = [(kind, self._clicks(kind, rng)) for kind in (rng.choice(self.kinds) for _ in range(self.history))]
        others = rng.sample([kind for kind in self.kinds if kind != self._kind], self.items - 1)
        self._list = rng.sample([self._kind, *others], self.items)
        self._would_click = [self._clicks(kind, rng) for kind in self._list]
        lines = [
            " ".join([name, *(kind for kind, clicked in seen if clicked == wanted)])
            for name, wanted in (("clicked:", True), ("ignored:", False))
        ]
        lines += [f"{number} {kind}" for number, kind in enumerate(self._list, start=1)]
        return with_text(row["prompt"], "\n".join(lines))

    def step(self, completion: str) -> Turn:
        """Let the user see the item."""
        names = {name: n for n, kind in enumerate(self._list) for name in (str(n + 1), kind.lower())}
        found = [word for word in re.findall(r"\w+", completion.lower()) if word in names]
        if not found:
            return Turn(terminated=True, info={"invalid": 1.0, "best": 0.0})
        item = names[found[-1]]
        info = {"invalid": 0.0, "best": float(self._list[item] == self._kind)}
        return Turn(reward=float(self._would_click[item]), terminated=True, info=info)

    def _clicks(self, kind: str, rng: random.Random) -> bool:
        return rng.random() < (self.liked if kind == self._kind else self.other)
