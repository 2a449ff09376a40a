"""Stage 5: the trained policy against the model it started from, on messages that no stage has seen."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_rlhf.evaluation.before_after import Comparison, Side, measure_side
from hf_rlhf.feedback.cheerful import CheerfulAnnotator
from hf_rlhf.models.load import load_causal_lm, load_tokenizer
from hf_rlhf.models.precision import current_device
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.progress import progress_of
from hf_rlhf.quickstart.arguments import QuickstartArguments
from hf_rlhf.quickstart.person import ME
from hf_rlhf.quickstart.prompts import quickstart_prompts
from hf_rlhf.quickstart.replies import as_messages, prompt_row
from hf_rlhf.records import keep_whole_parts, read_json_lines, write_json_lines
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.rollout.stops import stop_at_end_of_turn
from hf_rlhf.types import Completion, Trajectory

PAIRS_FILE = "pairs.jsonl"
SIDES = {"before": False, "after": True}
"""Name of each side, and whether the trained adapter is on."""


def compare(args: QuickstartArguments, reward_model: Path, policy: Path, folder: Path) -> Comparison:
    """Let the annotator, who is not what PPO trained against, judge replies to the held-out messages.

    A person has judged enough by then: with `annotator=me` it is the reward model, and pairs.jsonl has the replies of
    both sides for whoever wants to judge them blind.

    Leaves a file for each side in `folder`; sides that it holds already are not sampled again.
    """
    texts = quickstart_prompts()["test"]
    files = {name: folder / f"{name}.jsonl" for name in SIDES}
    missing = [name for name in SIDES if not keep_whole_parts(files[name], len(texts), len(texts))]
    if missing:
        for name, side in zip(missing, _measured(args, reward_model, policy, texts, missing), strict=True):
            write_json_lines(files[name], _rows(side))
    before, after = (_side(read_json_lines(file)) for file in files.values())
    if args.annotator == ME:
        _write_pairs(folder, before, after)
    return Comparison(before, after)


def _write_pairs(folder: Path, before: Side, after: Side) -> None:
    """Write the replies of both sides as rows that a person can judge blind: `hf-rlhf label --dataset_name FILE`."""
    both = zip(before.trajectories, after.trajectories, strict=True)
    rows = [
        {
            "prompt": as_messages(b.row["text"]),
            "completions": [[{"role": "assistant", "content": each.text}] for each in (b, a)],
            "sources": list(SIDES),
        }
        for b, a in both
        if b.text.strip() and a.text.strip() and b.text != a.text
    ]
    write_json_lines(folder / PAIRS_FILE, rows)


def _measured(
    args: QuickstartArguments, reward_model: Path, policy: Path, texts: Sequence[str], names: Sequence[str]
) -> Iterator[Side]:
    """Measure the sides of these names, one after the other."""
    from peft import PeftModel

    tokenizer = load_tokenizer(args.model_name_or_path)
    model = PeftModel.from_pretrained(load_causal_lm(args.model_name_or_path, **args.model_kwargs), str(policy))
    model.to(current_device())
    scorer, _ = load_reward_model(str(reward_model), policy=model)
    annotator = CheerfulAnnotator()
    rows = [prompt_row(text, tokenizer) for text in texts]
    stop_at_end_of_turn(model, tokenizer, rows[0], args.sampling)
    with progress_of(len(names) * len(rows) * args.max_completion_length, "     replies") as advance:
        for name in names:
            side = measure_side(
                model,
                TransformersEngine(model, tokenizer, on_tokens=advance),
                rows,
                args.sampling,
                [row_seed(args.seed, "evaluation", number) for number in range(len(rows))],
                adapter=SIDES[name],
                judge=lambda trajectory: annotator.rate(trajectory.text, trajectory.completion.stopped),
                reward=LearnedReward(scorer, tokenizer, device=current_device()),
            )
            if args.annotator == ME:
                ratings = [1 / (1 + math.exp(-reward)) for reward in side.rewards]
                side = replace(side, judgements=ratings)
            yield side


def _rows(side: Side) -> list[dict[str, Any]]:
    """Return a side as rows of its file; `_side` reads them."""
    return [
        {
            "prompt": trajectory.row["text"],
            "completion": trajectory.text,
            "ids": trajectory.completion.ids,
            "finished": trajectory.completion.stopped,
            "judgement": side.judgements[number],
            "reward": side.rewards[number],
            "surprise": side.surprise[number],
            "kl": side.kl[number],
        }
        for number, trajectory in enumerate(side.trajectories)
    ]


def _side(rows: Sequence[dict[str, Any]]) -> Side:
    return Side(
        [
            Trajectory({"text": row["prompt"]}, [], Completion(row["ids"], [], row["finished"]), row["completion"])
            for row in rows
        ],
        judgements=[row["judgement"] for row in rows],
        rewards=[row["reward"] for row in rows],
        surprise=[row["surprise"] for row in rows],
        kl=[row["kl"] for row in rows],
    )
