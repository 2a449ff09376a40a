"""Teach a policy of two layers a game by comparisons of segments of its episodes (Christiano et al. 2017).

    OMP_NUM_THREADS=1 python benchmarks/segments.py                                 # about two minutes of one core
    python benchmarks/segments.py --seeds 0 1 2 --output benchmarks/segments.json

The game is FrozenLake 4x4 in words, as in frozen_lake.py. Its true reward is known to the annotator alone: fields
gained on the way to the last one, 1 for that, -4 for a hole; a word that is no direction is a random step. A policy
with random weights plays; 500 pairs of segments of 4 turns become questions of a store; a simulated annotator
answers, partly at random; the export of the store trains a sequence classifier; PPO is paid by it at the end of each
segment.

Held out are the segments of other episodes of the same policy. `random answers` is all of this with an annotator who
does not look.
"""

import argparse
import bisect
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from frozen_lake import PROMPT, TUNED, WORDS, small_llama, word_tokenizer
from transformers import AutoModelForCausalLM

from hf_rlhf import (
    ModelArguments,
    PPOConfig,
    PPOTrainer,
    RewardArguments,
    RewardTrainingArguments,
    SegmentsArguments,
    ask_about_segments,
    load_reward_model,
    train_reward_model,
)
from hf_rlhf.environments import FrozenLake, Segmented, comparisons, play_segments
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.environments.episodes import collect_episodes
from hf_rlhf.environments.segments import TRUE_RETURN
from hf_rlhf.feedback import FeedbackStore
from hf_rlhf.feedback.exports import write_exports
from hf_rlhf.rewards import LearnedReward
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling, row_seed

TOKENIZER = word_tokenizer([*WORDS, ">", "(end)"])
ROW = {"prompt": PROMPT, "prompt_ids": TOKENIZER(PROMPT)["input_ids"]}
TURNS, LIMITS = 4, EpisodeLimits(max_turns=32)
GAME = partial(FrozenLake, progress=True, penalty=0.0, separator=" ")
GOAL = "row 4 column 4"
BLIND = 1e6  # noise of an annotator who does not look
HELD_OUT_EPISODES, MEASURED_EPISODES = 200, 200


def ask(folder: Path, comparisons: int, noise: float, seed: int) -> dict[str, Any]:
    """Let the policy in `folder` play and the annotator answer; write the preferences, and return what was asked."""
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": PROMPT}) + "\n", encoding="utf-8")
    args = SegmentsArguments(
        dataset_name=str(folder / "prompts.jsonl"), environment=f"{__file__}:GAME", turns=TURNS, episodes=400,
        comparisons=comparisons, simulated_answers=comparisons, annotator_noise=noise, annotator_tie_margin=0.05,
        max_turns=LIMITS.max_turns, max_completion_length=1, store=str(folder / "feedback.db"), seed=seed,
    )  # fmt: skip
    numbers = ask_about_segments(
        args, ModelArguments(model_name_or_path=str(folder / "start"), dtype="float32")
    ).metrics
    with FeedbackStore(folder / "feedback.db") as store:
        tasks = {task.id: task.columns["ratings"] for task in store.tasks()}
        given = [(tasks[event.task], (event.value or {})["preferred"]) for event in store.current()]
        write_exports(store, folder / "export")
    decided = [(ratings, preferred) for ratings, preferred in given if preferred != "tie"]
    right = sum(ratings[preferred] > ratings[1 - preferred] for ratings, preferred in decided)
    return {**numbers, "ties": len(given) - len(decided), "annotator_accuracy": right / len(decided)}


def train_reward(folder: Path, epochs: float, seed: int) -> LearnedReward:
    """Train a sequence classifier on the preferences, by the recipe, and load it."""
    training = RewardTrainingArguments(
        output_dir=str(folder / "reward"), per_device_train_batch_size=20, num_train_epochs=epochs, learning_rate=1e-3,
        lr_scheduler_type="linear", center_rewards_coefficient=0.01, max_length=128, save_strategy="no", use_cpu=True,
        bf16=False, report_to="none", disable_tqdm=True, logging_steps=100, seed=seed,
    )  # fmt: skip
    model = ModelArguments(model_name_or_path=str(folder / "start"), use_peft=False, dtype="float32")
    train_reward_model(RewardArguments(dataset_name=str(folder / "export/preferences.jsonl")), training, model)
    return LearnedReward(*load_reward_model(str(folder / "reward"), dtype="float32"))


def judge(reward: LearnedReward, folder: Path, seed: int) -> dict[str, float]:
    """Return the accuracy on pairs of held-out segments, and Spearman's correlation with the true return of each."""
    known = {text for line in (folder / "export/preferences.jsonl").read_text().splitlines() for text in _texts(line)}
    rows = [ROW] * HELD_OUT_EPISODES
    seeds = [row_seed("held out", seed, number) for number in range(HELD_OUT_EPISODES)]
    engine = start_engine(folder)
    segments = play_segments(engine, rows, TOKENIZER, Sampling(1), seeds, GAME, LIMITS, turns=TURNS)
    texts = [segment.text for segment in segments]
    rewards = dict(zip(texts, reward([PROMPT] * len(texts), texts), strict=True))
    asked = [row for row in comparisons(segments, 2000, seed=seed) if row["ratings"][0] != row["ratings"][1]]
    unseen = [row for row in asked if not known & set(row["completions"])]
    return {
        "pair_accuracy": _accuracy(asked, rewards), "pairs": len(asked),
        "unseen_pair_accuracy": _accuracy(unseen, rewards), "unseen_pairs": len(unseen),
        "spearman": spearman([rewards[s.text] for s in segments], [s.true_return for s in segments]),
        "held_out_segments": len(segments),
    }  # fmt: skip


