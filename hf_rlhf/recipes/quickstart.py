"""A small language model learns to be brief and cheerful, from feedback alone, in five stages.

candidates -> preferences -> reward model -> PPO -> evaluation. Each stage leaves its result on disk and is reused when
the command is run again.
"""

import itertools
import json
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from hf_rlhf.data.quickstart import quickstart_prompts
from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.before_after import Comparison, compare_with_start
from hf_rlhf.evaluation.reward_model import Pairs, reward_accuracy
from hf_rlhf.feedback.simulate import Candidate, CheerfulAnnotator
from hf_rlhf.hub.model_card import reward_model_card
from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_sequence_classifier, load_tokenizer, public_name
from hf_rlhf.models.precision import current_device
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.progress import duration, progress_of
from hf_rlhf.recipes.arguments import ModelArguments, RewardTrainingArguments, flag, peft_config
from hf_rlhf.recipes.quickstart_results import (
    REPORT_FILE,
    RESULTS_FILE,
    examples,
    headline,
    table,
    write_results,
)
from hf_rlhf.recipes.stages import run_stage
from hf_rlhf.records import append_json_line, iteration_rows, read_json_lines
from hf_rlhf.reward_modeling.training import adapters_in_base_dtype, make_reward_trainer, save_trained
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.rollout.stops import stop_at_end_of_turn
from hf_rlhf.types import Message, Model

SYSTEM_MESSAGE = "Reply in one short sentence."
CANDIDATES, PREFERENCES, REWARD_MODEL, POLICY = "candidates", "preferences", "reward_model", "policy"
USUAL_TIME = "about 6 to 8 minutes on two CPU cores that do nothing else"


@dataclass
class QuickstartArguments:
    """Settings of the quickstart; the defaults are made for two CPU cores."""

    output_dir: str = flag("runs/quickstart", "Where every stage leaves its result.")
    model_name_or_path: str = flag(EMBEDDED_MODEL, "An instruct model: Hub name, folder, or the embedded one.")
    seed: int = flag(0, "Of every random number.")
    candidates_per_prompt: int = flag(4, "Replies sampled to each message.")
    max_completion_length: int = flag(32, "Longest reply, in tokens.")
    temperature: float = flag(0.7, "Sampling temperature, in every stage.")
    annotator_noise: float = flag(0.05, "Temperature of the annotator's choice; 0 always takes the better reply.")
    annotator_tie_margin: float = flag(0.1, "Scores closer than this give no preference.")
    max_preferences: int = flag(400, "Preferences to train the reward model on, at most.")
    lora_target_modules: str = flag("q_proj,v_proj,o_proj", "Layers that get LoRA, by commas.")
    reward_learning_rate: float = flag(5e-4, "Peak learning rate of the reward model.")
    ppo_iterations: int = flag(18, "Iterations of PPO, 32 replies each.")
    num_ppo_epochs: int = flag(2, "Passes over the replies of an iteration.")
    ppo_learning_rate: float = flag(5e-4, "Peak learning rate of PPO.")
    kl_coef: float = flag(0.03, "Weight of the KL to the start.")

    @property
    def sampling(self) -> Sampling:
        """How replies are sampled, in every stage."""
        return Sampling(max_completion_length=self.max_completion_length, temperature=self.temperature)

    def lora(self, model: Model) -> Any:
        """Return the LoRA config of both adapters: attention only, which is enough here and half the work of every layer."""
        modules = self.lora_target_modules.split(",")
        flags = ModelArguments(model_name_or_path=self.model_name_or_path, lora_target_modules=modules)
        return peft_config(flags, model)

    @property
    def model_kwargs(self) -> dict[str, str]:
        """How the base is loaded. On a CPU, short sequences train a third faster with plain attention than with fused."""
        return {} if torch.accelerator.is_available() else {"attn_implementation": "eager"}


