"""An iteration of twelve completions, held by one process or three ranks, and the facts read from its micro-batches."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny import make_config, make_lora, make_model, make_tokenizer, perturb

from hf_rlhf.distributed import world_size
from hf_rlhf.ppo.experience import Experience
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.types import Completion, ForwardPass, Score, Trajectory

SIZES = (7, 4, 1)  # completions of each rank
ALL = tuple(range(sum(SIZES)))
MINIBATCH = 6
FIELDS = ("scores_per_token", "logprobs", "sampler_logprobs", "reference_logprobs", "kl", "values", "entropy")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "stages.md"


@dataclass
class Rows:
    """The fields of a config that `micro_batches` reads."""

    seed: int = 3
    num_ppo_epochs: int = 3
    updates_per_iteration: int = 6
    minibatch_size: int = MINIBATCH
    per_device_train_batch_size: int = 1
    num_generations: int = 1

    @property
    def gradient_accumulation_steps(self):
        return self.minibatch_size // world_size()


def trajectories():
    """Completion b is one of 3 + b tokens.

    Number 7 does not say what it was chosen from.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for b in range(sum(SIZES)):
        tokens = 3 + b
        support = [torch.randint(2**17, (1 + t % 4,), generator=generator) for t in range(tokens)]
        if b % 2:
            support = [ids % 1000 for ids in support]
        completion = Completion(list(range(b, b + tokens)), [], b % 3 == 0, None if b == 7 else support)
        mask = [t != 1 for t in range(tokens)]
        made.append(Trajectory({"prompt": "p"}, list(range(1 + b % 5)), completion, "", mask))
    return made


def scores():
    return [None if b == 5 else Score(float(b)) for b in range(sum(SIZES))]


def passes():
    """Random numbers of a forward pass of each completion."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for b in range(sum(SIZES)):
        columns = {name: torch.randn(3 + b, generator=generator) for name in ("logprobs", *FIELDS[3:])}
        made.append(ForwardPass(**columns))
    return made


def experience_of(numbers=ALL):
    """Make experience of these completions, with rewards, advantages and returns that are made up."""
    columns = ([column[number] for number in numbers] for column in (trajectories(), scores(), passes()))
    experience = Experience.from_rollout(*columns, kl_coef=0.1)
    experience.per_token_rewards = (experience.kl + 1) * experience.mask
    experience.advantages = experience.values - experience.kl
    experience.returns = experience.values + experience.kl
    return experience


def in_numbers(batch):
    """The rows of a micro-batch of one row a rank, as plain numbers."""
    experience, sequences = batch.experience, batch.experience.sequences
    assert len(experience) == 1
    columns = {
        name: getattr(experience, name).tolist() for name in (*FIELDS, "per_token_rewards", "advantages", "returns")
    }
    support = sequences.support[0]
    return {
        "completion": int(sequences.input_ids[0, sequences.prompt_lengths[0]]),
        "minibatch_tokens": batch.minibatch_tokens,
        "input_ids": sequences.input_ids.tolist(),
        "attention_mask": sequences.attention_mask.tolist(),
        "prompt_lengths": sequences.prompt_lengths.tolist(),
        "mask": sequences.mask.tolist(),
        "scores": experience.scores.tolist(),
        "support": None if support is None else [ids.tolist() for ids in support],
        "bytes": None if support is None else support.ids.element_size(),
        **columns,
    }


def own_loop(folder, own):
    """Run two iterations by `step` of the completions `own` of twelve; return their metrics.

    Advantages are those of docs/how-to/stages.md.
    """
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = [part for part in blocks if "class LeaveOneOut" in part]
    page: dict = {"PPOTrainer": PPOTrainer}
    exec(block, page)
    tokenizer = make_tokenizer()
    trainer = page["LeaveOneOut"](
        make_model(tokenizer),
        None,
        make_config(
            folder,
            per_device_train_batch_size=6 // world_size(),
            use_score_scaling=True,
            optim="sgd",
            learning_rate=0.02,
            whiten_rewards=True,
            max_grad_norm=0.0,
            top_k=12,
            max_completion_length=12,
        ),
        processing_class=tokenizer,
        peft_config=make_lora(),
    )
    perturb(trainer.policy, only="lora")
    metrics = []
    for _ in range(2):
        prompts = [[7 + number % 5, 9] for number in own]
        support = [torch.arange(7, 19)] * 12
        completions = [Completion([8 + number % 9] * (1 + number), [], True, support[: 1 + number]) for number in own]
        rewards = [None if number == 5 else float(number % 4) for number in own]
        metrics.append(trainer.step(prompts, completions, rewards))
    weights = [parameter for parameter in trainer.policy.parameters() if parameter.requires_grad]
    return [{**row, "norm of the weights": sum(weight.norm().item() for weight in weights)} for row in metrics]
