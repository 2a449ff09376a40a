"""Stages 1 and 2: replies of the untrained model, and which of two the annotator prefers."""

import itertools
import random
from pathlib import Path
from typing import Any

from hf_rlhf.data.quickstart import quickstart_prompts
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.simulate import Candidate, CheerfulAnnotator
from hf_rlhf.models.load import load_causal_lm, load_tokenizer
from hf_rlhf.models.precision import current_device
from hf_rlhf.progress import progress_of
from hf_rlhf.recipes.quickstart.arguments import CANDIDATES, QuickstartArguments
from hf_rlhf.records import append_json_line, read_json_lines
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.rollout.stops import stop_at_end_of_turn
from hf_rlhf.types import Message, Model

SYSTEM_MESSAGE = "Reply in one short sentence."


def as_messages(text: str) -> list[Message]:
    """A message of the quickstart as a conversation."""
    return [{"role": "system", "content": SYSTEM_MESSAGE}, {"role": "user", "content": text}]


def prompt_row(text: str, tokenizer) -> dict[str, Any]:
    """Return a message as a row that an engine samples from."""
    prompt = as_messages(text)
    encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
    return {"text": text, "prompt": prompt, "prompt_ids": encoded["input_ids"]}


def sample_candidates(args: QuickstartArguments, root: Path, folder: Path) -> None:
    """Stage 1: `candidates_per_prompt` replies of the untrained model to every message."""
    model: Model = load_causal_lm(args.model_name_or_path, **args.model_kwargs)
    model.to(current_device())
    tokenizer = load_tokenizer(args.model_name_or_path)
    if not tokenizer.chat_template:
        raise InputError(f"{args.model_name_or_path!r} has no chat template; the quickstart needs an instruct model")
    for split, texts in quickstart_prompts().items():
        rows = [prompt_row(text, tokenizer) for text in texts for _ in range(args.candidates_per_prompt)]
        seeds = [row_seed(args.seed, "candidates", split, number) for number in range(len(rows))]
        stop_at_end_of_turn(model, tokenizer, rows[0], args.sampling)
        with progress_of(len(rows) * args.max_completion_length, f"     {split}") as advance:
            engine = TransformersEngine(model, tokenizer, on_tokens=advance)
            for start in range(0, len(rows), 64):
                part = slice(start, start + 64)
                for trajectory in collect(engine, rows[part], tokenizer, args.sampling, seeds[part]):
                    append_json_line(
                        folder / f"{split}.jsonl",
                        {
                            "prompt": trajectory.row["text"],
                            "completion": trajectory.text,
                            "finished": trajectory.completion.stopped,
                        },
                    )


def judge_candidates(args: QuickstartArguments, root: Path, folder: Path) -> None:
    """Stage 2: the annotator compares each message's replies, two by two; those it finds alike give no preference."""
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
        random.Random(args.seed).shuffle(judged)
        for preference in judged[: args.max_preferences]:
            append_json_line(
                folder / f"{split}.jsonl",
                {
                    "prompt": as_messages(preference.prompt),
                    "chosen": [{"role": "assistant", "content": preference.chosen.text}],
                    "rejected": [{"role": "assistant", "content": preference.rejected.text}],
                },
            )
