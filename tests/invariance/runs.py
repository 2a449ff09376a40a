"""The runs that must end alike, however they are cut into batches and ranks: which options, and what "alike" means."""

import functools
import json
import tempfile
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from tiny import WORDS, make_lora, make_model, make_prompts, make_tokenizer, make_trainer, metrics_of, perturb
from tiny_critics import LAST, make_places

TOLERANCE = 1e-6
OF_A_LAUNCH = ("run_state", "optimizer")
"""Files that each launch writes in its own way: what each rank resumes from."""
GATES = ("ratio_threshold", "early_stop_kl", "critic_warmup_iterations", "critic_learning_rate")
"""Flags that withhold gradients or need parameter groups of their own; DeepSpeed allows neither."""
ROUNDING = ("val/first_ratio_error", "sampling/logp_gap")  # what these two measure is rounding itself
EXPONENTIAL = {"val/ratio_var": 1e-4}
"""Relative bounds where 1e-5 is too narrow. A ratio is off, relatively, by what its log-probability is off absolutely
(an unlikely token's by 5e-6 after some updates), and its square by twice as much. One such token can be most of a
variance."""


# Rewards


def number_reward(prompts, completions, number, **columns):
    """A reward that needs the right row's column, and gives some rows none."""
    texts = [completion[0]["content"] for completion in completions]
    return [None if n % 5 == 0 else text.split().count("happy") - n / 10 for n, text in zip(number, texts, strict=True)]


def token_reward(prompts, completions, completion_ids, number, log_metric):
    """A number for each token; it logs something about some completions only, so not as often on every rank."""
    for ids in completion_ids:
        if len(ids) > 2:
            log_metric("length_above_two", len(ids))
    return [
        None if n % 3 == 0 else [(token % 7 - 3) / 10 for token in ids]
        for n, ids in zip(number, completion_ids, strict=True)
    ]


def eighth_reward(prompts, completions, number, log_metric):
    """Scores and logs every eighth row alone: of a stream, one of two ranks gets all of them."""
    for n in number:
        if n % 8 == 0:
            log_metric("number", n)
    return [None if n % 8 else float(n % 3) for n in number]


# What a run is made of, besides PPOConfig's flags


def texts():
    """Return texts for PPO-ptx, of different lengths, and fewer than an iteration takes."""
    return Dataset.from_dict({"text": [" ".join(WORDS[i : i + 2 + i % 4]) for i in range(11)]})


def classifier():
    """A critic of its own: the tiny Llama with other weights and a score layer."""
    import torch
    from transformers import LlamaForSequenceClassification

    config = make_model(make_tokenizer()).config
    config.num_labels = 1
    torch.manual_seed(5)
    return LlamaForSequenceClassification(config)


class RoundingEngine:
    """Samples as the engine it is given, and gives log-probabilities as if its arithmetic were another."""

    def __init__(self, engine):
        self.engine = engine

    def generate(self, prompts, sampling, seeds):
        completions = self.engine.generate(prompts, sampling, seeds)
        for completion in completions:
            completion.logprobs = [
                logprob + (token % 5 - 2) / 5
                for token, logprob in zip(completion.ids, completion.logprobs, strict=True)
            ]
        return completions


RUNS = {
    "plain": {},
    "truncated": {
        "top_k": 12,
        "value_head_detach": True,
        "num_generations": 4,
        "advantage_estimator": "leave_one_out",
        "first_greedy_tokens": 1,
        "temperature": 1.2,
        "temperature_end": 0.9,
    },
    "estimators": {
        "advantage_estimator": "dae",
        "num_generations": 2,
        "log_gradient_variance": 1,
        "max_steps": 4,
        "save_steps": 4,
    },
    "scores": {
        "data": lambda: make_prompts(20).to_iterable_dataset(),
        "reward": [number_reward, token_reward],
        "reward_weights": [1.0, 0.5],
        "reward_clips": [1.2, 3.0],
        "reward_normalize": ["true", "false"],
        "use_score_scaling": True,
        "use_score_norm": True,
        "score_clip": 0.8,
        "length_penalty": 0.02,
        "overlong_penalty": 0.5,
        "overlong_buffer": 4,
        "whiten_rewards": True,
        "critic_lam": 1.0,
        "value_head_mlp_size": 8,
        "advantage_estimator": "running_mean",
        "kl_target": 0.1,
        "kl_horizon": 100,
    },
    "losses": {
        "critic": "adapter",
        "critic_learning_rate": 0.2,
        "kl_estimator": "k3",
        "kl_in_loss": True,
        "entropy_coef": 0.02,
        "cliprange": 0.05,
        "cliprange_high": 0.1,
        "dual_clip": 1.1,
        "ratio_threshold": 1.01,
        "importance_sampling_cap": 1.2,
        "engine": RoundingEngine,
        "ptx_dataset": texts,
        "ptx_coef": 0.1,
        "temperature": 0.8,
        "top_p": 0.9,
        "gradient_checkpointing": True,
    },
    "stops": {
        "critic": "model",
        "value_model": classifier,
        "kl_estimator": "full",
        "early_stop_kl": 0.01,
        "critic_warmup_iterations": 1,
        "ref_model_sync_iterations": 2,
        "max_steps": 12,
    },
    "full fine-tuning": {
        "lora": None,
        "critic": "model",
        "value_model": classifier,
        "kl_estimator": "full",
        "kl_in_loss": True,
        "learning_rate": 0.05,
    },
    "upper blocks": {
        "lora": None,
        "num_layers_unfrozen": 1,
        "critic": "model",
        "value_model": classifier,
        "kl_estimator": "full",
        "kl_in_loss": True,
        "ref_model_sync_iterations": 1,
        "learning_rate": 0.05,
    },
    "trunk": {
        "lora": make_lora(**LAST),
        "critic": "adapter",
        "kl_estimator": "full",
        "kl_in_loss": True,
        "ptx_dataset": texts,
        "ptx_coef": 0.1,
        "gradient_checkpointing": True,
        "max_steps": 4,
        "save_steps": 4,
    },
    "trunk of a reward": {
        "lora": make_lora(**LAST),
        "reward_adapter": "upper",  # of `make_places`
        "max_steps": 4,
        "save_steps": 4,
    },
    "sparse": {
        "data": lambda: make_prompts(16).to_iterable_dataset(),
        "reward": eighth_reward,
        "critic": "adapter",
        "weight_decay": 0.1,
        "stop_token_ids": list(range(0, 29, 2)),  # so that many completions have one token
        "num_mini_batches": 4,
        "per_device_train_batch_size": 4,
        "max_steps": 16,
    },
}