def train_policy(folder: Path, reward: LearnedReward, iterations: int, seed: int) -> dict[str, Any]:
    """Train the start by PPO with the reward of segments; return its true return and success before and after."""
    config = {**TUNED, "max_turns": LIMITS.max_turns, "max_episode_length": 256, "max_steps": 16 * iterations}
    args = PPOConfig(
        output_dir=str(folder / "policy"), seed=seed, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=1e9, **config,
    )  # fmt: skip
    environment = partial(Segmented, GAME, turns=TURNS, reward=reward)
    engine = start_engine(folder)
    before = measured(engine)
    rows = Dataset.from_list([{"prompt": PROMPT}] * 64)
    trainer = PPOTrainer(engine.model, None, args, rows, processing_class=TOKENIZER, environment=environment)
    trainer.train()
    return {"before": before, "after": measured(trainer.engine)}


def measured(engine: Any) -> dict[str, float]:
    """Return true return and success of episodes that no iteration has seen: sampled, and the greedy one."""
    made: dict[str, float] = {}
    for name, count, temperature in (("", MEASURED_EPISODES, 1.0), ("greedy_", 1, 0.0)):
        seeds = [row_seed("benchmark", number) for number in range(count)]
        sampling, game = Sampling(1, temperature=temperature), partial(Segmented, GAME)
        episodes = collect_episodes(engine, [ROW] * count, TOKENIZER, sampling, seeds, game, LIMITS)
        made[f"{name}return"] = statistics.fmean(float(each.info[TRUE_RETURN]) for each in episodes)
        made[f"{name}success"] = statistics.fmean(
            (each.messages or [{}])[-1].get("content") == GOAL for each in episodes
        )
    return made


def run(seed: int, noise: float, *, comparisons: int = 500, epochs: float = 12, iterations: int = 40) -> dict[str, Any]:
    """Run all stages with a seed."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for each in (small_llama(TOKENIZER, seed), TOKENIZER):
            each.save_pretrained(folder / "start")
        result = {"seed": seed, "noise": noise, **ask(folder, comparisons, noise, seed)}
        reward = train_reward(folder, epochs, seed)
        result |= judge(reward, folder, seed)
        result |= train_policy(folder, reward, iterations, seed)
    return result | {"cpu_seconds": time.process_time() - begun}


def start_engine(folder: Path) -> TransformersEngine:
    """Load the policy that all begins with."""
    return TransformersEngine(AutoModelForCausalLM.from_pretrained(folder / "start"), TOKENIZER)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the correlation of ranks, in which equal numbers share their mean rank."""
    return statistics.correlation(_ranks(first), _ranks(second))


def _ranks(numbers: Sequence[float]) -> list[float]:
    order = sorted(numbers)
    return [(bisect.bisect_left(order, number) + bisect.bisect_right(order, number)) / 2 for number in numbers]


def _texts(line: str) -> list[str]:
    row = json.loads(line)
    return [row["chosen"], row["rejected"]]


def _accuracy(rows: Sequence[dict[str, Any]], rewards: dict[str, float]) -> float:
    """Return the share of pairs in which the higher true return has the higher reward; equal rewards count half."""
    right = 0.0
    for row in rows:
        first, second = (rewards[text] for text in row["completions"])
        right += 0.5 if first == second else float((first > second) == (row["ratings"][0] > row["ratings"][1]))
    return right / len(rows) if rows else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--noise", type=float, default=0.5, help="of the annotator, in units of the true return")
    parser.add_argument("--comparisons", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=12, help="of the reward model")
    parser.add_argument("--iterations", type=int, default=40, help="of PPO")
    parser.add_argument("--output", type=Path, help="a file for the results, as JSON")
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("comparisons", "epochs", "iterations")}
    results = {"comparisons": [], "random answers": []}
    for name, noise in (("comparisons", options.noise), ("random answers", BLIND)):
        for seed in options.seeds:
            results[name].append(run(seed, noise, **sizes))
            print(f"{name}, {in_words(results[name][-1])}", flush=True)
            if options.output:
                options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def in_words(result: dict[str, Any]) -> str:
    """Return a result as lines."""
    before, after = result["before"], result["after"]
    return (
        f"seed {result['seed']}: the annotator prefers the higher true return in {result['annotator_accuracy']:.1%},"
        f" {result['ties']} ties\n  held-out pairs {result['pair_accuracy']:.1%} of {result['pairs']}, of unseen texts"
        f" {result['unseen_pair_accuracy']:.1%} of {result['unseen_pairs']}; Spearman {result['spearman']:.3f} over"
        f" {result['held_out_segments']} segments\n  true return {before['return']:.2f} -> {after['return']:.2f},"
        " success"
        f" {before['success']:.1%} -> {after['success']:.1%} of {MEASURED_EPISODES} episodes, greedy"
        f" {after['greedy_success']:.0%}; {result['cpu_seconds']:.0f} s of the processor"
    )


if __name__ == "__main__":
    main()
