"""Seconds and memory that hf_rlhf's PPO and TRL's last one take until held-out replies earn the same reward.

    python benchmarks/time_to_reward.py --peer_python .venv-trl/bin/python             # 2.5 hours on two cores
    python benchmarks/time_to_reward.py --peer_python .venv-trl/bin/python --quick     # 45 minutes
    python benchmarks/time_to_reward.py --peer_path /opt/trl-1.12 --model /models/smollm2-135m-instruct     # on a GPU
    python benchmarks/time_to_reward.py --stage judge plot --kl_bound 8                # from runs that are there

Stages: `prepare` samples replies, has the quickstart's annotator compare them and trains the reward model, `search`
looks for the best settings of each side, `run` trains every seed with them, sides in turn, `judge` samples replies to
held-out messages from every snapshot, and `plot` writes the table and the picture. All is kept in `output_dir`, and
what is there for the same flags is not done again. Only training counts as time: a run's clock begins at `train()` and
stands still while a snapshot is saved. The search is judged on one half of the held-out messages and the result on the
other.

The level is fixed before anybody looks: the reward of the start and `level` of the way to the reward with which the
better side ends (the mean of its last two snapshots, the median of its seeds). A snapshot whose KL to the start is
above `kl_bound` counts neither for that end nor as having reached the level.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from gpu import Setting as TinyModel
from gpu import make_model
from ppo_against_trl import lora_arguments

sys.path.append(str(Path(__file__).parent / "workloads"))

from task import FIRST_SNAPSHOT, ITERATION, RESULT_FILE, Setting, Task

from hf_rlhf.evaluation.before_after import Side, measure_side
from hf_rlhf.feedback.cheerful import CheerfulAnnotator
from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_tokenizer, resolve_model
from hf_rlhf.models.precision import current_device, native_dtype
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.progress import duration, progress_of, quiet_libraries
from hf_rlhf.quickstart.arguments import (
    CANDIDATES,
    POLICY,
    PREFERENCES,
    REWARD_MODEL,
    ROLLOUT_SIZE,
    QuickstartArguments,
    Size,
)
from hf_rlhf.quickstart.budget import Plan
from hf_rlhf.quickstart.prompts import quickstart_prompts
from hf_rlhf.quickstart.replies import as_messages, judge_candidates, sample_candidates
from hf_rlhf.quickstart.speed import Speed, measure_speed
from hf_rlhf.quickstart.training import remove_checkpoints, train_reward_model
from hf_rlhf.recipes.stages import run_stage
from hf_rlhf.records import read_json_lines, write_json_lines
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import row_seed

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = ("prepare", "search", "run", "judge", "plot")
NAMES = {"own": "hf_rlhf", "trl": "TRL 1.12.0"}
FILES = {"own": "own_to_reward.py", "trl": "trl_to_reward.py"}
COLORS = {"own": "#2a6fb0", "trl": "#d07a1f"}
JUDGED_FILE = "judged.json"
HALVES = SEARCH, RESULT = "search", "result"  # of the held-out messages: the search never sees those of the result
TINY_MESSAGES = 4  # held-out ones, with --tiny
SECONDS_TO_LOAD = 900  # allowed to a process besides three times its training
SECONDS_TO_BEGIN = 20  # of a training process, besides loading its models twice: its imports and its end
SECONDS_OF_LINE = 8.0  # between two lines of progress
SEARCH_SEED = 1000  # none of those that are reported
QUICK = {"minutes": 3.0, "search_minutes": 0.0, "snapshots": 8, "share": 0.4, "held_out_samples": 2}
QUICK_ON_GPU = {"search_minutes": 0.0}

# The search: first these for both sides. TRL's value model is a model of its own, all of whose weights are trained: a
# tenth of the policy's learning rate to begin with.
POLICY_SETTINGS = [
    Setting(learning_rate=5e-4),
    Setting(learning_rate=2e-4, num_ppo_epochs=4),
    Setting(learning_rate=1e-3, lora_layers="0.25"),
    Setting(learning_rate=2e-3, lora_layers="0.25"),
]
VALUE_RATE = {"own": 1.0, "trl": 0.1}  # of the critic or the value model, times the policy's
# Then the first three of these changes of the best one that change something: float32 changes nothing where all is
# float32.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "own": [{"num_mini_batches": 4}, {"critic": "adapter"}, {"value_rate": 4.0}],
    "trl": [{"num_mini_batches": 4}, {"value_dtype": "float32"}, {"value_rate": 1.0}, {"value_rate": 0.3}],
}
VARIANTS_TRIED = 3  # on each side


@dataclass(frozen=True)
class Experiment:
    """Folders, models and seeds of an experiment, and the sizes that both sides share."""

    folder: Path
    model: str
    dtype: str
    peer: tuple[str, str | None] | None  # its Python, and the folder that comes first on its path; None: omitted
    seeds: Sequence[int]
    minutes: float
    peer_minutes: float
    search_minutes: float
    snapshots: int
    rollout_batch_size: int
    share: float
    held_out_samples: int
    kl_coef: float
    level: float
    kl_bound: float
    tiny: bool
    sides: Sequence[str]  # names of those that run

    @property
    def quickstart(self) -> QuickstartArguments:
        """Settings of the feedback and of the reward model, and the sampling of all replies."""
        args = QuickstartArguments(
            output_dir=str(self.folder), model_name_or_path=self.model, **asdict(Size.of_share(self.share))
        )
        if self.tiny:  # random weights write words that no annotator prefers by much
            args = replace(args, annotator_tie_margin=0.0, max_completion_length=8, lora_target_modules="q_proj,v_proj")
        return args

    @property
    def feedback(self) -> dict[str, Any]:
        """Settings that decide what the reward model is."""
        return {name: value for name, value in asdict(self.quickstart).items() if name != "output_dir"}

    def judging(self, half: str) -> dict[str, Any]:
        """Return the settings that decide what a snapshot is given; with others it is judged again."""
        return {
            "messages": half,
            "held_out_samples": self.held_out_samples,
            "model": self.model,
            "dtype": self.dtype,
            "feedback": self.feedback,
        }

    @property
    def reward_models(self) -> dict[str, Path]:
        """Folder of the reward model for each side: an adapter, and the same merged."""
        return {"own": self.folder / REWARD_MODEL, "trl": self.folder / "reward_merged"}

    def seconds(self, side: str) -> float:
        """Return the seconds of training in a run that counts."""
        return 60 * (self.minutes if side == "own" else self.peer_minutes)

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the experiment."""
        (self.folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# Expected time


def expected_seconds(experiment: Experiment, speed: Speed) -> dict[str, float]:
    """Return the seconds of each stage, at this speed, in an empty folder.

    An iteration of TRL counts as two of hf_rlhf.
    """
    args = experiment.quickstart
    stages = Plan(args, speed).seconds
    messages = TINY_MESSAGES if experiment.tiny else len(quickstart_prompts()["test"])
    replies = experiment.held_out_samples * messages // len(HALVES)
    judging = speed.load + speed.replies(replies, replies, args.max_completion_length) + 3 * replies * speed.forward
    begin = 2 * speed.load + SECONDS_TO_BEGIN
    tries = len(experiment.sides) * (2 if experiment.tiny else len(POLICY_SETTINGS) + VARIANTS_TRIED)
    count = len(experiment.seeds) * len(experiment.sides)
    # Snapshots grow further apart, and the first ones are due before an iteration can have ended.
    reply = (stages[POLICY] - 2 * speed.load) / args.size.ppo_iterations / ROLLOUT_SIZE
    iterations = max(experiment.seconds("own") / (reply * experiment.rollout_batch_size), 1.0)
    snapshots = 1 + min(math.log(iterations) / -math.log(FIRST_SNAPSHOT), 1.0) * (experiment.snapshots - 1)
    return {
        "prepare": stages[CANDIDATES] + stages[REWARD_MODEL] + 6 * speed.load,
        "search": tries * (60 * experiment.search_minutes + begin + 2 * judging) if experiment.search_minutes else 0.0,
        "run": len(experiment.seeds) * sum(experiment.seconds(side) + begin for side in experiment.sides),
        "judge": (1 + count * snapshots) * judging,
        "plot": 2.0,
    }


def say_expected_time(experiment: Experiment, stages: Sequence[str]) -> None:
    """Measure this machine and print how long the stages take."""
    seconds = expected_seconds(experiment, measure_speed(experiment.quickstart))
    parts = ", ".join(f"{stage} {duration(seconds[stage])}" for stage in stages)
    total = duration(sum(seconds[stage] for stage in stages))
    print(f"expected: about {total} ({parts}); what {experiment.folder} has already is not done again", flush=True)


# prepare


def prepare(experiment: Experiment) -> None:
    """Sample replies, have them compared, and train the reward model: once as an adapter, then merged for TRL."""
    args, folder, settings = experiment.quickstart, experiment.folder, experiment.feedback
    run_stage(folder / CANDIDATES, settings, lambda scratch: sample_candidates(args, folder, scratch))
    run_stage(folder / PREFERENCES, settings, lambda scratch: _preferences(args, folder, scratch))
    run_stage(folder / REWARD_MODEL, settings, lambda scratch: train_reward_model(args, folder, scratch))
    remove_checkpoints(folder / REWARD_MODEL)
    tokenizer = load_tokenizer(args.model_name_or_path)
    tokenizer.save_pretrained(folder / "tokenizer")
    texts = {split: [chat_text(text, tokenizer) for text in texts] for split, texts in quickstart_prompts().items()}
    for split, prompts in texts.items():
        experiment.write(f"{split}_prompts.json", prompts)
    with progress_of(1, "     merging the reward model, and how well both forms agree"):
        run_stage(experiment.reward_models["trl"], settings, lambda scratch: _merge(experiment, scratch))
        experiment.write("reward_model.json", agreement(experiment))


def chat_text(text: str, tokenizer) -> str:
    """Return a message as the text that the chat template makes of it.

    Plain text is read in one way by both sides: TRL's PPO takes tokens, and its reward model reads them as they are.
    """
    return tokenizer.apply_chat_template(as_messages(text), add_generation_prompt=True, tokenize=False)


def _preferences(args: QuickstartArguments, root: Path, folder: Path) -> None:
    """Like the quickstart's stage, with prompts and replies as text."""
    judge_candidates(args, root, folder)
    tokenizer = load_tokenizer(args.model_name_or_path)
    for split in ("train", "test"):
        rows = [
            {
                "prompt": chat_text(row["prompt"][-1]["content"], tokenizer),
                **{side: row[side][0]["content"] for side in ("chosen", "rejected")},
            }
            for row in read_json_lines(folder / f"{split}.jsonl")
        ]
        write_json_lines(folder / f"{split}.jsonl", rows)


def _merge(experiment: Experiment, folder: Path) -> None:
    """Merge in float32, so that nothing is lost before the model is loaded.

    Only then is lost what a bfloat16 weight cannot take up.
    """
    scorer, tokenizer = load_reward_model(str(experiment.reward_models["own"]), dtype="float32")
    scorer.model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def agreement(experiment: Experiment) -> dict[str, float]:
    """Return how alike the adapter and the merged model judge held-out pairs, each in the dtype of the runs."""
    rows = read_json_lines(experiment.folder / PREFERENCES / "test.jsonl")
    margins = []
    for place in experiment.reward_models.values():
        scorer, tokenizer = load_reward_model(str(place), dtype=experiment.dtype)
        reward = LearnedReward(scorer, tokenizer, device=scorer.model.to(current_device()).device)
        chosen, rejected = (
            torch.tensor(reward([row["prompt"] for row in rows], [row[name] for row in rows]))
            for name in ("chosen", "rejected")
        )
        margins.append(chosen - rejected)
    return {
        "accuracy": (margins[0] > 0).float().mean().item(),
        "accuracy_merged": (margins[1] > 0).float().mean().item(),
        "correlation": torch.corrcoef(torch.stack(margins))[0, 1].item() if len(rows) > 1 else 1.0,
        "pairs": len(rows),
    }


# Training


def train(experiment: Experiment, side: str, setting: Setting, seed: int, seconds: float, folder: Path) -> str | None:
    """Train in a process of its own, unless the result for the same task is there; returns what went wrong.

    A run whose training broke off has a result, too: what it reached until then.
    """
    args = experiment.quickstart
    task = Task(
        model=resolve_model(experiment.model),
        tokenizer=str(experiment.folder / "tokenizer"),
        reward_model=str(experiment.reward_models[side]),
        prompts=str(experiment.folder / "train_prompts.json"),
        output_dir=str(folder),
        dtype=experiment.dtype,
        seed=seed,
        seconds=seconds,
        snapshots=experiment.snapshots,
        rollout_batch_size=experiment.rollout_batch_size,
        max_completion_length=args.max_completion_length,
        temperature=args.temperature,
        kl_coef=experiment.kl_coef,
        lora=lora_arguments(resolve_model(experiment.model), setting.lora_layers),
        setting=setting,
        feedback=experiment.feedback,
    )
    if (result := read(folder / RESULT_FILE)) and result["task"] == json.loads(json.dumps(asdict(task))):
        return result["failed"]
    clear(folder)
    (folder / "task.json").write_text(json.dumps(asdict(task), indent=2) + "\n", encoding="utf-8")
    python, environment = peer_process(experiment) if side == "trl" else own_process()
    command = [python, str(REPOSITORY / "benchmarks" / "workloads" / FILES[side]), str(folder / "task.json")]
    limit = 3 * seconds + SECONDS_TO_LOAD
    name = f"train {folder.relative_to(experiment.folder)}"
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        try:
            with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as process:
                status = wait(process, name, folder / "log.txt", limit)
        except OSError as error:
            return str(error)
    if status == 0:
        return read(folder / RESULT_FILE)["failed"]
    if status is None:
        return f"killed after {limit:.0f} s"
    said = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
    return f"{said[-2000:]}\nexit status {status}"


def wait(process: subprocess.Popen[bytes], name: str, log: Path, limit: float) -> int | None:
    """Print how far a run is every few seconds.

    Return its exit status, or None if `limit` seconds passed; it is killed.
    """
    begun = time.monotonic()
    try:
        while time.monotonic() - begun < limit:
            try:
                return process.wait(timeout=SECONDS_OF_LINE)
            except subprocess.TimeoutExpired:
                passed = time.monotonic() - begun
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                done = [line for line in lines if line.startswith(ITERATION)]
                print(f"{name}, {passed:.0f} s: {done[-1] if done else 'before its first iteration'}", flush=True)
        return None
    finally:
        process.kill()  # nothing where it has ended


def own_process() -> tuple[str, dict[str, str]]:
    """Return the Python of this side and its environment."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return sys.executable, environment_of(os.pathsep.join(paths))


def peer_process(experiment: Experiment) -> tuple[str, dict[str, str]]:
    """Return TRL's Python and its environment: without a folder for its path, one of its own and complete."""
    assert experiment.peer
    python, path = experiment.peer
    paths = [path, *filter(None, [os.environ.get("PYTHONPATH")])] if path else []
    return python, environment_of(os.pathsep.join(paths))


def environment_of(python_path: str) -> dict[str, str]:
    """Return the environment of a run."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": python_path}


def clear(folder: Path) -> None:
    """Make an empty folder for a run; what an earlier task left there is renamed out of the way, and never deleted."""
    if folder.exists():
        number = sum(1 for _ in folder.parent.glob(f"{folder.name}.before*"))
        folder.rename(folder.with_name(f"{folder.name}.before{number + 1}"))
    folder.mkdir(parents=True)


def read(file: Path) -> Any:
    """Return what a JSON file holds; None where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


# judge


def judge_run(experiment: Experiment, folder: Path, half: str, last: int | None = None) -> list[dict[str, Any]]:
    """Return the points of a run's curve.

    They are its snapshots (the last so many of them), judged once on a half of the messages.
    """
    file = folder / JUDGED_FILE
    known, judging = read(file), experiment.judging(half)
    points = known["points"] if known and known["judging"] == judging else {}
    snapshots = read(folder / RESULT_FILE)["snapshots"]
    for number, snapshot in enumerate(snapshots, start=1):
        key = str(snapshot["iteration"])
        if key not in points and (last is None or number > len(snapshots) - last):
            place = folder / "snapshots" / key
            name = f"judge {folder.relative_to(experiment.folder)}, snapshot {number} of {len(snapshots)}"
            points[key] = {**snapshot, "folder": str(place), **measure(experiment, place, half, name)}
            file.write_text(json.dumps({"judging": judging, "points": points}, indent=2) + "\n", encoding="utf-8")
    return sorted(points.values(), key=lambda point: point["seconds"])


def judge_start(experiment: Experiment) -> dict[str, Any]:
    """Return the first point of every curve: the model that training starts from."""
    known, judging = read(experiment.folder / "start.json"), experiment.judging(RESULT)
    if not known or known.get("judging") != judging:
        known = {"judging": judging, "seconds": 0.0, **measure(experiment, None, RESULT, "judge the start")}
        experiment.write("start.json", known)
    return known


def messages_of(texts: Sequence[str], half: str) -> Sequence[str]:
    """Return the held-out messages of a half: one of the two on each topic, which follow each other in the list."""
    return texts[HALVES.index(half) :: len(HALVES)]


def measure(experiment: Experiment, adapter: Path | None, half: str, name: str) -> dict[str, float]:
    """Return means over replies to half of the held-out messages, and the standard error of the mean reward.

    The error is that of a mean over messages, since replies to the same message are alike.
    Replies of every snapshot are sampled with the same random numbers, which are others for the other half.
    """
    held_out = read(experiment.folder / "test_prompts.json")
    prompts = messages_of(held_out[:TINY_MESSAGES] if experiment.tiny else held_out, half)
    samples = experiment.held_out_samples
    with progress_of(len(prompts) * samples * experiment.quickstart.max_completion_length, name) as advance:
        side = replies_of(experiment, adapter, [text for text in prompts for _ in range(samples)], half, advance)
    rewards = torch.tensor(side.rewards).view(len(prompts), samples).mean(dim=1)  # of each message
    return {
        "reward": rewards.mean().item(),
        "reward_error": (rewards.std() / len(prompts) ** 0.5).item(),
        "kl": fmean(side.kl),
        "annotator": fmean(side.judgements),
        "finished": fmean(trajectory.completion.stopped for trajectory in side.trajectories),
    }


def replies_of(
    experiment: Experiment, adapter: Path | None, prompts: Sequence[str], half: str, advance: Callable[[int], None]
) -> Side:
    """Return a reply to each prompt by the start, or with an adapter on it, and what the reward model gives it."""
    from peft import LoraConfig, PeftModel, get_peft_model

    args = experiment.quickstart
    base = load_causal_lm(experiment.model, dtype=experiment.dtype, **args.model_kwargs)
    if adapter is None:
        model: Any = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **lora_arguments(experiment.model, "all")))
    else:
        model = PeftModel.from_pretrained(base, str(adapter))
    model.to(current_device())
    tokenizer = load_tokenizer(str(experiment.folder / "tokenizer"))
    scorer, reward_tokenizer = load_reward_model(str(experiment.reward_models["own"]), policy=model)
    rows = [{"prompt": text, "prompt_ids": tokenizer(text)["input_ids"]} for text in prompts]
    annotator = CheerfulAnnotator()
    return measure_side(
        model,
        TransformersEngine(model, tokenizer, on_tokens=advance),
        rows,
        args.sampling,
        [row_seed(args.seed, half, number) for number in range(len(rows))],
        adapter=adapter is not None,
        judge=lambda trajectory: annotator.rate(trajectory.text, trajectory.completion.stopped),
        reward=LearnedReward(scorer, reward_tokenizer, device=current_device()),
    )


