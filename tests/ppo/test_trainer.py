import contextlib
import json
import math
import re
from contextlib import contextmanager

import pytest
import torch
from datasets import Dataset
from rollout.vllm.double import VLLMDouble
from tiny import (
    WORDS,
    happy_reward,
    make_config,
    make_lora,
    make_model,
    make_prompts,
    make_tokenizer,
    make_trainer,
    metrics_of,
    perturb,
    snapshot,
    trained,
)
from transformers import TrainerCallback

from hf_rlhf.environments import SingleTurn
from hf_rlhf.errors import InputError
from hf_rlhf.models.fast.attention import FUSED, PACKED
from hf_rlhf.ops import gae, kl_estimate, masked_sum, whiten
from hf_rlhf.ppo.experience import MicroBatch, micro_batches
from hf_rlhf.ppo.kl_control import AdaptiveKL
from hf_rlhf.ppo.metrics import METRICS
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.progress import numbers_of


def iterations_of(folder):
    return [row for row in metrics_of(folder, times=True) if "iteration" in row]


def id_reward(prompts, completions, completion_ids):
    return [sum(ids) / len(ids) / 10 for ids in completion_ids]


class CountSteps(TrainerCallback):
    def __init__(self):
        self.updates = 0

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.updates += 1


# The start


@pytest.mark.parametrize("start", ["lora", "adapter", "full"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 6, "top_p": 0.9}], ids=["plain", "truncated"])
def test_it_starts_on_policy_and_at_the_reference(tmp_path, start, sampling):
    from peft import get_peft_model

    model = make_model(make_tokenizer())
    if start == "adapter":
        model = perturb(get_peft_model(model, make_lora()), only="lora")
    trainer = make_trainer(
        tmp_path, model=model, lora=start == "lora" or None, max_steps=8, reward=id_reward, **sampling
    )
    trainer.train()
    first, second = iterations_of(tmp_path)
    assert first["objective/kl"] == 0
    assert second["objective/kl"] != 0
    assert first["val/first_ratio_error"] < 1e-5
    assert second["val/first_ratio_error"] < 1e-5  # experience comes from the weights after the last update
    assert first["sampling/logp_gap"] < 1e-5
    assert first["val/ratio_var"] > 1e-5  # later updates of the iteration are off policy


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("minibatches", [1, 2, 4])
@pytest.mark.parametrize("epochs", [1, 3])
def test_updates_are_epochs_times_minibatches_times_iterations(tmp_path, accumulation, minibatches, epochs):
    counter = CountSteps()
    trainer = make_trainer(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=minibatches,
        num_ppo_epochs=epochs,
        total_episodes=2 * 2 * accumulation * minibatches,
        max_steps=-1,
        trainer_kwargs={"callbacks": [counter]},
    )
    trainer.train()
    assert counter.updates == trainer.state.global_step == epochs * minibatches * 2
    rows = iterations_of(tmp_path)
    assert [row["iteration"] for row in rows] == [1, 2]
    assert [row["episode"] for row in rows] == [2 * accumulation * minibatches, 4 * accumulation * minibatches]


def test_one_epoch_passes_over_the_prompts_once(tmp_path):
    seen = []

    def reward(prompts, completions, number, **columns):
        seen.extend(number)
        return [1.0] * len(prompts)

    make_trainer(tmp_path, reward=reward, max_steps=-1, num_train_epochs=1).train()
    assert sorted(seen) == list(range(16))


def test_steps_that_end_inside_an_iteration_take_effect_at_its_end(tmp_path, capsys):
    trainer = make_trainer(tmp_path, max_steps=5, save_strategy="steps", save_steps=3)
    trainer.train()
    assert "max_steps: 8 updates instead of 5, since an iteration makes 4" in capsys.readouterr().out
    assert trainer.state.global_step == 8
    assert [row["step"] for row in iterations_of(tmp_path)] == [4, 8]
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


def test_every_completion_is_used_once_in_each_epoch(tmp_path):
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    experience = trainer.make_experience(0)
    batches = list(micro_batches(experience, trainer.args, 0))
    assert len(batches) == 2 * 2 * 2
    for epoch in range(2):
        scores = torch.cat([batch.experience.scores for batch in batches[4 * epoch : 4 * epoch + 4]])
        torch.testing.assert_close(scores.sort().values, experience.scores.sort().values)
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        tokens = int(first.experience.mask.sum() + second.experience.mask.sum())
        assert first.minibatch_tokens == second.minibatch_tokens == tokens


