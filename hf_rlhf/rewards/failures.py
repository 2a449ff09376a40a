"""Completions that a server did not score: they end the run, or stay unscored up to a share."""

from dataclasses import dataclass

from hf_rlhf.errors import InputError, RunFailed


@dataclass
class Failures:
    """The completions that a reward could not score so far.

    Args:
        on_error: `raise` ends the run at the first one; `none` leaves it unscored.
        max_failed_share: with `none`, the largest share of all completions of this process so far that may be unscored;
            one completion always may.
    """

    on_error: str = "raise"
    max_failed_share: float = 0.1
    failed: int = 0
    asked: int = 0

    def __post_init__(self):
        if self.on_error not in ("raise", "none"):
            raise InputError(f"on_error={self.on_error} is invalid: it must be raise or none.")
        if not 0 <= self.max_failed_share <= 1:
            raise InputError(f"max_failed_share={self.max_failed_share} is invalid: it must be a share from 0 to 1.")

    def allowance(self, rows: int) -> int:
        """Return how many of the next `rows` completions may stay unscored."""
        if self.on_error == "raise":
            return 0
        return max(max(int(self.max_failed_share * (self.asked + rows)), 1) - self.failed, 0)

    def settle(self, name: str, failed: int, rows: int, why: str) -> None:
        """Count `rows` completions, of which `failed` have no score. Raises `RunFailed` when they are too many."""
        allowed = self.allowance(rows)
        self.asked += rows
        self.failed += failed
        if failed > allowed:
            so_far = f"{self.failed} of {self.asked} completions so far" if self.failed > failed else f"{failed} of {rows} completions"  # fmt: skip
            fix = "raise max_failed_share" if self.on_error == "none" else "set on_error=none to leave them unscored"
            raise RunFailed(f"reward {name!r} has no score for {so_far}: {why}. To go on without them, {fix}")