# search


def search(experiment: Experiment) -> dict[str, Any]:
    """Try settings on each side for the same short time, and keep the one whose replies earn most within the KL bound.

    First `POLICY_SETTINGS`, the same on both sides; then as many `VARIANTS` of the best one on each side. Without time
    for a search, each side takes what an earlier search left in settings.json, or the first setting.
    """
    found: dict[str, Any] = read(experiment.folder / "settings.json") or {}
    for side in experiment.sides:
        settings = [changed(setting, experiment.dtype, value_rate=VALUE_RATE[side]) for setting in POLICY_SETTINGS]
        if not experiment.search_minutes:
            found.setdefault(side, {"setting": asdict(settings[0]), "tried": []})
            print(f"no search, {NAMES[side]}: {words(Setting(**found[side]['setting']))}", flush=True)
            continue
        tried = [attempt(experiment, side, setting) for setting in (settings[:1] if experiment.tiny else settings)]
        variants = variants_of(side, Setting(**best(tried, experiment.kl_bound)["setting"]), experiment.dtype)
        tried += [attempt(experiment, side, setting) for setting in (variants[:1] if experiment.tiny else variants)]
        found[side] = {"setting": best(tried, experiment.kl_bound)["setting"], "tried": tried}
        experiment.write("settings.json", found)
    experiment.write("settings.json", found)
    return found