def test_minibatches_are_others_in_every_epoch_and_iteration(tmp_path):
    trainer = make_trainer(tmp_path)
    experience = trainer.make_experience(0)
    experience.scores = torch.arange(8.0)
    deals = [
        [set(batch.experience.scores.tolist()) for batch in micro_batches(experience, trainer.args, i)]
        for i in range(3)
    ]
    firsts = [frozenset(deal[minibatch]) for deal in deals for minibatch in (0, 2)]  # of two epochs
    assert len(set(firsts)) == 6
    again = micro_batches(experience, trainer.args, 0)
    assert [set(batch.experience.scores.tolist()) for batch in again] == deals[0]


# What is trained


def test_lora_trains_the_adapter_and_the_value_head_and_nothing_else(tmp_path):
    trainer = make_trainer(tmp_path)
    before = snapshot(trainer.policy)
    trainer.train()
    for name, after in snapshot(trainer.policy).items():
        assert torch.equal(after, before[name]) != ("lora" in name or "critic" in name), name


def test_full_fine_tuning_trains_the_model_and_not_its_reference(tmp_path):
    trainer = make_trainer(tmp_path, lora=None)
    before = snapshot(trainer.policy)
    trainer.train()
    for name, after in snapshot(trainer.policy).items():
        assert torch.equal(after, before[name]) == name.startswith("reference_model"), name


def test_a_learning_rate_of_zero_changes_no_bit(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=0.0, weight_decay=0.1)
    before = snapshot(trainer.policy)
    trainer.train()
    assert all(torch.equal(after, before[name]) for name, after in snapshot(trainer.policy).items())
    assert all(row["grad_norm"] > 0 for row in iterations_of(tmp_path))
    assert all(row["val/ratio_var"] < 1e-10 for row in iterations_of(tmp_path))


def test_the_gradient_is_clipped_after_its_norm_is_logged(tmp_path):
    trainer = make_trainer(tmp_path, max_grad_norm=1e-9, optim="sgd", learning_rate=1.0)
    before = snapshot(trainer.policy)
    trainer.train()
    assert max((after - before[name]).norm() for name, after in snapshot(trainer.policy).items()) <= 8 * 1e-9 + 1e-12
    assert all(row["grad_norm"] > 1e-3 for row in iterations_of(tmp_path))


@pytest.mark.parametrize(
    "flag", [{"vf_coef": 0.0}, {"gradient_checkpointing": True}], ids=["no value loss", "checkpointing"]
)
def test_it_runs_with(tmp_path, flag):
    trainer = make_trainer(tmp_path, max_steps=4, **flag)
    before = trained(trainer.policy)
    trainer.train()
    moved = {name for name, after in trained(trainer.policy).items() if not torch.equal(after, before[name])}
    assert any("lora" in name for name in moved)
    assert any("critic" in name for name in moved) == ("vf_coef" not in flag)


# Failures


class NaNInTheSecondIteration(PPOTrainer):
    def advantages(self, experience):
        advantages, returns = super().advantages(experience)
        return (advantages * math.nan if self.iteration == 1 else advantages), returns


def test_three_nan_losses_in_a_row_end_the_run_and_reach_no_weight(tmp_path):
    tokenizer = make_tokenizer()
    trainer = NaNInTheSecondIteration(
        make_model(tokenizer),
        happy_reward,
        make_config(tmp_path),
        make_prompts(),
        processing_class=tokenizer,
        peft_config=make_lora(),
    )
    with pytest.raises(FloatingPointError, match=r"update 7 .* 3 in a row"):
        trainer.train()
    assert [row["step"] for row in iterations_of(tmp_path)] == [4]
    assert all(torch.isfinite(parameter).all() for parameter in trainer.policy.parameters())


