"""`hf-rlhf segments`: a policy plays a game, and pairs of segments of its episodes become questions in a store."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rlhf.data.files import read_rows
from hf_rlhf.data.prompts import prepare_prompt_set, prompt_limit
from hf_rlhf.environments.base import EnvFactory
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.environments.named import load_environment, require_columns
from hf_rlhf.environments.segments import Segment, comparisons, play_segments, render_segment
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.annotators import annotate_tasks
from hf_rlhf.feedback.forms import PAIRWISE, Form
from hf_rlhf.feedback.rows import tasks_from_rows
from hf_rlhf.feedback.rules import RuleAnnotator, rate_by_column
from hf_rlhf.feedback.store import FeedbackStore
from hf_rlhf.feedback.tasks import text_of
from hf_rlhf.models.adapted import load_policy
from hf_rlhf.models.precision import current_device
from hf_rlhf.progress import progress_of, say
from hf_rlhf.recipes.arguments import ModelArguments, flag
from hf_rlhf.recipes.common import RunResult, tokenizer_of
from hf_rlhf.rewards.functions import load_function
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.rollout.stops import stop_at_end_of_turn

BATCH_SIZE = 64
"""Episodes that are played together."""


@dataclass
class SegmentsArguments:
    """The game, how it is played and cut, and who is asked about the segments."""

    dataset_name: str | None = flag(
        None, "Prompts of the game, as for ppo: Hub name, folder, or .jsonl, .json, .csv, .parquet file (also .gz)."
    )
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    dataset_train_split: str = flag("train", "Split to take prompts from.")
    environment: str | None = flag(None, "The game, as for ppo: file.py:Class, or a named one (frozen_lake).")
    turns: int = flag(4, "Turns of a segment.")
    render: str | None = flag(
        None, "A function that makes text of a segment, as file.py:name; see docs/how-to/environments.md."
    )
    episodes: int = flag(200, "Episodes to play.")
    comparisons: int = flag(500, "Pairs of segments to ask about.")
    max_turns: int = flag(32, "Most turns of an episode.")
    max_episode_length: int | None = flag(None, "Most tokens behind the prompt of an episode; by default no limit.")
    max_prompt_length: int = flag(512, "Longest prompt, in tokens.")
    max_completion_length: int = flag(16, "Longest completion of a turn, in tokens.")
    temperature: float = flag(1.0, "Sampling temperature.")
    chat_template_path: str | None = flag(None, "A Jinja file to use as the tokenizer's chat template.")
    seed: int = flag(0, "Seed of the episodes and of the pairs.")

    store: str = flag("feedback.db", "SQLite file of the questions and answers; it is made when it is not there.")
    question: str = flag("Which one plays better?", "Question above the two segments.")
    simulated_answers: int = flag(
        0,
        "Questions that a simulated annotator answers, who prefers the higher true return. People are asked the others"
        " first.",
    )
    annotator_noise: float = flag(0.0, "Temperature of its choices, in units of the true return.")
    annotator_tie_margin: float = flag(0.0, "True returns that differ by no more are a tie to it.")

    def __post_init__(self):
        if self.dataset_name is None or self.environment is None:
            missing = "dataset_name" if self.dataset_name is None else "environment"
            raise InputError(f"{missing} is missing. Give the prompts of the game, and the game.")
        at_least = {"turns": 1, "episodes": 1, "comparisons": 1, "max_turns": 1, "simulated_answers": 0}
        for name, least in (at_least | {"annotator_noise": 0, "annotator_tie_margin": 0}).items():
            if not least <= getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)} is invalid: it must be at least {least}.")
        if self.max_turns < self.turns:
            raise InputError(
                f"turns={self.turns} is invalid: an episode of max_turns={self.max_turns} has no such segment. Lower"
                " it."
            )


def ask_about_segments(args: SegmentsArguments, model: ModelArguments) -> RunResult:
    """Let a policy play, and add pairs of segments to a store as questions; a simulated annotator answers some.

    Raises `InputError` for anything wrong in the flags, the prompts or the game, before the store is made.
    """
    game = load_environment(str(args.environment))
    segments = _play(args, model, game)
    form = Form(PAIRWISE, question=args.question, strengths=1)
    rows = comparisons(segments, args.comparisons, seed=args.seed)
    ordered = [row | {"priority": float(number >= args.simulated_answers)} for number, row in enumerate(rows)]
    tasks = tasks_from_rows(ordered, form, source="segments")
    _show(tasks[0].completions)
    simulated = RuleAnnotator(
        rate_by_column,
        seed=args.seed,
        noise=args.annotator_noise,
        tie_margin=args.annotator_tie_margin,
        bad_below=-math.inf,
    )
    with FeedbackStore(args.store) as store:
        added = store.add_tasks(tasks)
        answers = annotate_tasks(store, [simulated], tasks[: args.simulated_answers])
    numbers = {"segments": len(segments), "comparisons": len(tasks), "new_comparisons": added, "answers": answers}
    return RunResult(Path(args.store), {name: float(number) for name, number in numbers.items()})


def _play(args: SegmentsArguments, model_args: ModelArguments, game: EnvFactory) -> list[Segment]:
    render = render_segment if args.render is None else load_function(args.render, flag="render")
    tokenizer = tokenizer_of(model_args, args.chat_template_path)
    rows = read_rows(str(args.dataset_name), split=args.dataset_train_split, config_name=args.dataset_config)
    limit = prompt_limit(args.max_prompt_length, "error")
    prompts: Any = prepare_prompt_set(rows, tokenizer, role="prompts", limit=limit).dataset
    require_columns(game, prompts.column_names, str(args.environment))
    device = current_device()
    kwargs = model_args.on(device).load_kwargs()
    policy = load_policy(model_args.model_name_or_path, adds_adapter=True, **kwargs).to(device).eval()
    sampling = Sampling(args.max_completion_length, temperature=args.temperature)
    stop_at_end_of_turn(policy, tokenizer, prompts[0], sampling)
    engine = TransformersEngine(policy, tokenizer)
    limits = EpisodeLimits(args.max_turns, args.max_episode_length, max_prompt_tokens=args.max_prompt_length)
    episodes = list(itertools.islice(itertools.cycle(prompts), args.episodes))
    seeds = [row_seed(args.seed, "segments", number) for number in range(args.episodes)]
    segments: list[Segment] = []
    with progress_of(args.episodes, "episodes") as advance:
        for start in range(0, args.episodes, BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            cut: dict[str, Any] = {"turns": args.turns, "render": render}
            segments += play_segments(engine, episodes[part], tokenizer, sampling, seeds[part], game, limits, **cut)
            advance(len(episodes[part]))
    return segments


def _show(completions: Sequence[Any]) -> None:
    """Print two segments as people read them."""
    for name, completion in zip("AB", completions, strict=True):
        say(f"{name} of the first question:\n{text_of(completion).strip()}\n")
