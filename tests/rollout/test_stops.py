"""The token that closes a chat turn ends a completion, also where the model's own end token is another."""

import logging

import pytest
import torch
from tiny import make_base_tokenizer, make_lora, make_model, make_tokenizer

from hf_rlhf.models.policy import wrap_policy
from hf_rlhf.rollout.continuous_batching import ContinuousBatchingEngine
from hf_rlhf.rollout.engines import TransformersEngine, _StopRecorder
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.stops import _warn, stop_at_end_of_turn, stop_token_ids, unknown_end_of_turn
from hf_rlhf.rollout.vllm.completion import completion_request

IM_END = 3
CHAT = {"prompt": [{"role": "user", "content": "hello"}], "prompt_ids": [9, 10]}
TEXT = {"prompt": "hello", "prompt_ids": [9, 10]}
RENDERED = {"prompt": "<|im_start|> user hello <|im_end|>", "prompt_ids": [2, 5, 9, IM_END]}


@pytest.fixture(autouse=True)
def said_anew():
    _warn.cache_clear()


@pytest.fixture
def tokenizer():
    return make_base_tokenizer()


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


@pytest.mark.parametrize("row", [CHAT, RENDERED], ids=["messages", "text that the template rendered"])
def test_the_end_of_a_turn_becomes_an_end_token_and_one_warning_says_so(model, tokenizer, caplog, row):
    sampling = Sampling()
    assert stop_token_ids(model, tokenizer, sampling) == [tokenizer.eos_token_id]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            stop_at_end_of_turn(model, tokenizer, row, sampling)
    assert stop_token_ids(model, tokenizer, sampling) == [IM_END, tokenizer.eos_token_id]
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, IM_END]
    (record,) = caplog.records
    assert "'<|im_end|>'" in record.message
    assert "<|endoftext|>" in record.message
    assert "stop_token_ids=[3]" in record.message


def test_plain_text_keeps_the_models_own_end_tokens(model, tokenizer, caplog):
    stop_at_end_of_turn(model, tokenizer, TEXT, Sampling())
    assert stop_token_ids(model, tokenizer, Sampling()) == [tokenizer.eos_token_id]
    assert not caplog.records


@pytest.mark.parametrize("sampling", [Sampling(stop_token_ids=(IM_END,)), Sampling(stop_strings=("im_end",))])
def test_what_the_run_stops_at_by_its_flags_needs_no_warning(model, tokenizer, caplog, sampling):
    stop_at_end_of_turn(model, tokenizer, CHAT, sampling)
    assert not caplog.records


def test_a_generation_config_without_the_tokenizers_end_token_gets_it(caplog):
    """Take a base model with the tokenizer of its instruct version: sampling here stops, plain `generate` would not."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, eos_token_id=12)
    stop_at_end_of_turn(model, tokenizer, CHAT, Sampling())
    assert model.generation_config.eos_token_id == [12, IM_END]
    assert not caplog.records


def test_one_known_token_of_several_behind_an_answer_is_enough(model, tokenizer):
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|end|> <|endoftext|>")
    assert unknown_end_of_turn(model, tokenizer, Sampling()) is None
    stop_at_end_of_turn(model, tokenizer, CHAT, Sampling())
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_an_end_in_pieces_is_said_with_the_string_to_stop_at(model, tokenizer, caplog):
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "### end")
    stop_at_end_of_turn(model, tokenizer, CHAT, Sampling())
    assert stop_token_ids(model, tokenizer, Sampling()) == [tokenizer.eos_token_id]
    (record,) = caplog.records
    assert "stop_strings to ['### end']" in record.message


@pytest.mark.parametrize("make_engine", [TransformersEngine, ContinuousBatchingEngine])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "adapter"])
def test_completions_of_every_engine_end_with_the_turn(tokenizer, make_engine, lora):
    model = make_model(tokenizer)
    model = wrap_policy(model, make_lora()) if lora else model
    stop_at_end_of_turn(model, tokenizer, CHAT, Sampling())
    sampling = Sampling(max_completion_length=16)
    completions = make_engine(model, tokenizer).generate([[9, 10]] * 16, sampling, list(range(16)))
    ended = [completion for completion in completions if IM_END in completion.ids]
    assert ended
    assert all(completion.ids.index(IM_END) == len(completion.ids) - 1 and completion.stopped for completion in ended)


def test_a_vllm_server_is_asked_to_end_with_the_turn(model, tokenizer):
    policy = wrap_policy(model, make_lora())
    stop_at_end_of_turn(policy, tokenizer, CHAT, Sampling())
    request = completion_request(policy, tokenizer, Sampling())
    assert request["stop_token_ids"] == [IM_END, tokenizer.eos_token_id]


def test_an_answer_ends_at_the_first_token_behind_it(tokenizer, model):
    """Phi-3's template closes each turn with one token, and writes the end token once more behind the last."""
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|end|> {% endfor %}"
        "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    assert unknown_end_of_turn(model, tokenizer, Sampling()).tokens == (end,)
    stop_at_end_of_turn(model, tokenizer, {"prompt": [{"role": "user", "content": "the"}]}, Sampling())
    assert end in stop_token_ids(model, tokenizer, Sampling())


def test_a_template_that_needs_the_rows_tools_and_the_runs_settings_ends_the_turn_too(model, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no') if not (tools and bot) }}" + tokenizer.chat_template
    stop_at_end_of_turn(model, tokenizer, CHAT | {"tools": [{"type": "function"}]}, Sampling(), {"bot": "b"})
    assert IM_END in stop_token_ids(model, tokenizer, Sampling())


def test_a_step_that_is_dropped_stops_no_row():
    """On MPS transformers takes one step more than the criterion asked for, shows it to the criterion, and drops it."""
    stop = _StopRecorder([3], None, prompt_width=2, rows=2, device=torch.device("cpu"), enough=1)
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
    assert not stop(ids, None).any()
    ids = torch.cat([ids, torch.tensor([[3], [9]])], dim=1)
    assert stop(ids, None).all()
    assert stop(torch.cat([ids, torch.tensor([[0], [3]])], dim=1), None).all()
    assert stop.lengths.tolist() == [2, 0]