def test_damaged_weights_end_the_run(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.policy.value_head.summary.weight.data[0, 3] = math.inf
    with pytest.raises(FloatingPointError, match="values of a completion"):
        trainer.train()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_ends_the_run_and_is_named(tmp_path, bad):
    def broken(prompts, completions, **columns):
        return [bad] * len(prompts)

    with pytest.raises(InputError, match=r"reward 'broken' returned (nan|inf)"):
        make_trainer(tmp_path, reward=broken).train()


def test_an_iteration_without_any_score_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no completion of iteration 1 has a reward"):
        make_trainer(tmp_path, reward=lambda prompts, **_: [None] * len(prompts)).train()


def test_fewer_prompts_than_a_batch_are_an_error(tmp_path):
    with pytest.raises(InputError, match=r"7 rows are fewer than the 8 .*num|7 rows are fewer than the 8"):
        make_trainer(tmp_path, data=make_prompts(7))


def test_more_tokens_than_positions_are_an_error(tmp_path):
    with pytest.raises(InputError, match="128 positions"):
        make_trainer(tmp_path, max_prompt_length=100, max_completion_length=29)


def test_a_peft_model_and_a_peft_config_are_an_error(tmp_path):
    from peft import get_peft_model

    with pytest.raises(InputError, match="either"):
        make_trainer(tmp_path, model=get_peft_model(make_model(make_tokenizer()), make_lora()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"kl_estimator": "k9"},
        {"logging_nan_inf_filter": True},
        {"remove_unused_columns": True},
        {"gamma": 1.5},
        {"num_mini_batches": 0},
        {"cliprange": 0.0},
        {"total_episodes": 8, "max_steps": 4},
        {"label_smoothing_factor": 0.1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_impossible_settings_are_refused_by_name(tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        make_config(tmp_path, **wrong)


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
def test_packed_attention_is_for_training_alone(tmp_path, fails):
    """Check that a model which is saved, or sampled from later, loads and runs without this package."""

    def kinds():
        return {model.config._attn_implementation for model in trainer.policy.transformers_models()}

    def reward(prompts, **columns):
        seen.append(kinds())
        return [math.nan if fails else 1.0] * len(prompts)

    seen = []
    trainer = make_trainer(tmp_path, reward=reward, lora=None, max_steps=4)
    with pytest.raises(InputError) if fails else contextlib.nullcontext():
        trainer.train()
    assert seen == [{PACKED}]
    assert kinds() == {FUSED}


# Scores


def odd_ones_unscored(prompts, completions, number, **columns):
    scores = happy_reward(prompts, completions)
    return [None if n % 2 else score + n / 10 for n, score in zip(number, scores, strict=True)]


def test_unscored_completions_count_for_nothing(tmp_path):
    trainer = make_trainer(tmp_path, reward=odd_ones_unscored, per_device_train_batch_size=8, num_mini_batches=1)
    perturb(trainer.policy.value_head)
    perturb(trainer.policy, only="lora")
    experience = trainer.make_experience(0)
    scored = torch.tensor([row["number"] for row in trainer.prompts.rows(0)]) % 2 == 0
    assert 0 < scored.sum() < len(experience)
    assert torch.equal(experience.mask.any(dim=1), scored)
    names = "logprobs sampler_logprobs reference_logprobs kl values entropy per_token_rewards advantages returns"
    for name in names.split():
        assert not getattr(experience, name)[~experience.mask].any(), name
        assert getattr(experience, name)[experience.mask].any(), name

    rows = scored.nonzero().squeeze(1)
    alone = experience[rows]
    advantages, returns = gae(alone.per_token_rewards, alone.values, alone.mask, trainer.args.gamma, trainer.args.lam)
    torch.testing.assert_close(alone.advantages, whiten(advantages, alone.mask))
    torch.testing.assert_close(alone.returns, returns)

    tokens = int(experience.mask.sum())
    gradients = []
    for part in (experience, alone):
        trainer.policy.zero_grad()
        loss = trainer.compute_loss(trainer.policy, {"micro_batch": MicroBatch(part, tokens)})
        loss.backward()
        gradients.append([loss.detach(), *[p.grad.clone() for p in trainer.policy.parameters() if p.requires_grad]])
    for whole, part in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, part, rtol=1e-5, atol=1e-7)

    metrics = trainer.iteration_log.metrics
    assert metrics["rewards/unscored"] == 1 - scored.double().mean()
    assert metrics["objective/scores"] == pytest.approx(alone.scores.mean().item())
    assert metrics["reward"] == pytest.approx(alone.scores.mean().item())
    kl = masked_sum(kl_estimate("k1", alone.logprobs, alone.reference_logprobs), alone.mask, dim=1)
    assert metrics["objective/kl"] == pytest.approx(kl.mean().item(), rel=1e-5)
    assert metrics["val/mean"] == pytest.approx(alone.values[alone.mask].mean().item(), rel=1e-5)


@pytest.mark.parametrize("sampling", [{}, {"top_k": 5}], ids=["plain", "truncated"])
def test_a_micro_batch_without_scores_is_no_obstacle(tmp_path, sampling):
    def only_one(prompts, number, **columns):
        return [1.0 if n == min(number) else None for n in number]

    trainer = make_trainer(tmp_path, reward=only_one, per_device_train_batch_size=1, num_mini_batches=8, **sampling)
    trainer.train()
    assert all(math.isfinite(row["loss"]) for row in iterations_of(tmp_path))


def test_the_score_is_paid_on_the_last_token_and_the_kl_on_every_one(tmp_path):
    trainer = make_trainer(tmp_path, reward=lambda prompts, **_: [5.0] * len(prompts), kl_coef=0.3)
    perturb(trainer.policy, only="lora")
    experience = trainer.make_experience(0)
    mask = experience.mask
    expected = -0.3 * (experience.logprobs - experience.reference_logprobs)
    expected[torch.arange(len(mask)), mask.sum(dim=1) - 1] += 5.0
    torch.testing.assert_close(experience.per_token_rewards, torch.where(mask, expected, 0.0))
    assert (experience.logprobs - experience.reference_logprobs).abs().max() > 0.01


def test_a_missing_end_costs_exactly_the_penalty(tmp_path):
    trainer = make_trainer(
        tmp_path, reward=lambda prompts, **_: [2.0] * len(prompts), missing_eos_penalty=0.75, stop_token_ids=[8, 9, 10]
    )
    trainer.train()
    for row in iterations_of(tmp_path):
        assert row["reward"] == pytest.approx(2.0)
        assert row["objective/scores"] == pytest.approx(2.0 - 0.75 * row["completions/clipped_ratio"])
        assert 0 < row["completions/clipped_ratio"] < 1


def test_reward_weights_reach_the_score(tmp_path):
    def one(prompts, **_):
        return [1.0] * len(prompts)

    def two(prompts, **_):
        return [2.0] * len(prompts)

    make_trainer(tmp_path, reward=[one, two], reward_weights=[0.5, -3.0], max_steps=4).train()
    row = iterations_of(tmp_path)[0]
    assert (row["rewards/one/mean"], row["rewards/two/mean"], row["reward"]) == (1.0, 2.0, -5.5)


def test_a_reward_model_by_path_shares_the_policys_backbone(tmp_path):
    from peft import get_peft_model

    from hf_rlhf.models.load import load_causal_lm, load_sequence_classifier
    from hf_rlhf.models.reward_model import SharedRewardModel

    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    classifier = load_sequence_classifier(base, dtype="float32")
    config = make_lora(task_type="SEQ_CLS", modules_to_save=["score"])
    perturb(get_peft_model(classifier, config), only="lora").save_pretrained(tmp_path / "helpful")
    tokenizer.save_pretrained(tmp_path / "helpful")

    trainer = make_trainer(
        tmp_path / "run",
        model=load_causal_lm(base, dtype="float32"),
        reward=[str(tmp_path / "helpful"), happy_reward],
        save_strategy="steps",
        save_steps=8,
    )
    assert isinstance(trainer.rewards.functions[0].model, SharedRewardModel)
    before = snapshot(trainer.policy)
    trainer.train()
    rows = iterations_of(tmp_path / "run")
    assert rows[0]["objective/kl"] == 0
    assert rows[0]["rewards/helpful/std"] > 0
    assert "rewards/happy_reward/mean" in rows[0]
    after = snapshot(trainer.policy)
    assert all(torch.equal(after[name], before[name]) for name in after if ".reward." in name)
    saved = {file.name for file in (tmp_path / "run" / "checkpoint-8").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "value_head.safetensors"} <= saved


# KL control


def test_the_adaptive_coefficient_moves_against_the_error():
    control = AdaptiveKL(0.1, target=6.0, horizon=1000)
    control.update(6.0, 100)
    assert control.coef == 0.1
    control.update(6.6, 100)
    assert control.coef == pytest.approx(0.1 * 1.01)
    control.update(600.0, 100)
    assert control.coef == pytest.approx(0.1 * 1.01 * 1.02)
    control.update(0.0, 100)
    assert control.coef == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)


@pytest.mark.parametrize(("target", "falls"), [(1e-4, False), (1e4, True)])
def test_the_coefficient_of_a_run_follows_its_kl(tmp_path, target, falls):
    trainer = make_trainer(tmp_path, kl_target=target, kl_horizon=80, max_steps=12, kl_estimator="k3")
    trainer.train()
    coefficients = [row["objective/kl_coef"] for row in iterations_of(tmp_path)]
    assert coefficients[0] == 0.05
    assert coefficients[1] == pytest.approx(0.05 * 0.98)  # a KL of 0 is below any target
    assert coefficients[2] == pytest.approx(coefficients[1] * (0.98 if falls else 1.02))


def test_the_controller_hears_of_the_kl_of_a_scored_completion(tmp_path):
    """A tenth above the target, and so e = 0.1; of a token, or of all completions, it would be far below."""

    def unscored(prompts, number, **_):
        return [None if n % 2 else 1.0 for n in number]

    flags = {"reward": unscored, "data": make_prompts(8), "kl_estimator": "k3"}
    first = make_trainer(tmp_path, **flags)
    experience = perturb_and_make(first)
    kl = experience.kl.sum(dim=1)[experience.mask.any(dim=1)]
    assert len(kl) == 4
    second = make_trainer(tmp_path, **flags, kl_target=kl.mean().item() / 1.1, kl_horizon=80)
    perturb_and_make(second)
    assert second.kl_control.coef == pytest.approx(0.05 * (1 + 0.1 * 8 / 80))


def perturb_and_make(trainer):
    perturb(trainer.policy, only="lora")
    return trainer.make_experience(0)


# Evaluation


def test_evaluation_makes_draws_of_its_own_and_the_same_each_time(tmp_path):
    extra = {"eval_dataset": make_prompts(8)}
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=4, max_steps=12, trainer_kwargs=extra)
    sample, seeds = trainer.sample, []
    trainer.sample = lambda rows, given: seeds.append(given) or sample(rows, given)
    trainer.train()
    of_training, of_evaluation = seeds[::2], seeds[1::2]
    assert of_evaluation == [of_evaluation[0]] * 3
    assert len({seed for given in seeds for seed in given}) == (3 + 1) * 8
    assert of_evaluation[0] not in of_training


def test_evaluation_by_steps_logs_reward_and_kl(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=4,
        max_steps=12,
        trainer_kwargs={"eval_dataset": make_prompts(5)},
    )
    trainer.train()
    rows = [row for row in metrics_of(tmp_path) if "eval_reward" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert all(math.isfinite(row["eval_kl"]) for row in rows)
    assert len({row["eval_kl"] for row in rows}) == 3


def test_evaluation_makes_the_same_draws_each_time_and_disturbs_no_training(tmp_path):
    for folder, flags in (("with", {"eval_strategy": "steps", "eval_steps": 4}), ("without", {})):
        trainer = make_trainer(tmp_path / folder, trainer_kwargs={"eval_dataset": make_prompts(5)}, **flags)
        trainer.train()
        if folder == "with":
            first, second = trainer.evaluate(), trainer.evaluate()
            first.pop("eval_runtime"), second.pop("eval_runtime")
            assert first == second
    with_evaluation = [row for row in metrics_of(tmp_path / "with") if "iteration" in row]
    assert with_evaluation == [row for row in metrics_of(tmp_path / "without") if "iteration" in row]


def test_time_spent_on_evaluation_is_not_the_next_iterations(tmp_path):
    def slow_in_evaluation(prompts, evaluation=None, **_):
        import time

        if evaluation:
            time.sleep(0.5)
        return [0.0] * len(prompts)

    held_out = make_prompts(5).add_column("evaluation", [True] * 5)
    make_trainer(
        tmp_path,
        reward=slow_in_evaluation,
        eval_strategy="steps",
        eval_steps=4,
        trainer_kwargs={"eval_dataset": held_out},
    ).train()
    assert iterations_of(tmp_path)[1]["time/reward"] < 0.4


def test_several_evaluation_sets_are_logged_by_name(tmp_path):
    sets = {"seen": make_prompts(4), "new": make_prompts(6)}
    trainer = make_trainer(tmp_path, trainer_kwargs={"eval_dataset": sets})
    metrics = trainer.evaluate()
    assert {"eval_seen_reward", "eval_seen_kl", "eval_new_reward", "eval_new_kl"} <= set(metrics)
    assert metrics["eval_seen_kl"] == 0
    one = trainer.evaluate(make_prompts(6), metric_key_prefix="test")
    assert one["test_reward"] == metrics["eval_new_reward"]


def test_evaluation_without_a_set_is_an_error(tmp_path):
    with pytest.raises(InputError, match="eval_dataset"):
        make_trainer(tmp_path).evaluate()


# Records

OF_TRANSFORMERS = {"step", "epoch", "learning_rate"}


def is_documented(key):
    if key in METRICS or key in OF_TRANSFORMERS or key.startswith("train_"):
        return True
    if key.startswith("eval_"):
        return key == "eval_runtime" or is_documented(key.removeprefix("eval_"))
    parts = key.split("/")
    if parts[0] == "episodes":
        return len(parts) == 2 and "episodes/<name>" in METRICS
    if parts[0] == "gradient_variance":
        return len(parts) == 2 and "gradient_variance/<estimator>" in METRICS
    return parts[0] == "rewards" and len(parts) == 3 and f"rewards/<name>/{parts[2]}" in METRICS


def test_metrics_are_json_lines_and_every_key_is_documented(tmp_path, tokenizer):
    server = VLLMDouble(make_model(tokenizer), tokenizer).start()
    texts = Dataset.from_dict({"text": ["the cat sat on the mat", "a good dog ran"]})
    make_trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=8,
        entropy_coef=0.01,
        kl_estimator="full",
        kl_in_loss=True,
        ptx_coef=0.1,
        dual_clip=3.0,
        use_vllm=True,
        vllm_server_base_url=server.url,
        max_turns=1,
        trainer_kwargs={"eval_dataset": make_prompts(4), "ptx_dataset": texts, "environment": SingleTurn},
    ).train()
    server.stop()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 8, 8]
    more = {
        "advantage_estimator": "dae",
        "log_gradient_variance": 1,
        "first_greedy_tokens_end": 2,
        "temperature_end": 0.5,
    }
    make_trainer(tmp_path / "estimators", **more).train()
    rows += [json.loads(line) for line in (tmp_path / "estimators" / "metrics.jsonl").read_text().splitlines()]
    undocumented = {key for row in rows for key in row if not is_documented(key)}
    assert not undocumented
    logged = {key for row in rows for key in row}
    missing = {key for key in METRICS if key not in logged and "<" not in key}
    assert not missing
    assert all(isinstance(value, (int, float)) for row in rows for value in row.values())


