"""The examples of docs/how-to/stages.md: each replaces one stage in a few lines, and that stage alone."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_config, make_lora, make_model, make_prompts, make_tokenizer, metrics_of, perturb, snapshot

from hf_rlhf.errors import InputError
from hf_rlhf.ops import masked_sum
from hf_rlhf.ppo.experience import MicroBatch
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.types import Completion

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "stages.md"
STAGES = ("sample", "compute_rewards", "advantages", "loss")


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Gives the class of the page's section on a stage, run from a file so that its source can be read."""

    def of_stage(stage):
        blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        (block,) = [block for block in blocks if f"def {stage}(" in block]
        file = tmp_path / f"{stage}_of_the_page.py"
        file.write_text(block, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, file.stem, module)
        spec.loader.exec_module(module)
        (found,) = [value for value in vars(module).values() if getattr(value, "__module__", None) == file.stem]
        return found

    return of_stage


def lengths(prompts, completions, completion_ids, **columns):
    return [len(ids) / 8 for ids in completion_ids]


def make(trainer_class, folder, **config):
    tokenizer = make_tokenizer()
    return trainer_class(
        make_model(tokenizer),
        lengths,
        make_config(folder, **{"per_device_train_batch_size": 8, "stop_token_ids": [8, 9, 10], **config}),
        make_prompts(),
        processing_class=tokenizer,
        peft_config=make_lora(),
    )


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_replaced_in_ten_lines_and_the_run_is_another(tmp_path, example, stage):
    replaced = example(stage)
    assert len(inspect.getsource(replaced).splitlines()) <= 10
    assert [name for name in vars(replaced) if not name.startswith("__")] == [stage]
    weights = []
    for trainer_class in (PPOTrainer, replaced):
        trainer = make(trainer_class, tmp_path / trainer_class.__name__)
        trainer.train()
        weights.append(snapshot(trainer.policy))
        rows = metrics_of(tmp_path / trainer_class.__name__)
        assert [row["iteration"] for row in rows[:-1]] == [1, 2]
    assert any(not torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_the_longer_of_two_completions_is_learned_from(tmp_path, example):
    trainer = make(example("sample"), tmp_path)
    rows, seeds = trainer.prompts.rows(0), trainer._seeds("train", 0)
    first, second = (make(PPOTrainer, tmp_path).sample(rows, [seed ^ bit for seed in seeds]) for bit in (0, 1))
    pairs = [(len(a.completion.ids), len(b.completion.ids)) for a, b in zip(first, second, strict=True)]
    assert any(a > b for a, b in pairs)
    assert any(a < b for a, b in pairs)
    experience = trainer.make_experience(0)
    assert experience.mask.sum(dim=1).tolist() == [max(pair) for pair in pairs]


def test_the_bonus_is_part_of_the_reward_and_is_paid(tmp_path, example):
    plain, bonus = make(PPOTrainer, tmp_path), make(example("compute_rewards"), tmp_path)
    trajectories = plain.sample(plain.prompts.rows(0), plain._seeds("train", 0))
    ends = torch.tensor([trajectory.completion.stopped for trajectory in trajectories])
    assert 0 < ends.sum() < len(ends)
    difference = bonus.make_experience(0).scores - plain.make_experience(0).scores
    torch.testing.assert_close(difference, 0.5 * ends)
    shares = [trainer.iteration_log.metrics["reward"] for trainer in (plain, bonus)]
    assert shares[1] - shares[0] == pytest.approx(0.5 * ends.float().mean().item())


def test_a_completion_is_judged_by_the_mean_of_the_others(tmp_path, example):
    trainer = make(example("advantages"), tmp_path, kl_coef=0.3)
    trainer.rewards.functions[0] = lambda **given: [None, *lengths(**given)[1:]]
    perturb(trainer.policy, only="lora")
    experience = trainer.make_experience(0)
    assert not experience.mask[0].any()
    totals = experience.per_token_rewards.sum(dim=1).tolist()[1:]
    for b, total in enumerate(totals):
        others = [other for i, other in enumerate(totals) if i != b]
        advantages = experience.advantages[b + 1][experience.mask[b + 1]]
        assert advantages.tolist() == pytest.approx([total - sum(others) / len(others)] * len(advantages), abs=1e-5)
    assert not experience.advantages[~experience.mask].any()


def test_the_plain_policy_gradient_knows_no_ratio(tmp_path, example):
    trainer = make(example("loss"), tmp_path, vf_coef=0.0)
    perturb(trainer.policy, only="lora")
    experience = trainer.make_experience(0)
    perturb(trainer.policy, only="lora", seed=8)  # off policy, where PPO's gradient is another

    def gradient(loss):
        trainer.policy.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in trainer.policy.policy_parameters()])

    tokens = int(experience.mask.sum())
    batch = {"micro_batch": MicroBatch(experience, tokens)}
    logprobs = trainer.policy(experience.sequences).logprobs
    expected = gradient(-masked_sum(logprobs * experience.advantages, experience.mask) / tokens)
    torch.testing.assert_close(gradient(trainer.compute_loss(trainer.policy, batch)), expected)
    trainer.loss = lambda *given: PPOTrainer.loss(trainer, *given)
    assert (gradient(trainer.compute_loss(trainer.policy, batch)) - expected).norm() > 1e-2 * expected.norm()


def test_a_loss_without_the_statistic_that_a_flag_reads_is_told_so(tmp_path, example):
    trainer = make(example("loss"), tmp_path, early_stop_kl=0.1)
    with pytest.raises(InputError, match=r"early_stop_kl.*policy/approxkl_avg"):
        trainer.train()


class Silent(PPOTrainer):
    """Its sampler gives tokens, and nothing about what they were chosen from."""

    def sample(self, rows, seeds):
        trajectories = super().sample(rows, seeds)
        for trajectory in trajectories:
            trajectory.completion = Completion(trajectory.completion.ids, [], trajectory.completion.stopped)
        return trajectories


def test_a_sampler_of_ones_own_need_not_say_what_top_k_left(tmp_path):
    said, worked_out = (make(kind, tmp_path, top_k=6, top_p=0.9).make_experience(0) for kind in (PPOTrainer, Silent))
    for name in ("logprobs", "reference_logprobs", "kl", "entropy", "advantages"):
        assert torch.equal(getattr(said, name), getattr(worked_out, name)), name
    torch.testing.assert_close(said.logprobs, said.sampler_logprobs, rtol=0, atol=1e-5)