for name in ("losses", "stops"):
    RUNS[f"{name}, ungated"] = {flag: value for flag, value in RUNS[name].items() if flag not in GATES}


@functools.cache
def places():
    """Make the places of `make_places` once in a process: before it has a group, in which rank 0 alone saves models."""
    return make_places(tempfile.mkdtemp())


def on_one_base(adapter, reward):
    """Return the flags of a run in which the reward `adapter` shares the policy's base; `reward` is its other one."""
    from hf_rlhf.models.load import load_causal_lm

    return {"model": load_causal_lm(places()["base"], dtype="float32"), "reward": [reward, places()[adapter]]}


def train(folder, name, **cut):
    """Train run `name` on 16 completions an iteration; the policy is saved in `folder`/final, beside metrics.jsonl.

    Without `cut`, the sizes of its batches, nothing is accumulated. Evaluated on a set that no number of ranks divides,
    and on one too small to give every rank a prompt.
    """
    flags = {
        "per_device_train_batch_size": 8,
        "max_steps": 8,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 8,
        "missing_eos_penalty": 0.3,
        "optim": "sgd",
        "learning_rate": 0.2,
        "reward": number_reward,
        "ddp_timeout": 60,  # ranks that wait for each other in vain
    }
    flags |= RUNS[name] | cut
    data = flags.pop("data", make_prompts)()
    engine = flags.pop("engine", lambda engine: engine)
    if (adapter := flags.pop("reward_adapter", None)) is not None:
        flags |= on_one_base(adapter, flags["reward"])
    given = {key: flags.pop(key)() for key in ("value_model", "ptx_dataset") if key in flags}
    given["eval_dataset"] = {"five": make_prompts(5), "one": make_prompts(2).select([1])}
    trainer = make_trainer(folder, data=data, trainer_kwargs=given, **flags)
    trainer.engine = engine(trainer.engine)
    perturb(trainer.policy, only="lora")
    perturb(trainer.policy.value_head)
    trainer.train()
    trainer.save_model(str(Path(folder) / "final"))
    return trainer


def iterations_of(folder):
    """The rows of metrics.jsonl that end an iteration."""
    return [row for row in metrics_of(folder) if "iteration" in row]


def assert_same(one, other):
    """The runs in two folders left the same weights (by 1e-6 of their norm), metrics, samples and state."""
    one, other = Path(one), Path(other)
    weights, of_other = (
        {file.relative_to(folder) for file in folder.rglob("*.safetensors") if not file.stem.startswith(OF_A_LAUNCH)}
        for folder in (one, other)
    )
    assert weights == of_other
    assert len(weights) >= 4  # policy and critic, of the last checkpoint and at the end
    for file in weights:
        expected, found = load_file(one / file), load_file(other / file)
        assert set(expected) == set(found)
        for key, weight in expected.items():
            apart = (found[key] - weight).norm() / weight.norm()
            assert apart <= TOLERANCE, f"{file}: {key} is {apart:.1e} of its norm apart"

    expected, found = metrics_of(one), metrics_of(other)
    assert [row["step"] for row in expected] == [row["step"] for row in found]
    for row, twin in zip(expected, found, strict=True):
        assert set(row) == set(twin)
        for key, value in row.items():
            floor = 1e-5 if key in ROUNDING else 1e-6
            bound = EXPONENTIAL.get(key, 1e-5)
            same = twin[key] is None if value is None else twin[key] == pytest.approx(value, rel=bound, abs=floor)
            assert same, f"step {row['step']}: {key} is {value} and {twin[key]}"
    expected, found = (list(map(json.loads, (each / "samples.jsonl").open())) for each in (one, other))
    for sample, twin in zip(expected, found, strict=True):
        numbers, others = (
            {**each.pop("rewards"), **{key: each.pop(key) for key in ("reward", "score") if key in each}}
            for each in (sample, twin)
        )
        assert twin == sample
        assert set(others) == set(numbers)
        for key, value in numbers.items():  # a reward model's are rounded by its batch
            assert others[key] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-6)), key
    for file in one.glob("checkpoint-*/ppo_state.json"):
        state, twin = (json.loads((folder / file.relative_to(one)).read_text()) for folder in (one, other))
        assert twin.pop("score_moments") == pytest.approx(state.pop("score_moments"))
        parts, twins = state.pop("part_moments"), twin.pop("part_moments")
        assert twins == {name: pytest.approx(moments) for name, moments in parts.items()}
        assert twin.pop("flags") == state.pop("flags")
        assert twin == pytest.approx(state)
