"""Facts of a whole completion in words, to be read before its tokens."""

from typing import Any

from hf_rlhf.evaluation.trajectories.characters import in_one_line


def facts_of(row: dict[str, Any]) -> list[str]:
    """Return reward, score, KL, length and end of a completion in words."""
    if row["reward"] is None:
        facts = ["no reward, so not learned from"]
    else:
        parts = {name: value for name, value in (row["rewards"] or {}).items() if value is not None}
        each = ", ".join(f"{in_one_line(name, 40)} {value:.4g}" for name, value in parts.items())
        facts = [f"reward {row['reward']:.4g}" + (f" ({each})" if len(parts) > 1 else "")]
    if row["score"] is not None and row["score"] != row["reward"]:
        facts.append(f"score {row['score']:.4g}")
    counted = [number for number in row["kl"] if number is not None]
    if counted:
        facts.append(f"KL {sum(counted):.4g}")
    completions = sum(turn["role"] == "policy" for turn in row["turns"])
    facts.append(f"{len(row['tokens'])} tokens" + (f" in {completions} turns" if completions > 1 else ""))
    if row["failure"] is not None:
        facts.append(f"the environment failed: {in_one_line(row['failure'], 200)}")
    elif row["truncated"]:
        facts.append(f"truncated by a limit, value beyond it {row['bootstrap'] or 0.0:.4g}")
    else:
        facts.append("ended by itself" if row["stopped"] else "cut off by the length limit")
    return facts
