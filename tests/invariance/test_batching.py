"""One iteration from the same start gives the same weights and metrics, however it is cut into batches."""

import pytest
import torch
from invariance.runs import EXPONENTIAL, ROUNDING, TOLERANCE, number_reward
from tiny import make_model, make_tokenizer, make_trainer, metrics_of, perturb, trained


def one_iteration(folder, *, tokenizer=None, **flags):
    """Trained weights and the iteration's metrics, by plain SGD.

    It does not magnify rounding as Adam's quotient does.
    """
    flags = {
        "per_device_train_batch_size": 8,
        "optim": "sgd",
        "learning_rate": 0.5,
        "max_steps": 4,
        "missing_eos_penalty": 0.3,
    } | flags
    tokenizer = tokenizer or make_tokenizer()
    model = make_model(tokenizer, pad_token_id=0)
    trainer = make_trainer(folder, model=model, tokenizer=tokenizer, reward=number_reward, **flags)
    start = trained(perturb(trainer.policy, only="lora"))
    trainer.train()
    end = trained(trainer.policy)
    assert all((end[name] - start[name]).norm() > 1e-5 * start[name].norm() for name in end)
    return end, [row for row in metrics_of(folder) if "iteration" in row]


def assert_same(one, other):
    weights, metrics = one
    for name, weight in other[0].items():
        assert (weight - weights[name]).norm() <= TOLERANCE * weights[name].norm(), name
    assert len(metrics) == len(other[1]) == 1
    assert set(metrics[0]) == set(other[1][0])
    for key, value in other[1][0].items():
        floor = 1e-5 if key in ROUNDING else 1e-6
        assert value == pytest.approx(metrics[0][key], rel=EXPONENTIAL.get(key, 1e-5), abs=floor), key


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return one_iteration(tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize(("per_device", "accumulation"), [(4, 2), (2, 4), (1, 8), (3, 3)])
def test_micro_batches_and_accumulation(expected, tmp_path, per_device, accumulation):
    if per_device * accumulation != 8:
        flags = {"num_mini_batches": 1, "max_steps": 2}
        expected = one_iteration(tmp_path / "nine", per_device_train_batch_size=9, **flags)
    else:
        flags = {}
    result = one_iteration(
        tmp_path / "cut", per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation, **flags
    )
    assert_same(expected, result)


@pytest.mark.parametrize("size", [1, 3, 16, 100])
def test_generation_batches(expected, tmp_path, size):
    assert_same(expected, one_iteration(tmp_path, generation_batch_size=size))


@pytest.mark.parametrize("size", [1, 5, 16])
def test_forward_batches(expected, tmp_path, size):
    assert_same(expected, one_iteration(tmp_path, rollout_forward_batch_size=size))


def test_padding_that_equals_the_end_token(expected, tmp_path):
    assert_same(expected, one_iteration(tmp_path, tokenizer=make_tokenizer(pad_is_eos=True)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side(expected, tmp_path, side):
    tokenizer = make_tokenizer()
    tokenizer.padding_side = side
    assert_same(expected, one_iteration(tmp_path, tokenizer=tokenizer))


def test_the_tokenizers_padding_token(expected, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "hello"
    assert_same(expected, one_iteration(tmp_path, tokenizer=tokenizer))


@pytest.mark.parametrize("chunk", [29, 3 * 29])
def test_chunks_of_logits(expected, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("hf_rlhf.ops.logprobs.CHUNK_ELEMENTS", chunk)
    assert_same(expected, one_iteration(tmp_path))


def test_room_for_longer_prompts(expected, tmp_path):
    assert_same(expected, one_iteration(tmp_path, max_prompt_length=90))


def test_gradient_checkpointing(expected, tmp_path):
    assert_same(expected, one_iteration(tmp_path, gradient_checkpointing=True))


@pytest.mark.parametrize("critic", ["value_head", "adapter"])
def test_padding_that_is_computed(tmp_path, critic):
    without = one_iteration(tmp_path / "without", critic=critic)
    assert_same(without, one_iteration(tmp_path / "with", critic=critic, padding_free=False))


def test_a_different_minibatch_size_is_a_different_run(expected, tmp_path):
    """The comparison can fail."""
    with pytest.raises(AssertionError):
        assert_same(expected, one_iteration(tmp_path, per_device_train_batch_size=4, num_mini_batches=4, max_steps=8))


def test_it_holds_under_adam_too(tmp_path):
    adam = {"optim": "adamw_torch", "learning_rate": 1e-3}
    whole, _ = one_iteration(tmp_path / "whole", **adam)
    cut, _ = one_iteration(
        tmp_path / "cut", per_device_train_batch_size=2, gradient_accumulation_steps=4, generation_batch_size=3, **adam
    )
    for name, weight in cut.items():
        torch.testing.assert_close(weight, whole[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiled_blocks(expected, tmp_path):
    from torch._dynamo.utils import counters

    counters.clear()
    assert_same(expected, one_iteration(tmp_path, torch_compile=True))
    assert counters["stats"]["unique_graphs"] > 0