def variants_of(side: str, setting: Setting, dtype: str) -> list[Setting]:
    """Return the changes of a setting that a side tries: `VARIANTS_TRIED`, without repeats."""
    variants = []
    for change in VARIANTS[side]:
        variant = changed(setting, dtype, **change)
        if variant != setting and variant not in variants:
            variants.append(variant)
    return variants[:VARIANTS_TRIED]


def changed(setting: Setting, dtype: str, value_rate: float | None = None, **fields: Any) -> Setting:
    """Return a setting with other fields, in which None stands for the policy's own rate and dtype.

    Args:
        setting: the one to change.
        dtype: of the policy.
        value_rate: learning rate of the critic or the value model, times the policy's; None leaves it.
        fields: of the setting.
    """
    setting = replace(setting, **fields)
    if value_rate is not None:
        rate = None if value_rate == 1 else setting.learning_rate * value_rate
        setting = replace(setting, value_learning_rate=rate)
    return replace(setting, value_dtype=None) if setting.value_dtype == dtype else setting


def attempt(experiment: Experiment, side: str, setting: Setting) -> dict[str, Any]:
    """Return the reward and the KL with which a short run of a setting ends, its last two snapshots together."""
    name = "_".join(f"{value:g}" if isinstance(value, float) else str(value) for value in asdict(setting).values())
    folder = experiment.folder / "search" / side / name
    failure = train(experiment, side, setting, SEARCH_SEED, 60 * experiment.search_minutes, folder)
    outcome: dict[str, Any] = {
        "setting": asdict(setting),
        "failed": failure,
        "iterations": None,
        "reward": None,
        "kl": None,
    }
    if failure is None:
        points = judge_run(experiment, folder, SEARCH, last=2)[-2:]
        outcome |= {name: fmean(point[name] for point in points) for name in ("reward", "kl")}
        outcome["iterations"] = read(folder / RESULT_FILE)["iterations"]
    shown = f"failed: {failure}" if failure else f"reward {outcome['reward']:.2f}, KL {outcome['kl']:.1f}"
    print(f"search, {NAMES[side]}, {words(setting)}: {shown}", flush=True)
    return outcome