def test_objective_numbers_belong_together(tmp_path):
    make_trainer(tmp_path, kl_coef=0.3).train()
    for row in iterations_of(tmp_path):
        assert row["objective/non_score_reward"] == pytest.approx(-0.3 * row["objective/kl"])
        assert row["objective/rlhf_reward"] == pytest.approx(
            row["objective/scores"] + row["objective/non_score_reward"]
        )
        assert row["val/num_eos_tokens"] == 8 * (1 - row["completions/clipped_ratio"])
        assert row["completions/min_length"] <= row["completions/mean_length"] <= row["completions/max_length"]
        assert row["step_time"] == pytest.approx(sum(value for key, value in row.items() if key.startswith("time/")))
    assert iterations_of(tmp_path)[1]["num_tokens"] == pytest.approx(
        8 * sum(row["completions/mean_length"] for row in iterations_of(tmp_path))
    )


def test_samples_settings_and_versions_are_written(tmp_path):
    make_trainer(tmp_path, num_logged_samples=3).train()
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(0, "train")] * 3 + [(4, "train")] * 3
    assert [row["iteration"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert set(rows[0]) == {
        "step",
        "iteration",
        "split",
        "prompt",
        "completion",
        "stopped",
        "reward",
        "score",
        "rewards",
    }
    assert rows[0]["prompt"][0]["role"] == "user"
    assert set(rows[0]["completion"].split()) <= set(WORDS) | {"system", "user", "assistant"}
    assert rows[0]["score"] == rows[0]["reward"] == rows[0]["rewards"]["happy_reward"]
    assert json.loads((tmp_path / "versions.json").read_text())["torch"] == torch.__version__
    assert "num_ppo_epochs: 2" in (tmp_path / "config.yaml").read_text()


def test_the_trained_policy_loads_with_plain_peft(tmp_path):
    from peft import PeftModel

    trainer = make_trainer(tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(make_model(make_tokenizer()), tmp_path / "saved")
    ids = torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        trainer.policy.eval()
        torch.testing.assert_close(loaded.eval()(ids).logits, trainer.policy.model(ids).logits, rtol=1e-6, atol=1e-6)


# Learning


@pytest.mark.parametrize("learning_rate", [1e-2, 0.0])
def test_it_learns_to_say_happy_and_only_by_learning(tmp_path, learning_rate):
    make_trainer(
        tmp_path,
        data=make_prompts(32),
        per_device_train_batch_size=16,
        learning_rate=learning_rate,
        kl_coef=0.01,
        lr_scheduler_type="constant",
        max_steps=160,
    ).train()
    rewards = [row["reward"] for row in iterations_of(tmp_path)]
    assert len(rewards) == 40
    last = sum(rewards[-5:]) / 5
    assert rewards[0] < 0.15
    assert last > 0.6 if learning_rate else last < 0.15


# Resuming


@pytest.mark.parametrize("lora", [True, None], ids=["lora", "full"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, lora):
    flags = {
        "max_steps": 16,
        "save_strategy": "steps",
        "save_steps": 8,
        "kl_target": 0.5,
        "kl_horizon": 100,
        "learning_rate": 1e-3 if lora is None else 1e-2,
        "lora": lora,
    }
    whole = make_trainer(tmp_path / "whole", **flags)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **flags)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    expected = snapshot(whole.policy)
    for name, parameter in resumed.policy.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    rows = [row for row in metrics_of(tmp_path / "whole") if "iteration" in row]
    assert [row for row in metrics_of(tmp_path / "resumed") if "iteration" in row] == rows[2:]
    assert len({row["objective/kl_coef"] for row in rows}) == 4


def test_a_folder_that_is_no_ppo_checkpoint_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path / "run", save_strategy="steps", save_steps=8)
    trainer.train()
    (tmp_path / "run" / "checkpoint-8" / "ppo_state.json").unlink()
    with pytest.raises(InputError, match=r"ppo_state\.json"):
        make_trainer(tmp_path / "again", max_steps=16).train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8")
        )


def test_plain_text_prompts_work_and_see_text_completions(tmp_path):
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(completions)
        return happy_reward(prompts, completions)

    data = Dataset.from_dict({"prompt": [f"the {word}" for word in WORDS]})
    make_trainer(tmp_path, data=data, reward=reward, max_steps=4).train()
    assert len(seen) == 8
    assert all(isinstance(completion, str) for completion in seen)


def test_without_a_terminal_there_is_a_line_a_log_with_the_time_left(tmp_path, capsys):
    make_trainer(tmp_path, reward=lambda completions, **_: [1.0] * len(completions), max_steps=8, kl_coef=0.0,
                 disable_tqdm=False).train()  # fmt: skip
    output = capsys.readouterr()
    lines = [line for line in output.out.splitlines() if line.startswith("update ")]
    assert [line.split()[1] for line in lines] == ["4/8", "8/8"]
    assert re.search(r"\(\d+ s, about \d+ s left\): iteration 1  reward 1\.000 ", lines[0])
    assert "\r" not in output.out + output.err


def test_a_number_that_could_not_be_computed_is_null_on_the_console_too():
    assert (
        numbers_of({"a": float("nan"), "b": 1.0}, (("a", "first", 2), ("b", "second", 1))) == "first null  second 1.0"
    )


def test_rows_are_read_and_sampled_where_ranks_fail_together(tmp_path, monkeypatch):
    """A rank whose stream breaks must not leave the others waiting."""
    trainer = make_trainer(tmp_path)
    held, seen = [], []

    @contextmanager
    def sampling():
        held.append(True)
        yield
        held.pop()

    for owner, name in ((trainer.prompts, "rows"), (trainer, "sample"), (trainer, "compute_rewards")):
        method = getattr(owner, name)

        def watched(*args, method=method, name=name):
            seen.append((name, bool(held)))
            return method(*args)

        monkeypatch.setattr(owner, name, watched)
    monkeypatch.setattr(trainer, "_sampling", sampling)
    trainer.make_experience(0)
    assert seen == [("rows", True), ("sample", True), ("compute_rewards", True)]