def run_quickstart(args: QuickstartArguments) -> dict[str, float]:
    """Run or reuse every stage and print the result; returns its numbers.

    Leaves in `args.output_dir`: candidates, preferences, reward_model, policy (with model card), report.html.
    """
    from rich.console import Console

    if args.candidates_per_prompt < 2:
        raise InputError(
            f"candidates_per_prompt={args.candidates_per_prompt} must be at least 2: one to prefer to another"
        )
    if args.temperature <= 0 or args.ppo_iterations < 1:
        raise InputError(
            "temperature must be above 0 and ppo_iterations at least 1: replies have to differ to be compared"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("the quickstart is one process; start it without a launcher")
    console, started = Console(), time.perf_counter()
    root = Path(args.output_dir)
    settings: dict[str, Any] = {"version": 2}
    stages = (
        (CANDIDATES, "Sample several replies to each message", _candidates, "model_name_or_path seed candidates_per_prompt"
         " max_completion_length temperature"),
        (PREFERENCES, "A simulated annotator prefers one of two", _preferences, "annotator_noise annotator_tie_margin max_preferences"),
        (REWARD_MODEL, "Train a reward model on the preferences", _reward_model, "lora_target_modules reward_learning_rate"),
        (POLICY, "Train the policy with PPO against the reward model", _policy, "ppo_iterations num_ppo_epochs ppo_learning_rate kl_coef"),
    )  # fmt: skip
    console.print(
        f"Five stages, {USUAL_TIME}; each leaves its result in {root}, and is reused when it is there already."
    )

    def announce(number: int, title: str) -> None:
        passed = f"  [dim]({duration(time.perf_counter() - started)} so far)[/dim]" if number > 1 else ""
        console.print(f"\n[bold]Stage {number} of 5: {title}[/bold]{passed}")

    for number, (name, title, make, names) in enumerate(stages, start=1):
        announce(number, title)
        settings = settings | {key: getattr(args, key) for key in names.split()}
        begun = time.perf_counter()
        ran = run_stage(root / name, settings, lambda folder, make=make: make(args, root, folder))
        seconds = duration(time.perf_counter() - begun) if ran else "reused"
        console.print(f"     [dim]{_outcome(root / name)}  ({seconds}, {root / name})[/dim]")
    announce(5, "Compare with the model it started from, on messages it never saw")
    comparison = compare(args, root / REWARD_MODEL, root / POLICY)
    rows, title = comparison.rows("annotator"), headline(comparison)
    write_results(
        root,
        comparison,
        rows,
        title,
        policy=root / POLICY,
        reward_model=root / REWARD_MODEL,
        settings={name: value for name, value in asdict(args).items() if name != "output_dir"},
        system_message=SYSTEM_MESSAGE,
    )
    console.print(table(rows))
    console.print(examples(comparison))
    console.print(f"[bold]{title}[/bold]\n")
    console.print(
        f"Look at it:   {root / REPORT_FILE}\nThe policy:   {root / POLICY}  (adapter, value head, model card)"
    )
    console.print(f"[dim]Finished in {duration(time.perf_counter() - started)}.[/dim]")
    return json.loads((root / RESULTS_FILE).read_text(encoding="utf-8"))


def as_messages(text: str) -> list[Message]:
    """A message of the quickstart as a conversation."""
    return [{"role": "system", "content": SYSTEM_MESSAGE}, {"role": "user", "content": text}]


def _candidates(args: QuickstartArguments, root: Path, folder: Path) -> None:
    """Stage 1: `candidates_per_prompt` replies of the untrained model to every message."""
    model: Model = load_causal_lm(args.model_name_or_path, **args.model_kwargs)
    model.to(current_device())
    tokenizer = load_tokenizer(args.model_name_or_path)
    if not tokenizer.chat_template:
        raise InputError(f"{args.model_name_or_path!r} has no chat template; the quickstart needs an instruct model")
    for split, texts in quickstart_prompts().items():
        rows = [_row(text, tokenizer) for text in texts for _ in range(args.candidates_per_prompt)]
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


def _row(text: str, tokenizer) -> dict[str, Any]:
    prompt = as_messages(text)
    encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
    return {"text": text, "prompt": prompt, "prompt_ids": encoded["input_ids"]}


def _preferences(args: QuickstartArguments, root: Path, folder: Path) -> None:
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


def _reward_model(args: QuickstartArguments, root: Path, folder: Path) -> None:
    """Stage 3: a LoRA reward model on the same base, by trl's RewardTrainer."""
    from datasets import Dataset

    tokenizer = load_tokenizer(args.model_name_or_path)
    train, test = (
        Dataset.from_list(read_json_lines(root / PREFERENCES / f"{split}.jsonl")) for split in ("train", "test")
    )
    training = RewardTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        learning_rate=args.reward_learning_rate,
        warmup_steps=5,
        center_rewards_coefficient=0.01,
        num_train_epochs=1,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
    )
    set_seed(args.seed)  # before the score head's random start
    classifier = load_sequence_classifier(args.model_name_or_path, **args.model_kwargs)
    trainer = make_reward_trainer(classifier, tokenizer, training, train, peft_config=args.lora(classifier))
    with adapters_in_base_dtype(trainer.model):
        trainer.train()
    save_trained(trainer, folder)
    scorer, _ = load_reward_model(str(folder), **args.model_kwargs)
    scorer.model.to(current_device())
    accuracy = reward_accuracy(LearnedReward(scorer, tokenizer, device=current_device()), Pairs.from_dataset(test))
    (folder / "evaluation.json").write_text(json.dumps(accuracy, indent=2) + "\n", encoding="utf-8")
    card = reward_model_card(
        model_id=str(root / REWARD_MODEL),
        base_model=public_name(args.model_name_or_path),
        results={"held-out accuracy": f"{accuracy['eval_accuracy']:.3f} ({accuracy['eval_rows']:.0f} pairs)"},
        settings={"learning_rate": training.learning_rate, "pairs": len(train), "seed": args.seed},
        demonstration=True,
        simulated_annotator=True,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _policy(args: QuickstartArguments, root: Path, folder: Path) -> None:
    """Stage 4."""
    train_policy(args, root / REWARD_MODEL, folder)


def train_policy(args: QuickstartArguments, reward_model: Path, folder: Path, **flags: Any) -> None:
    """PPO against `reward_model`; `flags` go to `PPOConfig`, before what `args` says.

    The policy's adapter and the reward model's share one base; with both off it is the reference.
    """
    from datasets import Dataset

    prompts = [{"prompt": as_messages(text)} for text in quickstart_prompts()["train"]]
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "num_mini_batches": 2,
        "num_ppo_epochs": args.num_ppo_epochs,
        "max_steps": args.ppo_iterations * 2 * args.num_ppo_epochs,
        "learning_rate": args.ppo_learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 4,
        "kl_coef": args.kl_coef,
        "max_prompt_length": 128,
        "max_completion_length": args.max_completion_length,
        "temperature": args.temperature,
        "save_strategy": "no",
        "report_to": "none",
        "seed": args.seed,
    }
    training = PPOConfig(**(settings | flags))
    policy = load_causal_lm(args.model_name_or_path, **args.model_kwargs)
    trainer = PPOTrainer(
        policy,
        str(reward_model),
        training,
        Dataset.from_list(prompts),
        processing_class=load_tokenizer(args.model_name_or_path),
        peft_config=args.lora(policy),
    )
    trainer.train()
    trainer.save_model()