def best(tried: Sequence[dict[str, Any]], kl_bound: float) -> dict[str, Any]:
    """Return the attempt with the highest reward within the KL bound; if none is within, the one with the lowest KL."""
    done = [outcome for outcome in tried if outcome["failed"] is None]
    if not done:
        raise SystemExit(f"every setting failed; the last one:\n{tried[-1]['failed']}")
    within = [outcome for outcome in done if outcome["kl"] <= kl_bound]
    return (
        max(within, key=lambda outcome: outcome["reward"]) if within else min(done, key=lambda outcome: outcome["kl"])
    )


def words(setting: Setting) -> str:
    """Return a setting as a person reads it."""
    blocks = "all blocks" if setting.lora_layers == "all" else f"the last {setting.lora_layers} of the blocks"
    value = setting.value_learning_rate
    parts = [
        f"learning rate {setting.learning_rate:g}{'' if value is None else f' (critic {value:g})'}",
        f"{setting.num_ppo_epochs} epochs of {setting.num_mini_batches} minibatches",
        f"LoRA on {blocks}",
        *(["critic an adapter"] if setting.critic == "adapter" else []),
        *([f"value model in {setting.value_dtype}"] if setting.value_dtype else []),
    ]
    return ", ".join(parts)


# run


def runs(experiment: Experiment) -> list[tuple[str, int]]:
    """Return side and seed of every run, in order: the side that begins changes with each seed."""
    order = []
    for number, seed in enumerate(experiment.seeds):
        sides = experiment.sides if number % 2 == 0 else experiment.sides[::-1]
        order += [(side, seed) for side in sides]
    return order


