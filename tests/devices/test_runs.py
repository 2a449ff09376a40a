"""Whole runs on a pretended accelerator: no operation meets tensors of two devices, and the numbers equal a CPU's."""

import gc
import shutil

import pytest
import torch
import transformers
from datasets import Dataset
from devices.pretended import ACCELERATOR, pretended_accelerator, trainers_on_accelerator
from peft import get_peft_model
from tiny import (
    WORDS,
    happy_reward,
    make_lora,
    make_model,
    make_prompts,
    make_tokenizer,
    make_trainer,
    metrics_of,
    perturb,
    trained,
)
from tiny_critics import CRITICS, WHOLE_TEXTS, make_critic_trainer, make_places
from tiny_data import plain_pairs

from hf_rlhf.data.prompts import prompt_rows
from hf_rlhf.evaluation.before_after import measure_side
from hf_rlhf.models.load import load_causal_lm
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.models.value_model import load_value_model
from hf_rlhf.recipes.arguments import RewardTrainingArguments, SFTTrainingArguments
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.training.trl_setup import make_reward_trainer
from hf_rlhf.training.trl_trainers import SFTTrainer

ONE_UPDATE = {"num_ppo_epochs": 1, "num_mini_batches": 1, "max_steps": 1, "max_completion_length": 3}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return make_places(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module", autouse=True)
def _imports_are_no_garbage():
    """Each trainer collects garbage, which need not go through all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def accelerator():
    with trainers_on_accelerator() as counts:
        yield counts


def adapter_start():
    """A PEFT model whose adapter does something, to continue from."""
    return perturb(get_peft_model(make_model(make_tokenizer()), make_lora()), only="lora")


def other_model():
    return make_model(make_tokenizer(), seed=4)


def windowed_model():
    """Whose tokens see four tokens."""
    config = make_model(make_tokenizer()).config.to_dict() | {"sliding_window": 4, "model_type": "mistral"}
    return transformers.MistralForCausalLM(transformers.MistralConfig(**config))


def tokenizer_for_stop_strings():
    """With the word that transformers puts before each token to read it."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["abcdef"])
    return tokenizer


OPTIONS = {
    "plain": dict,
    "reference model": lambda: {"trainer_kwargs": {"ref_model": other_model()}},
    "copied reference, followed": lambda: {"lora": None, "ref_model_sync_iterations": 1, "max_steps": 2},
    "reference adapter": lambda: {"model": adapter_start(), "lora": None},
    "reference adapter, followed": lambda: {"ref_model_sync_iterations": 1, "max_steps": 2},
    "full KL in the loss": lambda: {"kl_estimator": "full", "kl_in_loss": True, "top_p": 0.9},
    "full KL to a model": lambda: {
        "kl_estimator": "full", "kl_in_loss": True, "trainer_kwargs": {"ref_model": other_model()},
    },
    "KL in the loss": lambda: {"kl_estimator": "k2", "kl_in_loss": True},
    "top-k, top-p and min-p": lambda: {"top_k": 9, "top_p": 0.9, "min_p": 0.01, "temperature": 0.8, "entropy_coef": 0.1},
    "texts": lambda: {"ptx_coef": 0.5, "trainer_kwargs": {"ptx_dataset": Dataset.from_dict({"text": WORDS})}},
    "without padding": lambda: {"padding_free": True},
    "without padding, in windows": lambda: {"padding_free": True, "model": windowed_model()},
    "recomputation": lambda: {"gradient_checkpointing": True},
    "stops and parts": lambda: {
        "tokenizer": tokenizer_for_stop_strings(), "stop_strings": ["at"], "stop_token_ids": [9, 10, 11, 12, 13, 14, 15],
        "generation_batch_size": 3, "max_completion_length": 6,
    },
    "weights, clips and scores": lambda: {
        "importance_sampling_cap": 2.0, "dual_clip": 3.0, "ratio_threshold": 5.0, "early_stop_kl": 9.0, "critic_lam": 1.0,
        "use_score_scaling": True, "use_score_norm": True, "whiten_rewards": True, "kl_target": 1.0,
    },
    "critic first": lambda: {"critic_warmup_iterations": 1, "critic_learning_rate": 1e-2, "max_steps": 2},
    "accumulation": lambda: {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "num_mini_batches": 2},
    "evaluation": lambda: {
        "eval_strategy": "steps", "eval_steps": 1, "trainer_kwargs": {"eval_dataset": make_prompts(3)},
    },
}  # fmt: skip


def assert_trained_there(trainer):
    assert {weight.device for weight in trainer.policy.parameters()} == {ACCELERATOR}
    moments = [value for state in trainer.optimizer.state.values() for value in state.values() if value.dim() > 0]
    assert moments
    assert {moment.device for moment in moments} == {ACCELERATOR}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(tmp_path, accelerator, name):
    trainer = make_trainer(tmp_path, **{**ONE_UPDATE, **OPTIONS[name]()})
    trainer.train()
    assert_trained_there(trainer)
    assert trainer.predict_value(["the cat"])


@pytest.mark.parametrize("name", ["mlp head", "adapter", "adapter of a reward", "model", "model of a reward adapter",
                                  "given model", "full policy, model of a full reward"])  # fmt: skip
def test_critics(tmp_path, places, accelerator, name):
    trainer = make_critic_trainer(tmp_path / "run", places, **{**ONE_UPDATE, **CRITICS[name](places)})
    trainer.train()
    assert_trained_there(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = load_value_model(str(tmp_path / "saved"))
    loaded.model.to(ACCELERATOR)
    loaded.critic.to(ACCELERATOR)
    assert loaded.predict_value(WHOLE_TEXTS) == pytest.approx(trainer.predict_value(WHOLE_TEXTS), abs=1e-5)


@pytest.mark.parametrize("critic", ["value_head", "adapter", "model"])
def test_a_bf16_base_computes_in_autocast_of_the_accelerator(tmp_path, places, accelerator, critic):
    reference = {"ref_model": load_causal_lm(places["base"], dtype="bfloat16")}
    flags = {**ONE_UPDATE, "critic": critic, "trainer_kwargs": reference}
    trainer = make_critic_trainer(tmp_path, places, dtype="bfloat16", **flags)
    trainer.train()
    assert_trained_there(trainer)
    assert accelerator["autocast on cuda"] > 0
    assert accelerator["autocast on cpu"] == 0


@pytest.mark.parametrize("name", ["reward", "full_reward"])
def test_learned_rewards(tmp_path, places, accelerator, name):
    """An adapter on the policy's base, and a model of its own."""
    trainer = make_critic_trainer(tmp_path, places, reward=[places[name], happy_reward], **ONE_UPDATE)
    trainer.train()
    scorer, tokenizer = load_reward_model(places[name], dtype="float32")
    scorer.model.to(ACCELERATOR)
    assert len(LearnedReward(scorer, tokenizer, device=ACCELERATOR)(["the"], ["cat"])) == 1


def test_completions_from_elsewhere(tmp_path, accelerator):
    """Find the tokens that top-k left by a forward pass."""
    trainer = make_trainer(tmp_path, top_k=12, **ONE_UPDATE)
    prompts = make_prompts(4)["prompt"]
    ids = [completion.ids for completion in trainer.generate(prompts)]
    trainer.step(prompts, ids, torch.ones(4, device="cuda"))
    assert_trained_there(trainer)


def test_a_resumed_run_ends_in_the_weights_of_the_whole_one(tmp_path, accelerator):
    flags = ONE_UPDATE | {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path, **flags)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-2")
    resumed = make_trainer(tmp_path, **flags)
    resumed.train(resume_from_checkpoint="auto")
    assert_trained_there(resumed)
    weights = trained(whole.policy)
    assert all((weight == weights[name]).all() for name, weight in trained(resumed.policy).items())


def test_a_policy_beside_its_start(accelerator):
    tokenizer = make_tokenizer()
    model = adapter_start().to(ACCELERATOR)
    for adapter in (False, True):
        measure_side(
            model,
            TransformersEngine(model, tokenizer),
            prompt_rows(make_prompts(2)["prompt"], tokenizer),
            Sampling(max_completion_length=3),
            [0, 1],
            adapter=adapter,
            judge=lambda trajectory: 0.0,
            reward=lambda prompts, completions: [0.0] * len(completions),
        )


def test_sampling_waits_for_many_rows_as_often_as_for_few():
    waits = []
    for prompts in ([[5, 6], [7]], [[5, 6], [7], [8], [9, 10], [11], [12]]):
        with pretended_accelerator() as counts:
            engine = TransformersEngine(make_model(make_tokenizer()).to("cuda"), make_tokenizer())
            engine.generate(prompts, Sampling(max_completion_length=1), list(range(len(prompts))))
        waits.append(counts["waits"])
    assert 0 < waits[0] == waits[1]


def test_reward_and_sft_trainers(tmp_path, accelerator):
    tokenizer = make_tokenizer()
    flags = {"max_steps": 1, "per_device_train_batch_size": 2, "max_length": 64, "report_to": "none", "save_strategy": "no",
             "bf16": False}  # fmt: skip
    config = make_model(tokenizer).config
    config.num_labels = 1
    reward = make_reward_trainer(
        transformers.LlamaForSequenceClassification(config),
        tokenizer,
        RewardTrainingArguments(output_dir=str(tmp_path / "reward"), **flags),
        Dataset.from_list(plain_pairs(4)),
        peft_config=make_lora(),
    )
    sft = SFTTrainer(
        model=make_model(tokenizer),
        args=SFTTrainingArguments(output_dir=str(tmp_path / "sft"), **flags),
        train_dataset=Dataset.from_dict({"text": WORDS}),
        processing_class=tokenizer,
        peft_config=make_lora(),
    )
    for trainer in reward, sft:
        trainer.train()
        assert {weight.device for weight in trainer.model.parameters()} == {ACCELERATOR}


@pytest.mark.parametrize("flags", [{}, {"top_k": 9, "entropy_coef": 0.1}], ids=["", "top-k"])
def test_the_metrics_are_those_of_a_cpu(tmp_path, flags):
    flags = ONE_UPDATE | flags
    make_trainer(tmp_path / "cpu", padding_free=False, **flags).train()
    with trainers_on_accelerator():
        make_trainer(tmp_path / "accelerator", **flags).train()
    here, there = metrics_of(tmp_path / "cpu"), metrics_of(tmp_path / "accelerator")
    assert len(here) == len(there) > 0
    for row, other in zip(here, there, strict=True):
        assert [key for key in row if row[key] is None] == [key for key in other if other[key] is None]
        numbers = {key: value for key, value in row.items() if value is not None}
        assert {key: other[key] for key in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-5)