def _outcome(folder: Path) -> str:
    """What a finished stage holds, in a few words."""
    if folder.name in (CANDIDATES, PREFERENCES):
        rows = len((folder / "train.jsonl").read_text(encoding="utf-8").splitlines())
        held_out = len((folder / "test.jsonl").read_text(encoding="utf-8").splitlines())
        noun = "replies" if folder.name == CANDIDATES else "preferences"
        return f"{rows} {noun}, {held_out} held out"
    if folder.name == REWARD_MODEL:
        accuracy = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        return f"agrees with {accuracy['eval_accuracy']:.0%} of {accuracy['eval_rows']:.0f} held-out preferences"
    rows = iteration_rows(folder)
    return f"reward {rows[0]['reward']:.2f} -> {rows[-1]['reward']:.2f} in {len(rows)} iterations"


def compare(args: QuickstartArguments, reward_model: Path, policy: Path) -> Comparison:
    """Stage 5: judge replies to the held-out messages by the annotator, who is not what PPO trained against."""
    from peft import PeftModel

    tokenizer = load_tokenizer(args.model_name_or_path)
    model = PeftModel.from_pretrained(load_causal_lm(args.model_name_or_path, **args.model_kwargs), str(policy))
    model.to(current_device())
    scorer, _ = load_reward_model(str(reward_model), policy=model)
    annotator = CheerfulAnnotator()
    rows = [_row(text, tokenizer) for text in quickstart_prompts()["test"]]
    stop_at_end_of_turn(model, tokenizer, rows[0], args.sampling)
    return compare_with_start(
        model,
        tokenizer,
        rows,
        args.sampling,
        [row_seed(args.seed, "evaluation", number) for number in range(len(rows))],
        judge=lambda trajectory: annotator.score(trajectory.text, trajectory.completion.stopped),
        reward=LearnedReward(scorer, tokenizer, device=current_device()),
    )
