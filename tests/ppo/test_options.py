"""Each flag does what its help says, through the trainer."""

import asyncio
import dataclasses
import json
import math

import pytest
import torch
from datasets import Dataset
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
)
from transformers import TrainerCallback

from hf_rlhf.errors import InputError
from hf_rlhf.ops import kl_estimate, masked_sum, whiten
from hf_rlhf.ppo.experience import MicroBatch, micro_batches
from hf_rlhf.ppo.guard import UpdateGuard
from hf_rlhf.ppo.iteration_log import IterationLog
from hf_rlhf.ppo.rules import KL_CHOICES

TOKENIZER = make_tokenizer()
TEXTS = Dataset.from_dict({"text": [" ".join(WORDS[i : i + 3 + i % 3]) for i in range(6)]})


def iterations_of(folder):
    return [row for row in metrics_of(folder) if "iteration" in row]


def by_number(prompts, completions, completion_ids, **columns):
    """A reward with some spread, from ids alone."""
    return [sum(ids) / 20 - len(ids) / 3 for ids in completion_ids]


def zero(prompts, **columns):
    return [0.0] * len(prompts)


def one_scored(prompts, number, **columns):
    return [float(n) if n == max(number) else None for n in number]


# The loss, against its formula on full logits


def started(folder, **flags):
    """A trainer whose policy has left its reference, the experience it made, and then a policy further on."""
    flags = {"reward": by_number, "vf_coef": 0.0, **flags}
    trainer = make_trainer(folder, **flags)
    perturb(trainer.policy, only="lora", scale=0.1)
    experience = trainer.make_experience(0)
    perturb(trainer.policy, only="lora", scale=0.05, seed=8)
    return trainer, experience


def distributions(trainer, experience, model=None):
    """Log-probabilities `(B, T, V)` of every token, from plain logits of one unpadded sequence at a time."""
    sequences, rows = experience.sequences, []
    model = trainer.policy.model if model is None else model
    for b, prompt in enumerate(sequences.prompt_lengths.tolist()):
        length = int(sequences.attention_mask[b].sum())
        logits = model(sequences.input_ids[b : b + 1, :length]).logits[0, prompt - 1 : length - 1]
        logprobs = (logits / trainer.args.temperature).log_softmax(dim=-1)
        rows.append(torch.nn.functional.pad(logprobs, (0, 0, 0, experience.mask.shape[1] - len(logprobs))))
    return torch.stack(rows)


def sampled(trainer, experience):
    """`(B, T)` indices of the sampled tokens; 0 in the padding."""
    ids = torch.zeros(experience.mask.shape, dtype=torch.long)
    for b, prompt in enumerate(experience.sequences.prompt_lengths.tolist()):
        length = int(experience.sequences.attention_mask[b].sum()) - prompt
        ids[b, :length] = experience.sequences.input_ids[b, prompt : prompt + length]
    return ids