def run_folder(experiment: Experiment, side: str, seed: int) -> Path:
    """Return where a run is kept."""
    return experiment.folder / "runs" / f"{side}_{seed}"


def run(experiment: Experiment) -> None:
    """Train every seed on every side with the settings that the search found."""
    settings = read(experiment.folder / "settings.json") or {}
    if any(side not in settings for side in experiment.sides):
        raise SystemExit(
            f"{experiment.folder} has no settings of {', '.join(experiment.sides)}; run --stage search first"
        )
    for side, seed in runs(experiment):
        setting = Setting(**settings[side]["setting"])
        folder = run_folder(experiment, side, seed)
        failure = train(experiment, side, setting, seed, experiment.seconds(side), folder)
        result = read(folder / RESULT_FILE)
        if not result or not result["snapshots"]:
            raise SystemExit(f"{NAMES[side]}, seed {seed}, failed:\n{failure}")
        last = result["snapshots"][-1]["seconds"]
        end = f", then it broke off: {failure}" if failure else ""
        print(f"run, {NAMES[side]}, seed {seed}: {result['iterations']} iterations in {last:.0f} s{end}", flush=True)


def judge(experiment: Experiment) -> None:
    """Judge every snapshot of every run."""
    start = judge_start(experiment)
    print(f"judge, start: reward {start['reward']:.2f}", flush=True)
    for side, seed in runs(experiment):
        points = judge_run(experiment, run_folder(experiment, side, seed), RESULT)
        curve = ", ".join(f"{point['reward']:.2f}" for point in points)
        print(f"judge, {NAMES[side]}, seed {seed}: {curve}", flush=True)


