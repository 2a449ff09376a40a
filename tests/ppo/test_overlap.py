"""Rewards that wait are called for one part of the completions while the next part is sampled."""

import threading

import pytest
from tiny import make_model, make_tokenizer, make_trainer, metrics_of, trained

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.learned import LearnedReward


def counting_reward(prompts, completions, log_metric, log_extra):
    """Depends on each completion alone."""
    lengths = [float(len(completion)) for completion in completions]
    log_metric("mean_length", sum(lengths) / len(lengths))
    log_extra("length", lengths)
    return lengths


def run(folder, reward=counting_reward, **flags):
    trainer = make_trainer(folder, reward=reward, optim="sgd", eval_strategy="no", **flags)
    trainer.train()
    return trainer


def test_it_changes_nothing_but_the_order_of_work(tmp_path):
    one = run(tmp_path / "one", generation_batch_size=2)
    other = run(tmp_path / "other", generation_batch_size=2, reward_while_sampling=True)
    assert all((weight == trained(other.policy)[name]).all() for name, weight in trained(one.policy).items())
    assert metrics_of(tmp_path / "one") == metrics_of(tmp_path / "other")
    first, second = ((tmp_path / name / "samples.jsonl").read_text() for name in ("one", "other"))
    assert first == second


def test_the_next_part_is_sampled_while_a_reward_waits(tmp_path):
    next_began, calls = threading.Event(), []

    def waiting_reward(prompts, completions):
        calls.append(len(completions))
        if len(calls) == 1:
            assert next_began.wait(timeout=120), "the second part was not sampled while the first was scored"
        return [0.0] * len(completions)

    trainer = make_trainer(
        tmp_path, reward=waiting_reward, generation_batch_size=3, reward_while_sampling=True, max_steps=4
    )
    sample, sampled = trainer.sample, []

    def watched(rows, seeds):
        sampled.append(len(rows))
        if len(sampled) == 2:
            next_began.set()
        return sample(rows, seeds)

    trainer.sample = watched
    trainer.train()
    assert calls == sampled == [3, 3, 2]
    (row,) = [row for row in metrics_of(tmp_path, times=True) if "iteration" in row]
    assert row["step_time"] == pytest.approx(sum(value for key, value in row.items() if key.startswith("time/")))


def test_what_a_reward_raises_ends_the_run(tmp_path):
    calls = []

    def failing_reward(prompts, completions):
        calls.append(len(completions))
        raise ConnectionError("no route to the judge")

    with pytest.raises(ConnectionError, match="no route"):
        run(tmp_path, failing_reward, generation_batch_size=1, reward_while_sampling=True)
    assert len(calls) < 8  # the other parts are not waited for


def test_a_model_in_this_process_is_refused(tmp_path):
    reward = LearnedReward(lambda ids, mask: ids[:, 0].float(), make_tokenizer(), name="judge")
    with pytest.raises(InputError, match="judge is a model"):
        make_trainer(tmp_path, reward=reward, generation_batch_size=2, reward_while_sampling=True)


def test_it_needs_to_know_the_parts(tmp_path):
    with pytest.raises(InputError, match="generation_batch_size"):
        make_trainer(tmp_path, model=make_model(make_tokenizer()), reward_while_sampling=True)