def gradient_of(trainer, loss):
    trainer.policy.zero_grad()
    loss.backward()
    gradients = [parameter.grad for parameter in trainer.policy.policy_parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def trainers_gradient(trainer, experience):
    tokens = int(experience.mask.sum())
    return gradient_of(trainer, trainer.compute_loss(trainer.policy, {"micro_batch": MicroBatch(experience, tokens)}))


def surrogate(trainer, experience, low=0.2, high=0.2, dual=math.inf):
    """PPO's clipped objective of each token `(B, T)`."""
    logprobs = distributions(trainer, experience).gather(2, sampled(trainer, experience)[..., None]).squeeze(2)
    ratio, advantages = (logprobs - experience.logprobs).exp(), experience.advantages
    objective = torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    if dual < math.inf:
        objective = torch.where(advantages < 0, torch.max(objective, dual * advantages), objective)
    return objective


def mean(values, experience):
    return masked_sum(values, experience.mask) / experience.mask.sum()


@pytest.mark.parametrize(
    ("flags", "bounds"),
    [
        ({}, {}),
        ({"cliprange": 0.05}, {"low": 0.05, "high": 0.05}),
        ({"cliprange_high": 0.5}, {"high": 0.5}),
        ({"dual_clip": 1.3}, {"dual": 1.3}),
    ],
    ids=["plain", "cliprange", "clip-higher", "dual clip"],
)
def test_the_policys_gradient_is_that_of_the_clipped_objective(tmp_path, flags, bounds):
    trainer, experience = started(tmp_path, **flags)
    expected = gradient_of(trainer, -mean(surrogate(trainer, experience, **bounds), experience))
    torch.testing.assert_close(trainers_gradient(trainer, experience), expected, rtol=1e-3, atol=1e-5)
    if bounds:  # and the flag matters here
        plain = gradient_of(trainer, -mean(surrogate(trainer, experience), experience))
        assert (plain - expected).norm() > 1e-2 * plain.norm()


def test_the_share_of_dually_clipped_tokens_is_logged(tmp_path):
    trainer, experience = started(tmp_path, dual_clip=1.3)
    trainers_gradient(trainer, experience)
    with torch.no_grad():
        bound = surrogate(trainer, experience) < 1.3 * experience.advantages
    logged = trainer.iteration_log.finished()["policy/dual_clipfrac_avg"]
    assert logged == pytest.approx(mean((bound & (experience.advantages < 0)).float(), experience).item())
    assert logged > 0


class ShiftedSampler:
    """An engine that reports log-probabilities off by a constant."""

    def __init__(self, engine, shift):
        self.engine, self.shift = engine, shift

    def generate(self, prompts, sampling, seeds):
        completions = self.engine.generate(prompts, sampling, seeds)
        return [
            dataclasses.replace(each, logprobs=[logprob + self.shift for logprob in each.logprobs])
            for each in completions
        ]


@pytest.mark.parametrize(("shift", "weight"), [(-0.1, math.exp(0.1)), (-1.0, 1.5), (0.4, math.exp(-0.4))])
def test_tokens_weigh_what_the_sampler_thought_too_unlikely_up_to_the_cap(tmp_path, shift, weight):
    trainer = make_trainer(tmp_path, reward=by_number, importance_sampling_cap=1.5, vf_coef=0.0)
    trainer.engine = ShiftedSampler(trainer.engine, shift)
    experience = trainer.make_experience(0)
    gradient = trainers_gradient(trainer, experience)
    plain = gradient_of(trainer, -mean(surrogate(trainer, experience), experience))
    torch.testing.assert_close(gradient, weight * plain, rtol=1e-3, atol=1e-5)
    metrics = trainer.iteration_log.finished()
    assert metrics["sampling/importance_weight"] == pytest.approx(weight, rel=1e-5)
    assert metrics["sampling/logp_gap"] == pytest.approx(abs(shift), rel=1e-4)


def test_without_the_cap_the_samplers_arithmetic_changes_nothing(tmp_path):
    trainer = make_trainer(tmp_path, reward=by_number, vf_coef=0.0)
    trainer.engine = ShiftedSampler(trainer.engine, -1.0)
    experience = trainer.make_experience(0)
    plain = gradient_of(trainer, -mean(surrogate(trainer, experience), experience))
    torch.testing.assert_close(trainers_gradient(trainer, experience), plain, rtol=1e-3, atol=1e-5)
    assert "sampling/importance_weight" not in trainer.iteration_log.finished()


def entropies(trainer, experience):
    logprobs = distributions(trainer, experience)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_entropy_bonus_has_the_gradient_of_the_entropy(tmp_path, temperature):
    trainer, experience = started(tmp_path, entropy_coef=0.3, temperature=temperature)
    objective = surrogate(trainer, experience) + 0.3 * entropies(trainer, experience)
    expected = gradient_of(trainer, -mean(objective, experience))
    torch.testing.assert_close(trainers_gradient(trainer, experience), expected, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        entropy = mean(entropies(trainer, experience), experience).item()
    assert trainer.iteration_log.finished()["loss/entropy_avg"] == pytest.approx(entropy, rel=1e-4)


@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_the_entropy_rises_by_its_bonus_alone(tmp_path, entropy_coef):
    make_trainer(tmp_path, reward=zero, entropy_coef=entropy_coef, kl_coef=0.0, max_steps=20).train()
    entropy = [row["policy/entropy_avg"] for row in iterations_of(tmp_path)]
    if entropy_coef:
        assert entropy[-1] > entropy[0] + 0.3
    else:
        assert entropy[-1] == pytest.approx(entropy[0], abs=0.3)


def reference_distributions(trainer, experience):
    with trainer.policy.reference() as model, torch.no_grad():
        return distributions(trainer, experience, model)


def kl_by_hand(estimator, trainer, experience):
    """`(B, T)` with gradient, from full logits."""
    policy, reference = distributions(trainer, experience), reference_distributions(trainer, experience)
    if estimator == "full":
        return (policy.exp() * (policy - reference)).sum(dim=-1)
    ids = sampled(trainer, experience)[..., None]
    log_r = (reference.gather(2, ids) - policy.gather(2, ids)).squeeze(2)
    return {
        "k1": lambda: -log_r,
        "k2": lambda: log_r**2 / 2,
        "k3": lambda: log_r.exp() - 1 - log_r,
        "abs": lambda: log_r.abs(),
    }[estimator]()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("estimator", ["k2", "k3", "abs", "full"])
def test_the_kl_in_the_loss_has_its_own_gradient_and_is_not_in_the_rewards(tmp_path, estimator, temperature):
    flags = {"kl_estimator": estimator, "temperature": temperature, "kl_coef": 0.4}
    trainer, experience = started(tmp_path, kl_in_loss=True, **flags)
    kl = kl_by_hand(estimator, trainer, experience)
    expected = gradient_of(trainer, -mean(surrogate(trainer, experience) - 0.4 * kl, experience))
    torch.testing.assert_close(trainers_gradient(trainer, experience), expected, rtol=1e-3, atol=1e-5)
    assert trainer.iteration_log.finished()["loss/kl_avg"] == pytest.approx(mean(kl, experience).item(), rel=1e-4)

    paid = experience.per_token_rewards[experience.per_token_rewards != 0]
    torch.testing.assert_close(paid, experience.scores)  # on the last tokens, and nothing anywhere else
    assert experience.kl[experience.mask].abs().min() > 0
    assert trainer.iteration_log.metrics["objective/non_score_reward"] < 0


def test_the_kl_in_the_loss_weighs_what_the_controller_says(tmp_path):
    trainer = make_trainer(
        tmp_path,
        reward=by_number,
        vf_coef=0.0,
        kl_in_loss=True,
        kl_estimator="k2",
        kl_coef=0.1,
        kl_target=0.5,
        kl_horizon=8,
    )
    perturb(trainer.policy, only="lora")
    trainer.kl_control.coef = 0.7  # of an iteration in the middle of a run
    experience = trainer.make_experience(0)
    assert trainer.kl_control.coef != 0.7  # that of the next one
    perturb(trainer.policy, only="lora", scale=0.05, seed=8)
    kl = kl_by_hand("k2", trainer, experience)
    expected = gradient_of(trainer, -mean(surrogate(trainer, experience) - 0.7 * kl, experience))
    torch.testing.assert_close(trainers_gradient(trainer, experience), expected, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_k1_is_refused_in_the_loss(tmp_path):
    with pytest.raises(InputError, match="kl_in_loss=True is invalid: it must be false with kl_estimator k1"):
        make_config(tmp_path, kl_in_loss=True)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs", "full"])
def test_the_kl_logged_is_the_kl_paid_and_that_of_the_logits(tmp_path, estimator, temperature):
    trainer = make_trainer(tmp_path, reward=zero, kl_estimator=estimator, temperature=temperature, kl_coef=0.4)
    perturb(trainer.policy, only="lora")
    experience = trainer.make_experience(0)
    with torch.no_grad():
        kl = torch.where(experience.mask, kl_by_hand(estimator, trainer, experience), 0)
    torch.testing.assert_close(experience.kl, kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(experience.per_token_rewards, -0.4 * kl, rtol=1e-4, atol=1e-5)
    assert trainer.iteration_log.metrics["objective/kl"] == pytest.approx(kl.sum(dim=1).mean().item(), rel=1e-4)
    if estimator != "k1":
        assert experience.kl.min() >= 0


def test_the_gradient_of_the_kl_is_that_of_k1_in_the_rewards_and_of_k2_and_full_in_the_loss():
    """Compare in expectation over all tokens of one distribution, as the help of `kl_estimator` says."""
    logits, reference = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    reference = reference.log_softmax(dim=0)

    def gradient(of):
        logprobs = logits.log_softmax(dim=0)
        return torch.autograd.grad(of(logprobs, logprobs.detach().exp()), logits)[0]

    def kls(name, logprobs):
        if name == "full":
            return (logprobs.exp() * (logprobs - reference)).sum().expand(5)
        return kl_estimate(name, logprobs, reference)

    exact = gradient(lambda logprobs, _: kls("full", logprobs)[0])
    in_rewards = {n: gradient(lambda lp, p, n=n: (p * kls(n, lp).detach() * lp).sum()) for n in KL_CHOICES}
    in_loss = {n: gradient(lambda lp, p, n=n: (p * kls(n, lp)).sum()) for n in KL_CHOICES}
    assert [n for n in KL_CHOICES if torch.allclose(in_rewards[n], exact, atol=1e-6)] == ["k1"]
    assert [n for n in KL_CHOICES if torch.allclose(in_loss[n], exact, atol=1e-6)] == ["k2", "full"]
    assert in_rewards["full"].abs().max() < 1e-6  # it is the same whichever token was drawn
    assert in_loss["k1"].abs().max() < 1e-6


def test_values_are_clipped_around_those_of_the_rollout(tmp_path):
    """Also in a later update, when the critic has moved away from them by more than the range."""
    trainer = make_trainer(tmp_path, reward=by_number, cliprange_value=0.3)
    perturb(trainer.policy.value_head, scale=0.3)
    experience = trainer.make_experience(0)
    trainer.policy.value_head.summary.bias.data += 1.0
    trainers_gradient(trainer, experience)
    now, returns = experience.values + 1.0, experience.returns
    clipped = experience.values + 0.3
    loss = torch.max((now - returns) ** 2, (clipped - returns) ** 2) / 2
    metrics = trainer.iteration_log.finished()
    assert metrics["loss/value_avg"] == pytest.approx(mean(loss, experience).item(), rel=1e-4)
    is_clipped = (clipped - returns) ** 2 > (now - returns) ** 2
    assert metrics["val/clipfrac_avg"] == pytest.approx(mean(is_clipped.float(), experience).item())
    assert 0 < metrics["val/clipfrac_avg"] < 1


# Updates that are not made


class Updates(TrainerCallback):
    """Record of every update that the guard saw, and of whether it changed a weight."""

    def __init__(self):
        self.seen = []  # (mean ratio, mean approximate KL, weights changed), one an update
        self.stats = []

    def watch(self, trainer):
        self.policy, self.before, add = trainer.policy, snapshot(trainer.policy), trainer.guard.add
        trainer.guard.add = lambda stats: self.stats.append(stats) or add(stats)
        trainer.add_callback(self)

    def on_step_end(self, args, state, control, **kwargs):
        after = snapshot(self.policy)
        changed = any(not torch.equal(weight, self.before[name]) for name, weight in after.items())
        tokens = sum(float(stats["tokens"]) for stats in self.stats)
        sums = [sum(float(stats[name]) for stats in self.stats) for name in ("val/ratio", "policy/approxkl_avg")]
        self.seen.append((*(total / tokens if tokens else None for total in sums), changed))
        self.before, self.stats = after, []


def watched(folder, **flags):
    trainer = make_trainer(folder, reward=by_number, learning_rate=3e-2, **flags)
    updates = Updates()
    updates.watch(trainer)
    trainer.train()
    return updates.seen, iterations_of(folder)


ACCUMULATION = {"whole": {}, "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}}


@pytest.mark.parametrize("flags", ACCUMULATION.values(), ids=ACCUMULATION)
def test_updates_whose_ratio_is_above_the_threshold_are_skipped_and_counted(tmp_path, flags):
    seen, rows = watched(tmp_path, ratio_threshold=1.1, max_steps=16, **flags)
    assert [changed for *_, changed in seen] == [ratio <= 1.1 for ratio, *_ in seen]
    skipped = [4 - sum(changed for *_, changed in seen[4 * i : 4 * i + 4]) for i in range(4)]
    assert [row["policy/skipped_updates"] for row in rows] == skipped
    assert [row["policy/updates"] for row in rows] == [4 - number for number in skipped]
    assert 0 < sum(skipped) < 12
    assert all(changed for *_, changed in seen[::4])  # the first update of an iteration is on policy


@pytest.mark.parametrize("flags", ACCUMULATION.values(), ids=ACCUMULATION)
def test_an_iterations_updates_end_once_the_policy_has_moved_too_far(tmp_path, flags):
    seen, rows = watched(tmp_path, early_stop_kl=0.01, max_steps=16, num_ppo_epochs=4, **flags)
    for i, row in enumerate(rows):
        updates = seen[8 * i : 8 * i + 8]
        made = int(row["policy/updates"])
        assert 1 <= made < 8  # each iteration begins anew, and ends early here
        assert [changed for *_, changed in updates] == [True] * made + [False] * (8 - made)
        assert all(kl <= 0.01 for _, kl, _ in updates[:made])
        assert updates[made][1] > 0.01
        assert [kl for _, kl, _ in updates[made + 1 :]] == [None] * (7 - made)  # not even computed
        assert row["policy/skipped_updates"] == 0
    assert len(rows) == 2
    assert [row["step"] for row in rows] == [8, 16]


def test_the_guard_decides_by_the_mean_over_the_tokens_of_all_micro_batches(tmp_path):
    def decide(*micro_batches, **flags):
        """Return whether the update is made; a micro-batch is (tokens, mean ratio, mean approximate KL)."""
        log = IterationLog(8)
        log.metrics = {"policy/updates": 0, "policy/skipped_updates": 0}
        guard = UpdateGuard(make_config(tmp_path, **flags), log, lambda: [weight])
        weight = torch.nn.Parameter(torch.zeros(1))
        weight.grad = torch.ones(1)
        for tokens, ratio, kl in micro_batches:
            sums = {"tokens": tokens, "val/ratio": ratio * tokens, "policy/approxkl_avg": kl * tokens}
            guard.add({name: torch.tensor(value) for name, value in sums.items()})
        guard.on_pre_optimizer_step(None, trainer_state, None)
        assert log.metrics["policy/updates"] == (weight.grad is not None)
        return weight.grad is not None

    trainer_state = type("State", (), {"global_step": 0})
    few, many = (10, 3.0, 0.3), (90, 1.0, 0.0)  # means of 1.2 and 0.03
    for flag, below, above in (("ratio_threshold", 1.1, 1.3), ("early_stop_kl", 0.02, 0.04)):
        for order in ((few, many), (many, few)):
            assert not decide(*order, **{flag: below})
            assert decide(*order, **{flag: above})


# From rewards to scores


def population_std(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


SHAPED = {
    "scaled": ({"use_score_scaling": True}, lambda r, seen, n, stopped: r / population_std(seen)),
    "normed": (
        {"use_score_scaling": True, "use_score_norm": True},
        lambda r, seen, n, stopped: (r - sum(seen) / len(seen)) / population_std(seen),
    ),
    "clipped": ({"score_clip": 0.5}, lambda r, seen, n, stopped: min(max(r, -0.5), 0.5)),
    "scaled and clipped": (
        {"use_score_scaling": True, "score_clip": 1.0},
        lambda r, seen, n, stopped: min(max(r / population_std(seen), -1.0), 1.0),
    ),
    "no end": ({"missing_eos_penalty": 0.7}, lambda r, seen, n, stopped: r - 0.7 * (not stopped)),
    "length": ({"length_penalty": 0.05}, lambda r, seen, n, stopped: r - 0.05 * n),
    "overlong": (
        {"overlong_penalty": 0.8, "overlong_buffer": 4},
        lambda r, seen, n, stopped: r - 0.8 * max(n - 4, 0) / 4,
    ),
}


@pytest.mark.parametrize(("flags", "shape"), SHAPED.values(), ids=SHAPED)
def test_shaping_reaches_the_scores_and_leaves_the_reward_plain(tmp_path, flags, shape):
    iterations = []

    def reward(prompts, completion_ids, **_):
        rewards = by_number(prompts, None, completion_ids)
        iterations.append(
            [(r, len(ids), ids[-1] in (3, 8, 9, 10)) for r, ids in zip(rewards, completion_ids, strict=True)]
        )
        return rewards

    make_trainer(tmp_path, reward=reward, stop_token_ids=[8, 9, 10], **flags).train()
    seen = []
    for row, iteration in zip(iterations_of(tmp_path), iterations, strict=True):
        seen += [r for r, *_ in iteration]
        scores = [shape(r, seen, n, stopped) for r, n, stopped in iteration]
        assert row["objective/scores"] == pytest.approx(sum(scores) / 8, rel=1e-5, abs=1e-6)
        assert row["reward"] == pytest.approx(sum(r for r, *_ in iteration) / 8)
        assert row["reward"] != pytest.approx(row["objective/scores"])
    assert len(seen) == 16


def test_rewards_by_token_land_on_their_tokens(tmp_path):
    def word_by_word(prompts, completions, completion_ids):
        return [[token + 0.01 * place for place, token in enumerate(ids)] for ids in completion_ids]

    trainer = make_trainer(tmp_path, reward=[word_by_word, by_number], reward_weights=[0.5, 2.0], kl_coef=0.0)
    experience = trainer.make_experience(0)
    places = torch.arange(experience.mask.shape[1])
    expected = 0.5 * (sampled(trainer, experience) + 0.01 * places)
    lengths = experience.mask.sum(dim=1)
    for b, ids in enumerate(sampled(trainer, experience)):
        expected[b, lengths[b] - 1] += 2.0 * by_number(None, None, [ids[: lengths[b]].tolist()])[0]
    torch.testing.assert_close(experience.per_token_rewards, torch.where(experience.mask, expected, 0))
    assert len(set(lengths.tolist())) > 1


def test_whitened_rewards_have_unit_variance_and_keep_their_mean(tmp_path):
    plain = make_trainer(tmp_path, reward=by_number).make_experience(0)
    whitened = make_trainer(tmp_path, reward=by_number, whiten_rewards=True).make_experience(0)
    rewards = whitened.per_token_rewards[whitened.mask]
    assert rewards.var(correction=0).item() == pytest.approx(1.0, rel=1e-5)
    assert rewards.mean().item() == pytest.approx(plain.per_token_rewards[plain.mask].mean().item(), rel=1e-5)
    torch.testing.assert_close(whitened.per_token_rewards, whiten(plain.per_token_rewards, plain.mask, center=False))
    assert not torch.allclose(whitened.returns, plain.returns, atol=0.1)


# PPO-ptx


def ptx(folder, ptx_coef=50.0, texts=TEXTS, **flags):
    return make_trainer(folder, ptx_coef=ptx_coef, trainer_kwargs={"ptx_dataset": texts}, **flags)


def test_the_loss_on_the_texts_falls_with_their_weight(tmp_path):
    last = {}
    for coef in (1e-9, 50.0):
        ptx(tmp_path / str(coef), coef, max_steps=32).train()
        losses = [row["loss/ptx_avg"] for row in iterations_of(tmp_path / str(coef))]
        last[coef] = losses[-1] / losses[0]
    assert last[50.0] < 0.8
    assert last[1e-9] > 0.9


def test_the_texts_loss_is_their_mean_negative_log_probability(tmp_path):
    trainer = ptx(tmp_path, reward=zero, learning_rate=0.0, num_ppo_epochs=3)  # 24 texts: four passes over the six
    trainer.train()
    with torch.no_grad():
        rows = [TOKENIZER(text)["input_ids"] + [TOKENIZER.eos_token_id] for text in TEXTS["text"]]
        logprobs = [trainer.policy.model(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1) for ids in rows]
    sums = [-each.gather(1, torch.tensor(ids[1:])[:, None]).sum() for each, ids in zip(logprobs, rows, strict=True)]
    expected = (sum(sums) / sum(len(ids) - 1 for ids in rows)).item()
    assert iterations_of(tmp_path)[0]["loss/ptx_avg"] == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_the_texts_is_that_of_their_mean_over_tokens(tmp_path):
    trainer = ptx(tmp_path, 0.7, reward=by_number, vf_coef=0.0)
    perturb(trainer.policy, only="lora")
    experience = trainer.make_experience(0)
    batch = next(micro_batches(experience, trainer.args, 0, trainer.texts))
    sums = []
    for ids, mask in zip(batch.texts.input_ids, batch.texts.attention_mask, strict=True):
        ids = ids[mask]
        logprobs = trainer.policy.model(ids[None]).logits[0, :-1].log_softmax(dim=-1)
        sums.append(-logprobs.gather(1, ids[1:, None]).sum())
    of_texts = sum(sums) / (int(batch.texts.attention_mask.sum()) - len(sums))
    expected = gradient_of(trainer, -mean(surrogate(trainer, batch.experience), batch.experience) + 0.7 * of_texts)
    found = gradient_of(trainer, trainer.compute_loss(trainer.policy, {"micro_batch": batch}))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert batch.minibatch_tokens != batch.minibatch_text_tokens


def test_the_texts_of_a_run_go_on_from_iteration_to_iteration(tmp_path):
    """Two iterations of four updates of four texts: 32 places, so that each of 16 texts is met twice."""
    texts = Dataset.from_dict({"text": [" ".join([word] * 2) for word in WORDS[:16]]})
    trainer = ptx(tmp_path, texts=texts)
    experience = trainer.make_experience(0)
    batches = [batch for i in range(2) for batch in micro_batches(experience, trainer.args, i, trainer.texts)]
    met = [int(ids[0]) for batch in batches for ids in batch.texts.input_ids]
    assert sorted(met) == sorted(2 * TOKENIZER.convert_tokens_to_ids(WORDS[:16]))
    assert met[:16] != met[16:]


def test_accumulation_changes_nothing_about_the_texts(tmp_path):
    results = []
    for name, flags in ACCUMULATION.items():
        trainer = ptx(tmp_path / name, 0.5, optim="sgd", learning_rate=1e-2, **flags)
        trainer.train()
        losses = [(row["loss"], row["loss/ptx_avg"], row["grad_norm"]) for row in iterations_of(tmp_path / name)]
        results.append((losses, snapshot(trainer.policy)))
    for one, other in zip(results[0][0], results[1][0], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for name, weight in results[0][1].items():
        torch.testing.assert_close(weight, results[1][1][name], rtol=1e-4, atol=1e-6)


def test_texts_and_their_weight_belong_together(tmp_path):
    with pytest.raises(InputError, match="ptx_dataset and ptx_coef"):
        make_trainer(tmp_path, ptx_coef=0.1)
    with pytest.raises(InputError, match="ptx_dataset and ptx_coef"):
        ptx(tmp_path, 0.0)


# A reference that follows


def from_adapter():
    from peft import get_peft_model

    return perturb(get_peft_model(make_model(TOKENIZER), make_lora()), only="lora")


STARTS = {
    "lora": dict,
    "adapter": lambda: {"model": from_adapter(), "lora": None},
    "full": lambda: {"lora": None, "learning_rate": 1e-3},
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_kl_is_zero_right_after_each_refresh_of_the_reference_and_only_then(tmp_path, start):
    flags = {"max_steps": 24, "kl_estimator": "full", **start()}
    make_trainer(tmp_path, ref_model_sync_iterations=2, **flags).train()
    kls = [row["objective/kl"] for row in iterations_of(tmp_path)]
    assert [kl == 0 for kl in kls] == [True, False] * 3


def test_a_reference_of_its_own_does_not_follow(tmp_path):
    with pytest.raises(InputError, match="ref_model_sync_iterations"):
        make_trainer(tmp_path, ref_model_sync_iterations=2, trainer_kwargs={"ref_model": make_model(TOKENIZER)})


# Streams of prompts


def stream(rows=24):
    return make_prompts(rows).to_iterable_dataset()


@pytest.mark.parametrize(
    "length", [{"max_steps": 12}, {"max_steps": -1, "total_episodes": 20}], ids=["updates", "episodes"]
)
def test_a_stream_is_trained_on_in_its_order(tmp_path, length):
    seen = []

    def reward(prompts, number, **_):
        seen.extend(number)
        return [0.0] * len(prompts)

    make_trainer(tmp_path, data=stream(20), reward=reward, **length).train()
    assert seen == [i % 20 for i in range(24)]  # 20 episodes are three whole iterations of eight
    assert [row["episode"] for row in iterations_of(tmp_path)] == [8, 16, 24]


def test_a_stream_without_a_length_of_the_run_is_an_error(tmp_path):
    with pytest.raises(InputError, match="max_steps"):
        make_trainer(tmp_path, data=stream(), max_steps=-1).train()


def test_a_stream_is_no_evaluation_set(tmp_path):
    with pytest.raises(InputError, match="eval_dataset is an IterableDataset"):
        make_trainer(tmp_path, trainer_kwargs={"eval_dataset": stream()})


# Resuming


RESUMED = {
    "scores and KL": {
        "reward": by_number,
        "kl_target": 0.5,
        "kl_horizon": 100,
        "use_score_scaling": True,
        "use_score_norm": True,
    },
    "reference of LoRA": {"ref_model_sync_iterations": 2},
    "reference of full": {"ref_model_sync_iterations": 2, "lora": None, "learning_rate": 1e-3},
    "texts": {"ptx_coef": 0.5, "trainer_kwargs": {"ptx_dataset": TEXTS}},
    "stream": {"data": stream(), "eval_on_start": True},
    "shuffled stream": {"data": stream().shuffle(seed=3, buffer_size=8)},
    "early stop": {"early_stop_kl": 0.005, "lr_scheduler_type": "linear"},
    "empty minibatches": {"reward": one_scored, "weight_decay": 0.1, "lr_scheduler_type": "linear"},
}


@pytest.mark.parametrize("flags", RESUMED.values(), ids=RESUMED)
def test_a_killed_run_resumes_to_the_same_bits_and_records(tmp_path, flags):
    """Kill in the middle of a pass over the prompts, and where the reference was last refreshed an iteration ago."""
    extra = {"eval_dataset": make_prompts(4), **flags.get("trainer_kwargs", {})}
    flags = {"max_steps": 20, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "epoch", **flags}
    flags.pop("trainer_kwargs", None)
    whole = make_trainer(tmp_path, trainer_kwargs=extra, **flags)
    whole.train()
    expected, rows, samples = snapshot(whole.policy), metrics_of(tmp_path), (tmp_path / "samples.jsonl").read_text()
    resumed = make_trainer(tmp_path, trainer_kwargs=extra, **flags)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    for name, weight in snapshot(resumed.policy).items():
        assert torch.equal(weight, expected[name]), name
    assert metrics_of(tmp_path)[:-1] == rows[:-1]  # the last row tells of the run's seconds and its mean loss
    assert (tmp_path / "samples.jsonl").read_text() == samples
    if "early_stop_kl" in flags:
        assert min(row["policy/updates"] for row in iterations_of(tmp_path)[3:]) < 4  # after the resume too


# What rewards say besides


def test_async_rewards_and_what_they_log_reach_the_records(tmp_path):
    async def judged(prompts, completions, log_metric, log_extra, **_):
        await asyncio.sleep(0)
        lengths = [len(completion[0]["content"].split()) for completion in completions]
        log_metric("judge/longest", max(lengths))
        log_extra("words", lengths)
        return [float(length) for length in lengths]

    make_trainer(tmp_path, reward=[judged, happy_reward]).train()
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert all(sample["extra"]["words"] == len(sample["completion"].split()) for sample in samples)
    assert all(sample["rewards"]["judged"] == sample["extra"]["words"] for sample in samples)
    for row in iterations_of(tmp_path):
        assert row["judge/longest"] >= row["rewards/judged/mean"] > 0


# Lengths


def test_prompts_of_one_token_and_of_the_most_allowed_share_a_batch(tmp_path):
    lengths = [1, 32, 2, 31, 1, 16, 32, 5]
    data = Dataset.from_dict({"prompt": [" ".join((WORDS * 2)[:length]) for length in lengths]})
    trainer = make_trainer(tmp_path, data=data, reward=by_number, kl_estimator="full")
    perturb(trainer.policy, only="lora")
    experience = trainer.make_experience(0)
    assert sorted(experience.sequences.prompt_lengths.tolist()) == sorted(lengths)
    with torch.no_grad():
        alone = distributions(trainer, experience).gather(2, sampled(trainer, experience)[..., None]).squeeze(2)
        kl = kl_by_hand("full", trainer, experience)
    for padded, unpadded in ((experience.logprobs, alone), (experience.sampler_logprobs, alone), (experience.kl, kl)):
        torch.testing.assert_close(padded, torch.where(experience.mask, unpadded, 0), rtol=1e-4, atol=1e-5)
    trainer = make_trainer(tmp_path, data=data, reward=by_number)
    trainer.train()
    assert all(row["val/first_ratio_error"] < 1e-5 for row in iterations_of(tmp_path))