# plot


class Reached(NamedTuple):
    """Time at which a curve reaches the level, and the KL and the standard error of the reward there."""

    seconds: float
    kl: float
    reward_error: float


def reached(points: Sequence[dict[str, Any]], level: float, kl_bound: float) -> Reached | None:
    """Return when a curve first has a reward of `level` at a KL of at most `kl_bound`, on lines between its points.

    The standard error is on the line too: snapshots answer the same messages, so their errors do not cancel.
    """
    for before, after in itertools.pairwise(points):
        if after["reward"] < level:
            continue
        rise = after["reward"] - before["reward"]
        share = (level - before["reward"]) / rise if before["reward"] < level else 1.0
        at = Reached(*(before[name] + share * (after[name] - before[name]) for name in Reached._fields))
        if at.kl <= kl_bound:
            return at
    return None


def end_of(points: Sequence[dict[str, Any]], name: str, kl_bound: float) -> float:
    """Return the mean of a curve's last two snapshots within the KL bound; its start where none is."""
    within = [point for point in points[1:] if point["kl"] <= kl_bound] or points[:1]
    return fmean(point[name] for point in within[-2:])


def summarize(experiment: Experiment) -> dict[str, Any]:
    """Return every curve, the level and when each side reaches it."""
    start, bound = read(experiment.folder / "start.json"), experiment.kl_bound
    curves = {
        side: {
            seed: [start, *judge_run(experiment, run_folder(experiment, side, seed), RESULT)]
            for seed in experiment.seeds
        }
        for side in experiment.sides
    }
    ends = {side: median(end_of(points, "reward", bound) for points in curves[side].values()) for side in curves}
    level = start["reward"] + experiment.level * (max(ends.values()) - start["reward"])
    summary: dict[str, Any] = {"start": start["reward"], "level": level, "kl_bound": bound, "sides": {}}
    for side, of_seed in curves.items():
        results = [read(run_folder(experiment, side, seed) / RESULT_FILE) for seed in of_seed]
        times = {seed: reached(points, level, bound) for seed, points in of_seed.items()}
        middle = median_of(list(times.values()))
        summary["sides"][side] = {
            **{name: {seed: at and getattr(at, name) for seed, at in times.items()} for name in Reached._fields},
            **{f"{name}_median": middle and getattr(middle, name) for name in Reached._fields},
            "failed": {
                seed: result["failed"] for seed, result in zip(of_seed, results, strict=True) if result["failed"]
            },
            "seconds_trained": median(result["snapshots"][-1]["seconds"] for result in results),
            "iterations": median(result["iterations"] for result in results),
            "end_reward": ends[side],
            "end_kl": median(end_of(points, "kl", bound) for points in of_seed.values()),
            "end_annotator": median(end_of(points, "annotator", bound) for points in of_seed.values()),
            "peak_gb": median(result["peak_bytes"] for result in results) / 1e9,
            "setting": results[0]["task"]["setting"],
            "versions": results[0]["versions"],
            "curves": of_seed,
        }
    return summary


