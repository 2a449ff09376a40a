"""`.generate()` and `.step()`: the loop of `train()` in the user's hands."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import (
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
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.types import Completion

TOKENIZER = make_tokenizer()
HAPPY, DOG = TOKENIZER.convert_tokens_to_ids(["happy", "dog"])
PROMPTS = [[{"role": "user", "content": f"the cat {i % 3 * 'is '}"}] for i in range(8)]


def score(prompts, completions):
    """Share of words that are "happy", and a little for each word."""
    texts = [completion[0]["content"].split() for completion in completions]
    return [words.count("happy") / max(len(words), 1) + len(words) / 100 for words in texts]


def rewards_for(completions):
    texts = TOKENIZER.batch_decode([completion.ids for completion in completions], skip_special_tokens=True)
    return score(None, [[{"role": "assistant", "content": text}] for text in texts])


def own(folder, *, lora=True, trainer_kwargs=None, **config):
    """A trainer without data and rewards."""
    return PPOTrainer(
        make_model(TOKENIZER),
        None,
        make_config(folder, **config),
        processing_class=TOKENIZER,
        peft_config=make_lora() if lora else None,
        **(trainer_kwargs or {}),
    )


def loop(trainer, iterations):
    """Do the work of `train()` by hand and on its prompts; return the metrics of each iteration."""
    metrics = []
    for iteration in range(iterations):
        prompts = [row["prompt"] for row in trainer.prompts.rows(iteration)]
        completions = trainer.generate(prompts)
        metrics.append(trainer.step(prompts, completions, rewards_for(completions)))
    return metrics


def ids(*lengths, token=DOG):
    """Completions of these lengths that did not stop."""
    return [[token] * length for length in lengths]


# The same as train()

GRID = {
    "plain": {},
    "accumulated": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
    },
    "shaped": {
        "kl_target": 0.5,
        "kl_horizon": 80,
        "use_score_scaling": True,
        "missing_eos_penalty": 0.3,
        "max_completion_length": 16,
    },
}


@pytest.mark.parametrize("lora", [True, None], ids=["lora", "full"])
@pytest.mark.parametrize("flags", GRID.values(), ids=GRID)
def test_the_users_loop_ends_in_the_bits_and_rows_of_train(tmp_path, flags, lora):
    flags = {"max_steps": 12, "learning_rate": 1e-2 if lora else 1e-3, "lora": lora, "reward": score, **flags}
    trained = make_trainer(tmp_path / "train", **flags)
    trained.train()
    looped = make_trainer(tmp_path / "loop", **flags)
    before = snapshot(looped.policy)
    loop(looped, 3)
    expected = snapshot(trained.policy)
    for name, weight in snapshot(looped.policy).items():
        assert torch.equal(weight, expected[name]), name
    assert any(not torch.equal(weight, before[name]) for name, weight in expected.items())
    rows, own_rows = metrics_of(tmp_path / "train"), metrics_of(tmp_path / "loop")
    assert len(rows) == 4  # three iterations and the end of the run
    assert own_rows == rows
    samples = [(folder / "samples.jsonl").read_text() for folder in (tmp_path / "train", tmp_path / "loop")]
    assert samples[0] == samples[1]


def test_prompts_sampled_in_two_calls_are_those_of_one(tmp_path):
    whole = own(tmp_path).generate(PROMPTS)
    trainer = own(tmp_path)
    parts = trainer.generate(PROMPTS[:5]) + trainer.generate(PROMPTS[5:])
    assert [part.ids for part in parts] == [completion.ids for completion in whole]


def test_the_draws_of_a_second_call_follow_those_of_all_ranks(tmp_path, monkeypatch):
    whole = own(tmp_path)._seeds("train", 0, 16)
    trainer = own(tmp_path)  # the second of two ranks, both with two prompts a call
    for module in ("rollout_setup", "manual_loop"):
        monkeypatch.setattr(f"hf_rlhf.ppo.{module}.gather_in_order", lambda share: share * 2)
    monkeypatch.setattr("hf_rlhf.ppo.rollout_setup.take_share", lambda whole, group=1: whole[1::2])
    seeds, sample = [], trainer.sample
    trainer.sample = lambda rows, given: seeds.append(given) or sample(rows, given)
    trainer.generate(PROMPTS[:2])
    trainer.generate(PROMPTS[2:4])
    assert seeds == [[whole[1], whole[3]], [whole[5], whole[7]]]


def test_the_same_prompts_get_new_completions_at_each_call_and_in_each_iteration(tmp_path):
    trainer = own(tmp_path, learning_rate=0.0)
    first, second = trainer.generate(PROMPTS), trainer.generate(PROMPTS)
    trainer.step(PROMPTS, first, rewards_for(first))
    third = trainer.generate(PROMPTS)
    assert len({str([completion.ids for completion in each]) for each in (first, second, third)}) == 3


# What Trainer does besides


class CountHooks(TrainerCallback):
    def __init__(self):
        self.hooks = Counter()

    def __getattribute__(self, name):
        if name.startswith("on_") and name != "on_prediction_step":
            self.hooks[name] += 1
        return super().__getattribute__(name)


def test_callbacks_see_each_hook_as_often_as_in_train(tmp_path):
    counts = []
    for name in ("train", "loop"):
        counter = CountHooks()
        trainer = make_trainer(
            tmp_path / name,
            data=make_prompts(8),  # an epoch is an iteration
            reward=score,
            save_strategy="steps",
            save_steps=8,
            eval_strategy="steps",
            eval_steps=4,
            trainer_kwargs={"callbacks": [counter], "eval_dataset": make_prompts(4)},
        )
        counter.hooks.clear()
        trainer.train() if name == "train" else loop(trainer, 2)
        counts.append(counter.hooks)
    assert counts[0] == counts[1]
    assert counts[0]["on_train_begin"] == counts[0]["on_train_end"] == 1
    assert counts[0]["on_optimizer_step"] == counts[0]["on_step_end"] == 8


def test_checkpoints_and_evaluations_come_as_the_arguments_say(tmp_path):
    folders = []
    for name in ("train", "loop"):
        trainer = make_trainer(
            tmp_path / name,
            reward=score,
            max_steps=12,
            save_strategy="steps",
            save_steps=8,
            save_total_limit=1,
            eval_strategy="steps",
            eval_steps=8,
            eval_on_start=True,
            metric_for_best_model="reward",
            load_best_model_at_end=True,
            trainer_kwargs={"eval_dataset": make_prompts(4)},
        )
        trainer.train() if name == "train" else loop(trainer, 3)
        rows = metrics_of(tmp_path / name)
        files = sorted(str(file.relative_to(tmp_path / name)) for file in tmp_path.glob(f"{name}/**/*"))
        folders.append((rows, files))
    assert folders[0] == folders[1]
    rows, files = folders[1]
    assert [row["step"] for row in rows if "eval_reward" in row] == [0, 8, 12]
    kept = Path(trainer.state.best_model_checkpoint).name  # at its end, the run drops all others
    assert [file for file in files if file.endswith("ppo_state.json")] == [f"{kept}/ppo_state.json"]
    weights = snapshot(trainer.policy)
    best = make_trainer(tmp_path / "best", reward=score)
    best.policy.load_weights(trainer.state.best_model_checkpoint)
    assert all(torch.equal(weight, weights[name]) for name, weight in snapshot(best.policy).items())


def test_a_run_of_the_users_loop_resumes_in_train(tmp_path):
    flags = {"reward": score, "max_steps": 12, "save_strategy": "steps", "save_steps": 8}
    looped = make_trainer(tmp_path / "loop", **flags)
    loop(looped, 3)
    resumed = make_trainer(tmp_path / "resumed", **flags)
    resumed.train(resume_from_checkpoint=str(tmp_path / "loop" / "checkpoint-8"))
    expected = snapshot(looped.policy)
    assert all(torch.equal(weight, expected[name]) for name, weight in snapshot(resumed.policy).items())


def test_gradient_checkpointing_is_switched_on(tmp_path):
    trainer = own(tmp_path, gradient_checkpointing=True)
    trainer.step(PROMPTS, ids(*[3] * 8), [0.0] * 8)
    assert trainer.policy.model.get_base_model().is_gradient_checkpointing


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_step_returns_the_metrics_of_its_iteration(tmp_path, logging_steps):
    trainer = own(tmp_path, logging_steps=logging_steps)
    for iteration in (1, 2):
        metrics = trainer.step(PROMPTS, ids(*[3] * 8), [float(iteration)] * 8)
        assert metrics["iteration"] == iteration
        assert metrics["reward"] == metrics["rewards/score/mean"] == iteration
        assert metrics["policy/updates"] == 4
        if logging_steps == 1:
            row = metrics_of(tmp_path, times=True)[iteration - 1]
            assert row.items() >= {key: value for key, value in metrics.items() if math.isfinite(value)}.items()


# What may be given


def experience_of(folder, completions, rewards, masks=None, prompts=PROMPTS, **config):
    """The experience that step() learns from, without the updates."""
    trainer = own(folder, **config)
    perturb(trainer.policy, only="lora")
    seen = []
    trainer.advantages = lambda experience: seen.append(experience) or PPOTrainer.advantages(trainer, experience)
    metrics = trainer.step(prompts, completions, rewards, masks)
    return seen[0], metrics


def test_token_ids_are_completions_that_stopped_if_they_end_in_an_end_token(tmp_path):
    completions = ids(*[3] * 8)
    completions[2][-1] = TOKENIZER.eos_token_id
    experience, metrics = experience_of(tmp_path, completions, [1.0] * 8, missing_eos_penalty=0.25)
    assert experience.scores.tolist() == [0.75, 0.75, 1.0, *[0.75] * 5]
    assert metrics["completions/mean_length"] == 3
    assert metrics["sampling/logp_gap"] == 0


def test_tensors_do_as_ids_and_rewards(tmp_path):
    rewards = [0.5, -1.0, 2.0, 0.0, 1.0, 0.25, 3.0, -0.5]
    lists, _ = experience_of(tmp_path / "lists", ids(1, 2, 3, 4, 5, 6, 7, 8), rewards)
    tensors, _ = experience_of(
        tmp_path / "tensors",
        [torch.tensor(each) for each in ids(1, 2, 3, 4, 5, 6, 7, 8)],
        torch.tensor(rewards, requires_grad=True),
    )
    assert torch.equal(lists.per_token_rewards, tensors.per_token_rewards)
    assert torch.equal(lists.logprobs, tensors.logprobs)


def test_rewards_by_token_are_paid_on_their_tokens(tmp_path):
    by_token = [[0.1 * (b + t) for t in range(3)] for b in range(8)]
    experience, metrics = experience_of(tmp_path, ids(*[3] * 8), by_token, kl_coef=0.0)
    torch.testing.assert_close(experience.per_token_rewards, torch.tensor(by_token))
    assert metrics["reward"] == pytest.approx(sum(map(sum, by_token)) / 8)


def test_a_completion_without_a_reward_does_not_count(tmp_path):
    rewards = [1.0, None, 2.0, None, 3.0, 4.0, 5.0, 6.0]
    experience, metrics = experience_of(tmp_path, ids(*[3] * 8), rewards)
    assert experience.mask.any(dim=1).tolist() == [reward is not None for reward in rewards]
    assert metrics["rewards/unscored"] == 0.25
    assert metrics["objective/scores"] == 3.5


NOTHING = [False] * 3


@pytest.mark.parametrize(
    ("rewards", "masks"),
    [([1.0, *[None] * 7], None), ([1.0] * 8, [[True] * 3, *[NOTHING] * 7])],
    ids=["without a reward", "masked"],
)
def test_minibatches_in_which_nothing_counts_make_no_update(tmp_path, rewards, masks):
    trainer = own(tmp_path)
    metrics = trainer.step(PROMPTS, ids(*[3] * 8), rewards, masks)
    assert (metrics["policy/updates"], metrics["policy/empty_updates"]) == (2, 2)
    states = trainer.optimizer.state_dict()["state"].values()
    assert {int(state["step"]) for state in states} == {2}


MASKS = [[True, False, True, True], [True, True, True, False], *[[True] * 4] * 5, [False] * 4]


def test_what_the_policy_did_not_sample_earns_and_costs_nothing(tmp_path):
    completions = ids(*[4] * 8)
    experience, metrics = experience_of(tmp_path, completions, [float(b) for b in range(8)], MASKS, kl_coef=0.5)
    mask = torch.tensor(MASKS)
    assert torch.equal(experience.mask, mask)
    expected = -0.5 * (experience.logprobs - experience.reference_logprobs)
    last = [3, 2, 3, 3, 3, 3, 3]  # the score is paid on the last counted token
    for b, t in enumerate(last):
        expected[b, t] += b
    torch.testing.assert_close(experience.per_token_rewards, torch.where(mask, expected, 0))
    assert experience.kl[mask].abs().min() > 0
    for name in ("per_token_rewards", "advantages", "returns", "kl", "logprobs", "values"):
        assert not getattr(experience, name)[~mask].any(), name
    assert metrics["objective/kl"] == pytest.approx(experience.kl[:7].sum().item() / 7, rel=1e-5)
    assert metrics["objective/scores"] == 3.0  # the mean of the seven that count


def test_what_stands_on_masked_tokens_reaches_no_gradient_but_as_context(tmp_path):
    """Tokens at the end that do not count may be any tokens; the weights come out the same to the last bit."""
    weights = []
    for name, token in (("dog", DOG), ("happy", HAPPY)):
        trainer = own(tmp_path / name)
        completions = [[DOG, HAPPY, DOG, token] for _ in range(8)]
        trainer.step(PROMPTS, completions, [float(b) for b in range(8)], [[True, True, True, False]] * 8)
        weights.append(snapshot(trainer.policy))
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_prompts_may_be_token_ids(tmp_path):
    as_ids = TOKENIZER.apply_chat_template(PROMPTS, add_generation_prompt=True, return_dict=False)
    results = []
    for name, prompts in (("messages", PROMPTS), ("ids", as_ids)):
        trainer = own(tmp_path / name)
        completions = trainer.generate(prompts)
        metrics = trainer.step(prompts, completions, rewards_for(completions))
        results.append(({key: metrics[key] for key in ("reward", "loss/policy_avg")}, snapshot(trainer.policy)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(weight, results[1][1][name]) for name, weight in results[0][1].items())


# Under top-k, top-p and min-p

TRUNCATED = {"top_k": 8, "top_p": 0.9, "min_p": 0.02, "temperature": 0.8}


@pytest.mark.parametrize("given", ["ids", "mixed"])
def test_ids_are_read_as_if_generate_had_said_what_they_were_chosen_from(tmp_path, given):
    results = []
    for name in ("generated", given):
        trainer = own(tmp_path / name, max_steps=8, **TRUNCATED)
        for _ in range(2):
            completions = trainer.generate(PROMPTS)
            rewards = rewards_for(completions)
            if name != "generated":
                completions = [each if name == "mixed" and b % 2 else each.ids for b, each in enumerate(completions)]
            metrics = trainer.step(PROMPTS, completions, rewards)
        assert metrics["val/first_ratio_error"] < 1e-5
        results.append((metrics["objective/kl"], metrics["policy/entropy_avg"], snapshot(trainer.policy)))
    assert results[0][:2] == results[1][:2]
    assert all(torch.equal(weight, results[1][2][name]) for name, weight in results[0][2].items())


def test_the_likeliest_token_of_one_is_certain(tmp_path):
    """With top_k=1 nothing is chosen, so that every log-probability is 0, and no other token is possible."""
    trainer = own(tmp_path, top_k=1)
    likeliest = [completion.ids for completion in trainer.generate(PROMPTS)]
    metrics = trainer.step(PROMPTS, likeliest, [1.0] * 8)
    assert metrics["objective/entropy"] == metrics["objective/kl"] == metrics["policy/entropy_avg"] == 0
    again = own(tmp_path / "again", top_k=1)
    likeliest[3][-1] = DOG if likeliest[3][-1] != DOG else HAPPY
    word = TOKENIZER.decode(likeliest[3][-1])
    message = (
        rf"completion 3 .* token {len(likeliest[3]) - 1}, '{word}' \(id \d+\), is not among the 1 that top_k=1 left"
    )
    with pytest.raises(InputError, match=message):
        again.step(PROMPTS, likeliest, [1.0] * 8)
    masks = [[True] * (len(ids) - (b == 3)) + [False] * (b == 3) for b, ids in enumerate(likeliest)]
    assert again.step(PROMPTS, likeliest, [1.0] * 8, masks)["objective/entropy"] == 0


def test_in_a_run_that_cuts_nothing_off_a_completion_may_still_say_what_it_was_chosen_from(tmp_path):
    pair = Completion([DOG], [], stopped=False, support=[torch.tensor([DOG, HAPPY])])
    both, _ = experience_of(tmp_path / "both", [pair, *[[DOG]] * 7], [1.0] * 8)
    plain, _ = experience_of(tmp_path / "plain", [[DOG]] * 8, [1.0] * 8)
    torch.testing.assert_close(both.logprobs[1:], plain.logprobs[1:])
    other, _ = experience_of(tmp_path / "other", [[HAPPY]] * 8, [1.0] * 8)
    dog, happy = plain.logprobs[0, 0].exp(), other.logprobs[0, 0].exp()
    torch.testing.assert_close(both.logprobs[0, 0], (dog / (dog + happy)).log())


# Mistakes


def test_the_rewards_of_step_are_taken_by_their_old_name_with_one_warning(tmp_path, caplog):
    trainer = own(tmp_path, max_steps=8)
    for _ in range(2):
        completions = trainer.generate(PROMPTS)
        metrics = trainer.step(prompts=PROMPTS, completions=completions, scores=[0.5] * 8)
        assert metrics["reward"] == 0.5
    assert caplog.text.count('"scores" in step(...) is called "rewards" now') == 1
    with pytest.raises(InputError, match='both "rewards" and its old name "scores"'):
        trainer.step(**full(), scores=[0.5] * 8)
    with pytest.raises(InputError, match='both "rewards" and its old name "scores"'):
        trainer.step(PROMPTS, completions, [0.5] * 8, scores=[0.5] * 8)


def full(**changes):
    return {"prompts": PROMPTS, "completions": ids(*[3] * 8), "rewards": [0.0] * 8, **changes}


WRONG = {
    "too few completions": (full(completions=ids(*[3] * 7)), "8 prompts and 7 completions"),
    "too many rewards": (full(rewards=torch.zeros(9)), "8 prompts and 9 rewards"),
    "too few masks": (full(masks=[[True] * 3] * 2), "8 prompts and 2 masks"),
    "fewer than an iteration takes": (
        {"prompts": PROMPTS[:4], "completions": ids(*[3] * 4), "rewards": [0.0] * 4},
        r"4 completions .* 8 completions an iteration",
    ),
    "nan": (full(rewards=[0.0, 0.0, math.nan, *[0.0] * 5]), "(?s)returned nan.*number: 2"),
    "infinite tensor": (full(rewards=torch.tensor([0.0] * 7 + [math.inf])), "(?s)returned inf.*number: 7"),
    "text": (full(rewards=["good", *[0.0] * 7]), "(?s)returned 'good'.*number: 0"),
    "too few by token": (
        full(rewards=[[0.0] * 3, [0.0] * 2, *[0.0] * 6]),
        "(?s)list of 2 for a completion of 3 .*number: 1",
    ),
    "nan of a token": (full(rewards=[0.0, [0.0, 0.0, math.nan], *[0.0] * 6]), "(?s)position 2 of 3.*number: 1"),
    "short mask": (full(masks=[[True] * 3, [True] * 2, *[[True] * 3] * 6]), "mask 1 .* 2 entries .* 3 tokens"),
    "unknown token": (full(completions=[*ids(*[3] * 7), [DOG, 99]]), r"completion 7 .* \[99\] .* vocabulary of 29"),
    "too long": (full(completions=[[DOG] * 9, *ids(*[3] * 7)]), "completion 0 .* 9 tokens.* max_completion_length=8"),
    "logprobs of another": (
        full(completions=[Completion([DOG, DOG], [-1.0], stopped=False), *ids(*[3] * 7)]),
        "completion 0 .* 1 logprobs for 2 tokens",
    ),
    "a support of another": (
        full(completions=[Completion([DOG, DOG], [], False, [torch.tensor([DOG])]), *ids(*[3] * 7)]),
        "completion 0 .* support of 1 tokens for 2 tokens",
    ),
    "a token that was cut off": (
        full(
            completions=[
                *ids(*[3] * 7),
                Completion([DOG, DOG], [], False, [torch.tensor([DOG]), torch.tensor([HAPPY])]),
            ]
        ),
        r"completion 7 .* its token 1, 'dog' \(id 10\), is not among the 1 that its support left",
    ),
    "no reward at all": (full(rewards=[None] * 8), "no completion of iteration 1"),
    "a reward of a masked token": (
        full(rewards=[[0.0, 1.0, 0.0], *[0.0] * 7], masks=[[True, False, True], *[[True] * 3] * 7]),
        r"rewards\[0\] is invalid: it pays a token that masks\[0\] does not count",
    ),
    "everything masked": (full(masks=[[False] * 3] * 8), "no completion of iteration 1"),
    "too long a prompt": (full(prompts=[[DOG] * 40] * 8), "max_prompt_length=32"),
    "an empty prompt": (full(prompts=[[DOG], [], *[[DOG]] * 6]), r"1 row \(1\) .*ids"),
    "a first empty prompt": (full(prompts=[[], *[[DOG]] * 7]), "prompts"),
    "an unknown token in a prompt": (full(prompts=[*[[DOG]] * 7, [99]]), r"1 row \(7\) .*ids"),
    "text among ids": (full(prompts=[[DOG], "dog", *[[DOG]] * 6]), r"1 row \(1\) .*ids"),
    "ids among text": (full(prompts=["dog", [DOG], *["dog"] * 6]), r"1 row \(1\)"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_right_is_refused_by_its_place(tmp_path, given, message):
    trainer = own(tmp_path)
    before = snapshot(trainer.policy)
    with pytest.raises(InputError, match=message):
        trainer.step(**given)
    assert all(torch.equal(weight, before[name]) for name, weight in snapshot(trainer.policy).items())
    metrics = trainer.step(**full())  # once it is right, the loop continues as if nothing had been
    assert metrics["iteration"] == 1
    assert trainer.state.global_step == 4


def test_the_length_of_the_run_has_to_be_known(tmp_path):
    with pytest.raises(InputError, match=r"max_steps \(updates\) or total_episodes"):
        own(tmp_path, max_steps=-1).step(**full())
    trainer = own(tmp_path, max_steps=-1, total_episodes=16, lr_scheduler_type="linear")
    rates = [trainer.step(**full()) and trainer.lr_scheduler.get_last_lr()[0] for _ in range(2)]
    assert rates == [pytest.approx(0.5e-2), 0.0]


def test_a_step_beyond_the_last_is_an_error(tmp_path):
    trainer = own(tmp_path, max_steps=4)
    trainer.step(**full())
    with pytest.raises(InputError, match="ended at update 4"):
        trainer.step(**full())


def test_train_and_step_do_not_mix(tmp_path):
    stepped = make_trainer(tmp_path / "stepped", reward=score)
    stepped.step(**full())
    with pytest.raises(InputError, match="loop is the user's"):
        stepped.train()
    trained = make_trainer(tmp_path / "trained", reward=score, max_steps=4)
    trained.train()
    assert len(trained.generate(PROMPTS)) == 8  # sampling is no step
    with pytest.raises(InputError, match=r"step\(\) after train\(\)"):
        trained.step(**full())


def test_without_data_and_rewards_only_the_own_loop_works(tmp_path):
    trainer = own(tmp_path)
    with pytest.raises(InputError, match="train_dataset"):
        trainer.train()
    with pytest.raises(InputError, match="reward_funcs"):
        trainer.evaluate(Dataset.from_dict({"prompt": ["the cat"]}))
