"""The amount of work that the quickstart does in the minutes it is given."""

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.progress import duration
from hf_rlhf.quickstart.arguments import (
    CANDIDATES,
    EVALUATION,
    POLICY,
    PREFERENCES,
    REWARD_MODEL,
    ROLLOUT_SIZE,
    SIZE_FLAGS,
    QuickstartArguments,
    Size,
)
from hf_rlhf.quickstart.prompts import quickstart_prompts
from hf_rlhf.quickstart.replies import messages_of
from hf_rlhf.quickstart.speed import Speed, measure_speed
from hf_rlhf.recipes.candidates import BATCH_SIZE
from hf_rlhf.records import write_settings

PLAN_FILE = "plan.json"
SHARES = [number / 20 for number in range(20, 5, -1)]
"""Shares of the full size, largest first; below the last one nothing clear is learned."""
_DECISIVE = ("minutes", "model_name_or_path", "lora_target_modules", "max_completion_length", "num_ppo_epochs")
"""Flags besides those sizes that decide how long a run takes."""
_RESERVE = 0.1  # share of the budget that is left for what was not foreseen


@dataclass(frozen=True)
class Plan:
    """A quickstart whose size is settled."""

    args: QuickstartArguments
    speed: Speed

    @property
    def seconds(self) -> dict[str, float]:
        """Expected seconds of each stage."""
        args, size, speed = self.args, self.args.size, self.speed
        tokens, held_out = args.max_completion_length, len(quickstart_prompts()["test"])
        replies = {split: len(texts) * size.candidates_per_prompt for split, texts in messages_of(args).items()}
        sampling = speed.replies(ROLLOUT_SIZE, ROLLOUT_SIZE, tokens)
        passes = 3 * speed.forward  # by the policy, the reference and the reward model
        return {
            CANDIDATES: speed.load + sum(speed.replies(count, BATCH_SIZE, tokens) for count in replies.values()),
            PREFERENCES: 1.0,
            REWARD_MODEL: 2 * speed.load + 2 * (size.max_preferences * speed.update + replies["test"] * speed.forward),
            POLICY: 2 * speed.load
            + size.ppo_iterations * (sampling + ROLLOUT_SIZE * (passes + args.num_ppo_epochs * speed.update)),
            EVALUATION: 2 * speed.load + 2 * (speed.replies(held_out, held_out, tokens) + held_out * passes),
        }

    @property
    def total(self) -> float:
        """Expected seconds of all stages."""
        return sum(self.seconds.values())


def plan_quickstart(args: QuickstartArguments, root: Path) -> Plan:
    """Choose the sizes (`Size`) that `args` does not set, so that the run ends within `args.minutes`.

    A run that resumes in `root` keeps what was chosen there for the same flags; sizes may be given besides. The choice,
    the measured speed and the expected seconds are in plan.json, and all flags in config.yaml.

    Args:
        args: as the user gave them.
        root: the quickstart's folder.
    """
    begun = time.perf_counter()
    wanted = {name: getattr(args, name) for name in _DECISIVE}
    given = {name: getattr(args, name) for name in SIZE_FLAGS if getattr(args, name) is not None}
    recorded = _recorded(root / PLAN_FILE)
    known = recorded is not None and recorded.flags == wanted and recorded.beside.items() <= given.items()
    speed = recorded.speed if recorded and known else measure_speed(args)
    beside = recorded.beside if recorded and known else given
    before = recorded.chosen if recorded and known else {}
    chosen = {name: value for name, value in before.items() if name not in given}
    left = args.minutes * 60 * (1 - _RESERVE) - (time.perf_counter() - begun)
    plan = _largest_that_fits(args, given | chosen, speed, left)
    chosen = {name: getattr(plan.args, name) for name in SIZE_FLAGS if name not in given}
    content = asdict(_Recorded(wanted, beside, chosen, speed)) | {"expected_seconds": plan.seconds}
    write_settings(root, plan.args)
    scratch = root / f".{PLAN_FILE}"
    scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(scratch, root / PLAN_FILE)
    return plan


def _largest_that_fits(args: QuickstartArguments, fixed: dict[str, int], speed: Speed, seconds: float) -> Plan:
    """Return the plan of the largest share that fits into `seconds`, or of the smallest one; `fixed` flags stay."""
    plans = (Plan(replace(args, **(asdict(Size.of_share(share)) | fixed)), speed) for share in SHARES)
    plan = next(plans)
    for smaller in plans:
        if plan.total <= seconds:
            break
        plan = smaller
    return plan


@dataclass(frozen=True)
class _Recorded:
    """Choice that plan.json records: the flags it was made for, sizes given besides, sizes chosen, and the speed."""

    flags: dict[str, Any]
    beside: dict[str, int]
    chosen: dict[str, int]
    speed: Speed


def _recorded(file: Path) -> _Recorded | None:
    """Read a choice; None where there is none, or a file that is torn or of another version."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return _Recorded(content["flags"], dict(content["beside"]), dict(content["chosen"]), Speed(**content["speed"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def plan_table(plan: Plan) -> Any:
    """Return what each stage will do, and for how long, as a table for the terminal."""
    from rich.table import Table

    size, texts = plan.args.size, messages_of(plan.args)
    amounts = {
        CANDIDATES: f"{size.candidates_per_prompt} replies to each of {sum(map(len, texts.values()))} messages",
        PREFERENCES: f"up to {size.max_preferences} to train on",
        REWARD_MODEL: f"up to {size.max_preferences} pairs",
        POLICY: f"{size.ppo_iterations} iterations of {ROLLOUT_SIZE} replies",
        EVALUATION: f"2 replies to each of {len(quickstart_prompts()['test'])} messages",
    }
    table = Table("stage", "amount", "expected time", box=None, header_style="dim", pad_edge=False)
    for name, seconds in plan.seconds.items():
        table.add_row(name, amounts[name], duration(seconds))
    table.add_row("all", "", duration(plan.total))
    return table


def too_slow(plan: Plan) -> str | None:
    """Return the warning for a run that will not end in time; None for one that will."""
    minutes = plan.args.minutes
    if plan.total <= 60 * minutes:
        return None
    return (
        f"This will take about {duration(plan.total)}, more than minutes={minutes:g}: on this machine, no smaller size"
        " shows a result, or the flags leave no choice. The run begins. Ctrl-C stops it, and the same command resumes"
        " it."
    )


def require_size(args: QuickstartArguments) -> None:
    """Raise `InputError` for minutes or sizes that are too small to learn anything."""
    messages = len(quickstart_prompts()["train"])
    rules = {
        "minutes": (args.minutes > 0, "above 0"),
        "messages": (args.messages is None or 1 <= args.messages <= messages, f"from 1 to {messages}, all there are"),
        "candidates_per_prompt": (
            args.candidates_per_prompt is None or args.candidates_per_prompt >= 2,
            "at least 2: one to prefer to another",
        ),
        "max_preferences": (args.max_preferences is None or args.max_preferences >= 1, "at least 1"),
        "ppo_iterations": (args.ppo_iterations is None or args.ppo_iterations >= 1, "at least 1"),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise InputError(f"{name}={getattr(args, name)} must be {rule}")
