"""Stages 1 and 2: replies of the untrained model, and which of two the annotator prefers."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.cheerful import Candidate, CheerfulAnnotator, Preference
from hf_rlhf.models.load import load_causal_lm, load_tokenizer
from hf_rlhf.models.precision import current_device
from hf_rlhf.quickstart.arguments import CANDIDATES, QuickstartArguments
from hf_rlhf.quickstart.prompts import quickstart_prompts
from hf_rlhf.recipes.candidates import sample_to_file
from hf_rlhf.records import read_json_lines, write_json_lines
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.types import Message, Model, Trajectory

SYSTEM_MESSAGE = "Reply in one short sentence."


def as_messages(text: str) -> list[Message]:
    """Return a message of the quickstart as a conversation."""
    return [{"role": "system", "content": SYSTEM_MESSAGE}, {"role": "user", "content": text}]


def prompt_row(text: str, tokenizer) -> dict[str, Any]:
    """Return a message as a row that an engine samples from."""
    prompt = as_messages(text)
    encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
    return {"text": text, "prompt": prompt, "prompt_ids": encoded["input_ids"]}


def messages_of(args: QuickstartArguments) -> dict[str, list[str]]:
    """Return the messages of each split that get several replies, evenly spaced over all of its messages."""
    splits = quickstart_prompts()
    share = args.size.messages / len(splits["train"])
    return {split: _spaced(texts, max(round(len(texts) * share), 1)) for split, texts in splits.items()}


def _spaced(texts: Sequence[str], count: int) -> list[str]:
    return [texts[number * len(texts) // count] for number in range(count)]


def sample_candidates(args: QuickstartArguments, root: Path, folder: Path) -> None:
    """Run stage 1: sample `candidates_per_prompt` replies of the untrained model to every message.

    Batches that `folder` holds already are kept. The others are those of a run that was not killed.
    """
    model: Model = load_causal_lm(args.model_name_or_path, **args.model_kwargs)
    model.to(current_device())
    tokenizer = load_tokenizer(args.model_name_or_path)
    if not tokenizer.chat_template:
        raise InputError(f"{args.model_name_or_path!r} has no chat template; the quickstart needs an instruct model")
    for split, texts in messages_of(args).items():
        rows = [prompt_row(text, tokenizer) for text in texts for _ in range(args.size.candidates_per_prompt)]
        seeds = [row_seed(args.seed, "candidates", split, number) for number in range(len(rows))]
        file = folder / f"{split}.jsonl"
        sample_to_file(model, tokenizer, rows, args.sampling, seeds, file, _candidate, f"     {split}")


def _candidate(reply: Trajectory) -> dict[str, Any]:
    return {"prompt": reply.row["text"], "completion": reply.text, "finished": reply.completion.stopped}


def judge_candidates(args: QuickstartArguments, root: Path, folder: Path) -> None:
    """Run stage 2: the annotator compares each message's replies in pairs; equal ones give no preference."""
    annotator = CheerfulAnnotator(noise=args.annotator_noise, seed=args.seed, tie_margin=args.annotator_tie_margin)
    for split in ("train", "test"):
        replies: dict[str, list[Candidate]] = {}
        for row in read_json_lines(root / CANDIDATES / f"{split}.jsonl"):
            replies.setdefault(row["prompt"], []).append(Candidate(row["completion"], row["finished"]))
        judged = [
            preference
            for text, candidates in replies.items()
            for a, b in itertools.combinations(candidates, 2)
            if (preference := annotator.prefer(text, a, b))
        ]
        if not judged:
            raise InputError(
                f"annotator_tie_margin={args.annotator_tie_margin} is too large: the annotator finds all replies to the"
                f" {split} messages alike, so there is nothing to learn from. Lower it, or raise candidates_per_prompt"
            )
        random.Random(args.seed).shuffle(judged)
        write_json_lines(folder / f"{split}.jsonl", map(_preference_row, judged[: args.size.max_preferences]))


def _preference_row(preference: Preference) -> dict[str, Any]:
    """Return a preference in TRL's format."""
    return {
        "prompt": as_messages(preference.prompt),
        "chosen": [{"role": "assistant", "content": preference.chosen.text}],
        "rejected": [{"role": "assistant", "content": preference.rejected.text}],
    }
