"""Rows of trajectories for tests, with numbers of one's choice."""

from hf_rlhf.ppo.trajectories import PER_TOKEN


def completion_row(texts, *, prompt="hello", reward=1.0, turns=None, **numbers):
    """A row of `write_trajectories` with one token for each text; `numbers` are columns by name."""
    count = len(texts)
    return {
        "prompt": prompt,
        "prompt_ids": [1],
        "completion": "".join(texts),
        "completion_ids": list(range(count)),
        "tokens": list(texts),
        "completion_mask": [True] * count,
        "turns": turns or [{"role": "policy", "start": 0, "end": count, "text": "".join(texts)}],
        "stopped": True,
        "truncated": False,
        "failure": None,
        "reward": reward,
        "rewards": {"length": reward},
        "score": reward,
        "kl_coef": 0.05,
        "bootstrap": None,
        **{name: [t / 8 for t in range(count)] for name in PER_TOKEN},
        **numbers,
    }
