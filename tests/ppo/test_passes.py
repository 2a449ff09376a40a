"""The number of times a run computes the blocks and the head of each model: no pass is made without need."""

from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from tiny import make_lora, make_model, make_prompts, make_tokenizer, make_trainer, metrics_of, trained
from tiny_critics import make_critic_trainer, make_places

from hf_rlhf.models.adapters import base_of
from hf_rlhf.models.critics import ModelCritic
from hf_rlhf.models.fast.trunk import block_list
from hf_rlhf.ops import logprobs

LAST = make_lora(target_modules=["q_proj", "down_proj"], layers_to_transform=[1], layers_pattern="layers")
ONE_BATCH = {"rollout_forward_batch_size": 8}
MICRO_BATCHES = 2 * 2  # of an iteration: two epochs of two minibatches


class Count(NamedTuple):
    """Calls in one phase of an iteration."""

    lowest: int  # of the base's first block
    highest: int  # of its last one
    head: int  # of its language-model head
    besides: int = 0  # of the last block of a critic or a reference that is a model of its own
    entropy: int = 0


class Counted:
    """Count what a trainer computes, by phase."""

    def __init__(self, trainer, monkeypatch):
        self.calls, self.phase = Counter(), None
        policy = trainer.policy
        base = base_of(policy.model)
        blocks = block_list(base)[1]
        self._watch(blocks[0], "lowest")
        self._watch(blocks[-1], "highest")
        self._watch(base.get_output_embeddings(), "head")
        critic = base_of(policy.critic.model) if isinstance(policy.critic, ModelCritic) else None
        for other in filter(None, (critic, policy.reference_model)):
            self._watch(block_list(other)[1][-1], "besides")
        entropy = logprobs._entropy
        monkeypatch.setattr(logprobs, "_entropy", lambda each: self.add("entropy") or entropy(each))
        self.longest = 0
        for name in ("sample", "compute_rewards", "forward_pass", "training_step"):
            monkeypatch.setattr(trainer, name, self._in_phase(name, getattr(trainer, name)))

    def add(self, what):
        self.calls[self.phase, what] += 1

    def of(self, phase):
        return Count(*(self.calls[phase, what] for what in Count._fields))

    def _watch(self, module, what):
        module.register_forward_hook(lambda *_: self.add(what))

    def _in_phase(self, name, method):
        def call(*args, **kwargs):
            with self._at(name):
                result = method(*args, **kwargs)
            if name == "sample":
                self.longest = max(len(each.completion.ids) for each in result)
            return result

        return call

    @contextmanager
    def _at(self, phase):
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return make_places(tmp_path_factory.mktemp("places"))


# Of each kind: flags, then the passes of scoring, of an evaluation and of each micro-batch
ENTROPY = {"entropy": 1}
KINDS = {
    "value head": ({}, Count(2, 2, 2, **ENTROPY), Count(2, 2, 2), Count(1, 1, 2)),
    "adapter": ({"critic": "adapter"}, Count(3, 3, 2, **ENTROPY), Count(2, 2, 2), Count(2, 2, 2)),
    "model": ({"critic": "model"}, Count(2, 2, 2, 1, **ENTROPY), Count(2, 2, 2), Count(1, 1, 2, 1)),
    "full policy": ({"lora": None}, Count(1, 1, 1, 1, **ENTROPY), Count(1, 1, 1, 1), Count(1, 1, 2)),
    "entropy in the loss": ({"entropy_coef": 0.1}, Count(2, 2, 2, **ENTROPY), Count(2, 2, 2), Count(1, 1, 2, 0, 2)),
    "exact KL": ({"kl_estimator": "full"}, Count(2, 2, 4, **ENTROPY), Count(2, 2, 3), Count(1, 1, 2)),
    "truncated sampling": ({"top_p": 0.9}, Count(2, 2, 2, **ENTROPY), Count(2, 2, 2), Count(1, 1, 2)),
    # Above an untrained trunk, which is computed once for each completion
    "value head, last block": ({"lora": LAST}, Count(1, 2, 2, **ENTROPY), Count(1, 2, 2), Count(0, 1, 2)),
    "adapter, last block": (
        {"lora": LAST, "critic": "adapter"},
        Count(1, 3, 2, **ENTROPY),
        Count(1, 2, 2),
        Count(0, 2, 2),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_pass_is_made_that_no_number_needs(places, tmp_path, monkeypatch, kind):
    flags, scoring, evaluation, micro_batch = KINDS[kind]
    trainer = make_critic_trainer(
        tmp_path, places, max_steps=4, **ONE_BATCH, trainer_kwargs={"eval_dataset": make_prompts(8)}, **flags
    )
    counted = Counted(trainer, monkeypatch)
    trainer.train()
    longest = counted.longest
    assert counted.of("sample")[:2] == (longest, longest)  # a pass for each token, the first of which reads the prompts
    assert counted.of("compute_rewards") == Count(0, 0, 0)  # by a function
    assert counted.of("forward_pass") == scoring
    assert counted.of("training_step") == Count(*(MICRO_BATCHES * calls for calls in micro_batch))
    counted.calls.clear()
    trainer.evaluate()
    longest = counted.longest
    assert counted.of("sample")[:2] == (longest, longest)
    assert counted.of("forward_pass") == evaluation
    assert not any(phase is None for phase, _ in counted.calls)


@pytest.mark.parametrize("reward", ["reward", "full_reward"])
def test_a_reward_model_reads_each_completion_once(places, tmp_path, monkeypatch, reward):
    trainer = make_critic_trainer(tmp_path, places, max_steps=4, reward=places[reward], **ONE_BATCH)
    counted = Counted(trainer, monkeypatch)
    trainer.train()
    passes = 1 if reward == "reward" else 0  # of the policy's base, on which that one is an adapter
    assert counted.of("compute_rewards") == Count(passes, passes, 0)
    assert counted.of("forward_pass") == Count(2, 2, 2, **ENTROPY)


@pytest.mark.parametrize("flags", [{}, {"critic": "adapter"}, {"kl_estimator": "full"}], ids=str)
def test_an_evaluation_without_them_leaves_every_number_as_it_was(tmp_path, monkeypatch, flags):
    def run(folder, *, everything):
        data = make_prompts(8)
        trainer = make_trainer(
            folder,
            model=make_model(make_tokenizer()),
            eval_strategy="steps",
            eval_steps=4,
            trainer_kwargs={"eval_dataset": data},
            **flags,
        )
        if everything:
            forward_pass = trainer.forward_pass

            def all_numbers(trajectories, *, kl_only=False):
                return forward_pass(trajectories)

            monkeypatch.setattr(trainer, "forward_pass", all_numbers)
        trainer.train()
        samples = (folder / "samples.jsonl").read_text()
        weights = {name: weight.tolist() for name, weight in trained(trainer.policy).items()}
        return metrics_of(folder), samples, weights

    assert run(tmp_path / "some", everything=False) == run(tmp_path / "all", everything=True)
