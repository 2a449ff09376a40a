"""No tensor of an iteration is larger than one chunk of logits: no `[B, T, V]`, and no copy of the head's weight."""

from contextlib import nullcontext

import pytest
import torch
from tiny import make_model, make_tokenizer, make_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaForSequenceClassification

VOCABULARY, COMPLETION, CHUNK_OF_TOKENS = 4096, 16, 16


class LargeTensors(TorchDispatchMode):
    """The shapes of results with more than `most` numbers, by operation; views of weights omitted.

    A batched product with a weight counts as large too: it copies the weight for each of its rows, out of sight.
    """

    def __init__(self, most, weights):
        super().__init__()
        self.most = most
        self.largest = 0
        self.found = set()
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in weights}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.bmm.default and any(self.is_weight(tensor) for tensor in args):
            self.found.add((str(function), tuple(args[1].shape)))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and not self.is_weight(tensor):
                numbers = tensor.untyped_storage().nbytes() // tensor.element_size()  # an expanded view holds few
                self.largest = max(self.largest, numbers)
                if numbers > self.most:
                    self.found.add((str(function), tuple(tensor.shape)))
        return results

    def is_weight(self, tensor):
        return tensor.untyped_storage().data_ptr() in self.weights


@pytest.fixture(scope="module")
def tokenizer():
    """4096 words, so that the logits of an iteration outweigh all else in it."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(VOCABULARY - len(tokenizer))])
    tokenizer.eos_token = None  # all completions are of full length
    tokenizer.chat_template = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    return tokenizer


def watched_iteration(folder, tokenizer, monkeypatch, *, chunk=CHUNK_OF_TOKENS, reward=None, **config):
    """Return the allocations of one iteration larger than `CHUNK_OF_TOKENS` rows of logits, of which it scores 128."""
    monkeypatch.setattr("hf_rlhf.ops.logprobs.CHUNK_ELEMENTS", chunk * VOCABULARY)
    trainer = make_trainer(
        folder,
        model=make_model(tokenizer, eos_token_id=None),
        tokenizer=tokenizer,
        reward=reward,
        max_completion_length=COMPLETION,
        max_steps=4,
        **config,
        **({"trainer_kwargs": {"reward_processing_classes": [tokenizer]}} if reward else {}),
    )
    assert trainer.args.rollout_batch_size * COMPLETION == 8 * CHUNK_OF_TOKENS
    watch = LargeTensors(CHUNK_OF_TOKENS * VOCABULARY, trainer.policy.parameters())
    with watch:
        trainer.train()
    return watch


def reward_model(tokenizer):
    config = make_model(tokenizer).config
    config.num_labels = 1
    return LlamaForSequenceClassification(config)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 20},
        {"top_p": 0.98},  # of a flat distribution, so that most of the vocabulary is left
        {"entropy_coef": 0.01},
        {"kl_estimator": "full"},
        {"kl_estimator": "full", "kl_in_loss": True, "temperature": 0.7},
        {"kl_estimator": "full", "kl_in_loss": True, "entropy_coef": 0.01, "top_k": 20},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_nothing_of_an_iteration_is_larger_than_a_chunk(tmp_path, tokenizer, monkeypatch, options):
    watch = watched_iteration(tmp_path, tokenizer, monkeypatch, **options)
    assert not watch.found
    assert watch.largest >= 8 * VOCABULARY  # it has seen logits


def test_nothing_is_larger_when_a_reward_model_scores(tmp_path, tokenizer, monkeypatch):
    assert not watched_iteration(tmp_path, tokenizer, monkeypatch, reward=reward_model(tokenizer)).found


def test_the_watch_sees_logits_that_are_not_cut_into_chunks(tmp_path, tokenizer, monkeypatch):
    """Both in the pass without gradients, which scores all 128 tokens, and in the backward pass of an update."""
    found = watched_iteration(tmp_path, tokenizer, monkeypatch, chunk=10**6).found
    assert (8 * COMPLETION, VOCABULARY) in {shape for _, shape in found}
    assert (4 * COMPLETION, VOCABULARY) in {shape for name, shape in found if "softmax" in name}


def test_the_watch_sees_a_head_that_copies_its_weight(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("hf_rlhf.rollout.engines._contiguous_head_input", lambda causal_lm: nullcontext())
    found = watched_iteration(tmp_path, tokenizer, monkeypatch).found
    assert {(name, shape[-1]) for name, shape in found} == {("aten.bmm.default", VOCABULARY)}