def median_of(times: Sequence[Reached | None]) -> Reached | None:
    """Return the run with the median of the seconds, or the mean of the two in the middle.

    A run that does not reach the level is later than all others. None: it is in the middle.
    """
    ordered = sorted(times, key=lambda at: at.seconds if at else float("inf"))
    middle = ordered[(len(times) - 1) // 2 : len(times) // 2 + 1]
    reaching = [at for at in middle if at]
    return Reached(*map(fmean, zip(*reaching, strict=True))) if len(reaching) == len(middle) else None


def table(summary: dict[str, Any]) -> str:
    """Return the comparison as Markdown."""
    sides = summary["sides"]
    lines = [
        "| | " + " | ".join(NAMES[side] for side in sides) + " |",
        "|---|" + "---|" * len(sides),
        row("settings", sides, lambda of: words(Setting(**of["setting"]))),
        row(f"seconds to a held-out reward of {summary['level']:.2f}: median", sides, seconds_shown),
        row("of each seed", sides, lambda of: ", ".join(number(value, 0) for value in of["seconds"].values())),
        row(
            "standard error of the reward then, of each seed",
            sides,
            lambda of: ", ".join(number(value, 2) for value in of["reward_error"].values()),
        ),
        row("KL then of the median seed, nats a reply", sides, lambda of: number(of["kl_median"], 1)),
        row("peak memory, GB", sides, lambda of: number(of["peak_gb"], 2)),
        row("iterations, seconds trained", sides, lambda of: f"{of['iterations']:.0f}, {of['seconds_trained']:.0f}"),
        row(f"reward at the end (start {summary['start']:.2f})", sides, lambda of: number(of["end_reward"], 2)),
        row("KL at the end", sides, lambda of: number(of["end_kl"], 1)),
        row("seeds whose training broke off", sides, lambda of: ", ".join(map(str, of["failed"])) or "none"),
        row("annotator's rating at the end", sides, lambda of: number(of["end_annotator"], 2)),
    ]
    if len(sides) == len(NAMES):
        lines += ["", comparison(sides["own"], sides["trl"])]
    return "\n".join(lines)


def search_table(found: dict[str, Any]) -> str:
    """Return every setting that the search tried as Markdown, the chosen ones in bold."""
    lines = ["| | tried in the search | iterations | reward | KL |", "|---|---|---|---|---|"]
    for side, of in found.items():
        for outcome in of["tried"]:
            shown = words(Setting(**outcome["setting"]))
            shown = f"**{shown}**" if outcome["setting"] == of["setting"] else shown
            numbers = [number(outcome[name], digits) for name, digits in (("iterations", 0), ("reward", 2), ("kl", 1))]
            lines.append(f"| {NAMES[side]} | {shown} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def row(name: str, sides: dict[str, Any], shown: Callable[[dict[str, Any]], str]) -> str:
    """Return one line of the table."""
    return f"| {name} | " + " | ".join(shown(of) for of in sides.values()) + " |"


def number(value: float | None, digits: int) -> str:
    """Return a number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def seconds_shown(of: dict[str, Any]) -> str:
    """Return the median seconds, or that the level was not reached in most runs."""
    return number(of["seconds_median"], 0) if of["seconds_median"] else f"not within {of['seconds_trained']:.0f}"


def comparison(own: dict[str, Any], trl: dict[str, Any]) -> str:
    """Return what the table says, in a sentence."""
    memory = f"{own['peak_gb'] / trl['peak_gb']:.2f} of its memory"
    if own["seconds_median"] is None:
        return f"hf_rlhf does not reach the level in most seeds; {memory}."
    if trl["seconds_median"] is None:
        ratio = trl["seconds_trained"] / own["seconds_median"]
        return (
            f"TRL does not reach the level in most seeds; hf_rlhf is more than {ratio:.1f} times as fast, with"
            f" {memory}."
        )
    ratio = trl["seconds_median"] / own["seconds_median"]
    higher = "no higher" if own["kl_median"] <= trl["kl_median"] else "higher"
    return f"hf_rlhf is {ratio:.1f} times as fast to the same reward, at a KL that is {higher}, with {memory}."


def plot(experiment: Experiment) -> None:
    """Write the numbers, the table and the picture, and print the table."""
    summary = summarize(experiment)
    experiment.write("time_to_reward.json", summary)
    found = read(experiment.folder / "settings.json")
    text = table(summary) + "\n"
    if any(of["tried"] for of in found.values()):
        text += f"\n{search_table(found)}\n"
    (experiment.folder / "time_to_reward.md").write_text(text, encoding="utf-8")
    draw(summary, experiment.folder / "time_to_reward.png")
    print("\n" + text)


def draw(summary: dict[str, Any], file: Path) -> None:
    """Draw held-out reward over seconds and over KL: each seed, its standard error, and the median of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (over_time, over_kl) = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for side, of in summary["sides"].items():
        color, curves = COLORS[side], list(of["curves"].values())
        for points in curves:
            rewards = [point["reward"] for point in points]
            seconds, errors = ([point[name] for point in points] for name in ("seconds", "reward_error"))
            low, high = (
                [reward + sign * error for reward, error in zip(rewards, errors, strict=True)] for sign in (-1, 1)
            )
            over_time.plot(seconds, rewards, color=color, alpha=0.3, linewidth=1)
            over_time.fill_between(seconds, low, high, color=color, alpha=0.08, linewidth=0)
            over_kl.plot([point["kl"] for point in points], rewards, color=color, alpha=0.45, linewidth=1, marker=".")
        whole = [points for seed, points in of["curves"].items() if seed not in of["failed"]]
        seconds, middle = median_curve(whole or curves)
        memory = f"{of['peak_gb']:.1f} GB"
        over_time.plot(seconds, middle, color=color, linewidth=2.2, label=f"{NAMES[side]}, {memory}")
        if of["seconds_median"]:
            over_time.plot(of["seconds_median"], summary["level"], "o", color=color, markersize=8, zorder=4)
            over_time.annotate(
                f"{of['seconds_median']:.0f} s",
                (of["seconds_median"], summary["level"]),
                xytext=(7, -14),
                textcoords="offset points",
                color=color,
                fontweight="bold",
            )
    for axes in (over_time, over_kl):
        axes.axhline(summary["level"], color="#555555", linestyle="--", linewidth=0.9, zorder=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right = over_time.get_xlim()[1]
    over_time.text(right, summary["level"], "level ", ha="right", va="bottom", color="#555555", fontsize=9)
    over_time.set_xlim(0, right)
    over_time.set_xlabel("seconds of training")
    over_time.set_ylabel("reward of held-out replies")
    over_kl.set_xlabel("KL to the start (nats a reply)")
    if over_kl.get_xlim()[1] > summary["kl_bound"]:
        over_kl.axvline(summary["kl_bound"], color="#555555", linestyle=":", linewidth=0.9, zorder=0)
        low = over_kl.get_ylim()[0]
        over_kl.text(summary["kl_bound"], low, "bound ", ha="right", va="bottom", color="#555555", fontsize=9)
    title = "thin: seeds ± standard error; thick: their median"
    over_time.legend(frameon=False, loc="lower right", title=title, title_fontsize=9)
    figure.savefig(file, dpi=120)


def median_curve(curves: Sequence[Sequence[dict[str, Any]]], count: int = 60) -> tuple[list[float], list[float]]:
    """Return the median of several curves at common times, each on lines between its points."""
    import numpy

    end = min(points[-1]["seconds"] for points in curves)
    seconds = numpy.linspace(0.0, end, count)
    rewards = [
        numpy.interp(seconds, [point["seconds"] for point in points], [point["reward"] for point in points])
        for points in curves
    ]
    return seconds.tolist(), numpy.median(rewards, axis=0).tolist()


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that decide what is trained on and how it is judged."""
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="an instruct model: a folder, or the embedded one")
    parser.add_argument("--dtype", help="of the base; by default what this machine multiplies in hardware")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=1.0 if on_gpu else 6.0, help="of a run of hf_rlhf")
    parser.add_argument("--snapshots", type=int, default=12, help="of a run, about: 2 or more")
    parser.add_argument("--rollout_batch_size", type=int, default=128 if on_gpu else 32, help="replies of an iteration")
    parser.add_argument("--share", type=float, default=1.0 if on_gpu else 0.6, help="of the quickstart's feedback")
    parser.add_argument(
        "--held_out_samples", type=int, default=16 if on_gpu else 4, help="replies to a held-out message"
    )
    parser.add_argument("--kl_coef", type=float, default=0.03)
    parser.add_argument("--level", type=float, default=0.6, help="share of the gain that has to be reached")
    parser.add_argument("--kl_bound", type=float, default=12.0, help="nats a reply")
    parser.add_argument("--tiny", action="store_true", help="every part in two minutes, with a model of random weights")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/time_to_reward"))


def experiment_of(
    args: argparse.Namespace, peer: tuple[str, str | None] | None = None, sides: Sequence[str] = ("own",)
) -> Experiment:
    """Return the experiment that the flags describe, and make its folder."""
    if args.snapshots < 2:
        raise SystemExit(f"--snapshots {args.snapshots} is invalid: a curve has 2 or more")
    folder = args.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    values = {"peer_minutes": 2 * args.minutes, "search_minutes": 0.0}
    values |= {
        name: value
        for name, value in vars(args).items()
        if name in Experiment.__dataclass_fields__ and value is not None
    }
    if args.tiny:
        values |= {"minutes": 0.03, "peer_minutes": 0.03, "search_minutes": 0.02, "snapshots": 3, "share": 0.05}
        values |= {"rollout_batch_size": 8, "held_out_samples": 1, "seeds": args.seeds[:1], "kl_bound": 1000.0}
        values["model"] = str(tiny_model(folder))
    dtype = args.dtype or str(native_dtype(current_device())).removeprefix("torch.")
    values |= {"folder": folder, "peer": peer, "sides": sides, "dtype": "float32" if args.tiny else dtype}
    return Experiment(**values)


def parse() -> tuple[Experiment, list[str]]:
    """Return the experiment and the stages that the command line names."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=[*STAGES, "all"], default=["all"])
    add_arguments(parser)
    parser.add_argument("--peer_python", help="of an environment with trl 1.12.0")
    parser.add_argument("--peer_path", help="a folder with trl 1.12.0, to come first on the path of TRL's process")
    parser.add_argument("--peer_minutes", type=float, help="of a run of TRL; by default twice as many")
    parser.add_argument("--search_minutes", type=float, default=0.4 if on_gpu else 2.0, help="of a run; 0: no search")
    parser.add_argument("--sides", nargs="+", choices=list(NAMES), default=list(NAMES), help="those that run")
    parser.add_argument(
        "--quick", action="store_true", help="other defaults: no search, and three seeds in 45 minutes on two cores"
    )
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**(QUICK_ON_GPU if on_gpu else QUICK))
    args = parser.parse_args()
    peer = (args.peer_python or sys.executable, args.peer_path) if args.peer_python or args.peer_path else None
    sides = [side for side in NAMES if side in args.sides and (side == "own" or peer)]
    if not sides:
        parser.error("--sides trl needs --peer_python or --peer_path")
    stages = list(STAGES) if "all" in args.stage else [stage for stage in STAGES if stage in args.stage]
    return experiment_of(args, peer, sides), stages


def tiny_model(folder: Path) -> Path:
    """Return the folder of a model with random weights, made once."""
    setting = TinyModel(folder, cpu=True, tiny=True, peer_python=None)
    if not setting.model.exists():
        make_model(setting)
    return setting.model


def main() -> None:
    """Run the stages that the command line names."""
    quiet_libraries()
    experiment, stages = parse()
    if experiment.peer is None:
        print("TRL is left out: it needs --peer_python or --peer_path", flush=True)
    if stages != ["plot"]:
        say_expected_time(experiment, stages)
    for stage in stages:
        print(f"stage {stage}", flush=True)
        {"prepare": prepare, "search": search, "run": run, "judge": judge, "plot": plot}[stage](experiment)


if __name__ == "__main__":
    main()
