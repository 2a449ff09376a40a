"""Tools: which calls are read, what they give, and that the policy sees the tools and is not trained on results."""

import json
import random
from functools import partial

import pytest
from datasets import Dataset
from environments.byte_tokenizers import byte_tokenizer
from environments.test_masks import Prepared, message, prompt_ids
from tiny import make_tokenizer

from hf_rlhf.data.prompts import prepare_prompts
from hf_rlhf.environments import ToolUse, Turn, check_env
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.environments.episodes import collect_episodes
from hf_rlhf.environments.tool_calls import ToolCall, calls_by_tokenizer, calls_in, tool_schemas
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.sampling import Sampling


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def fail() -> str:
    """Fail in any case."""
    raise KeyError("no network")


def cities() -> list[str]:
    """List cities."""
    return ["Zürich"] * 3


def undescribed(a):
    return a


ROW = {"prompt": [message("2 + 3 ?")]}
ADD = '{"name": "add", "arguments": {"a": 2, "b": 3}}'


def begun(tools=(add, fail, cities), **settings):
    env = ToolUse(list(tools), **settings)
    env.reset(ROW, random.Random(0))
    return env


def results(turn):
    assert all(each["role"] == "tool" for each in turn.messages)
    return [each["content"] for each in turn.messages]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<tool_call>\n{ADD}\n</tool_call>", 1),
        (f"I add.\n<tool_call>{ADD}</tool_call>\n<tool_call>{ADD}</tool_call>", 2),
        (f"<tool_call>{ADD}", 1),
        (ADD, 1),
        (f"```json\n{ADD}\n```", 1),
        (f"[{ADD}, {ADD}]", 2),
        ('{"name": "add", "parameters": {"a": 2, "b": 3}}', 1),
        ('{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 2, \\"b\\": 3}"}}', 1),
        ("The answer is 5.", 0),
        (f"It reads {ADD}", 0),
        ('{"a": 5}', 0),
        ("[1, 2]", 0),
        ("", 0),
        (f"<think>perhaps <tool_call>{ADD}</tool_call></think>5", 0),
        (f"<think>perhaps <tool_call>{ADD}</tool_call>", 0),
    ],
)
def test_calls_are_read_off_what_the_policy_wrote(text, calls):
    assert calls_in(text) == [ToolCall("add", {"a": 2, "b": 3})] * calls


def test_calls_run_and_their_results_are_messages_of_tools():
    turn = begun().step(
        f"<tool_call>{ADD}</tool_call><tool_call>{json.dumps({'name': 'cities', 'arguments': {}})}</tool_call>"
    )
    assert results(turn) == ["5", '["Zürich", "Zürich", "Zürich"]']
    assert [each["tool_call_id"] for each in turn.messages] == ["call00001", "call00002"]
    assert not turn.ends
    env = begun()
    assert env.step("5") == Turn(terminated=True, info={"tool_calls": 0.0, "tool_errors": 0.0})
    with pytest.raises(RuntimeError, match="over"):
        env.step("5")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("<tool_call>{add 2 3}</tool_call>", "the call cannot be read: it is not JSON"),
        ("<tool_call>[]</tool_call>", "the call cannot be read: it has no name and arguments"),
        ('<tool_call>{"name": "add"}</tool_call>', "the call cannot be read: it has no name and arguments"),
        ('{"name": "add", "arguments": "{a}"}', "the call cannot be read: its arguments are not JSON"),
        ('{"name": "remove", "arguments": {}}', "there is no tool 'remove'. There are add, fail, cities"),
        ('{"name": "add", "arguments": {"a": 1}}', "TypeError: add() missing 1 required"),
        ('{"name": "fail", "arguments": {}}', "KeyError: 'no network'"),
        ('{"name": "__import__", "arguments": {"name": "os"}}', "there is no tool '__import__'"),
    ],
)
def test_an_error_of_a_call_is_its_result_and_may_cost(call, error):
    turn = begun(error_penalty=0.25).step(call)
    assert f"Error: {error}" in results(turn)[0]
    assert (turn.reward, turn.info["tool_errors"], turn.ends) == (-0.25, 1.0, False)


def test_the_budget_of_calls_is_told_and_then_truncates():
    env = begun(max_calls=2)
    assert results(env.step(f"[{ADD}, {ADD}, {ADD}]")) == ["5", "5", "Error: only 2 calls are allowed. Answer now."]
    turn = env.step(ADD)
    assert (turn.truncated, turn.terminated) == (True, False)
    assert begun(max_calls=2).step("5").terminated


def test_a_long_result_is_cut():
    assert results(begun(max_result_length=4).step('{"name": "cities", "arguments": {}}')) == [
        '["Zü ... (26 more characters)'
    ]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ToolUse([undescribed]), "tools=undescribed is invalid"),
        (lambda: ToolUse([add, add]), "two have the same name"),
        (lambda: ToolUse([add], max_calls=0), "max_calls=0"),
        (lambda: ToolUse([add], max_result_length=0), "max_result_length=0"),
        (lambda: ToolUse([add], error_penalty=-1.0), "error_penalty=-1.0"),
    ],
)
def test_what_is_no_tool_is_refused(make, reason):
    with pytest.raises(InputError, match=reason):
        make()


def test_tools_keep_the_contract():
    check_env(partial(ToolUse, [add]), [ROW])


def test_the_policy_reads_the_tools_and_results_and_is_trained_on_neither():
    tokenizer = byte_tokenizer("qwen3")
    end = [tokenizer.eos_token_id]
    answers = [f"<tool_call>\n{ADD}\n</tool_call>", "5"]
    turns = [(tokenizer(text, add_special_tokens=False)["input_ids"] + end, None) for text in answers]
    engine = Prepared([turns])
    row = ROW | {"prompt_ids": prompt_ids(tokenizer, ROW["prompt"])}
    [episode] = collect_episodes(engine, [row], tokenizer, Sampling(96), [0], partial(ToolUse, [add]))
    prompt = tokenizer.decode(episode.prompt_ids)
    expected = tokenizer.apply_chat_template(ROW["prompt"], tools=[add], add_generation_prompt=True, tokenize=False)
    assert prompt == expected
    assert '"name": "add"' in prompt
    own = [t for t, sampled in zip(episode.completion.ids, episode.completion_mask, strict=True) if sampled]
    assert tokenizer.decode(own) == "".join(f"{answer}<|im_end|>" for answer in answers)
    rest = [t for t, sampled in zip(episode.completion.ids, episode.completion_mask, strict=True) if not sampled]
    assert (
        tokenizer.decode(rest)
        == "\n<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert episode.text == "5"
    assert episode.info == {"tool_calls": 1.0, "tool_errors": 0.0, "turns": 2.0}


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "reason"),
    [
        (make_tokenizer(), [message("hello")], "the chat template does not write them"),
        (byte_tokenizer("qwen3"), "hello", "the prompt is plain text"),
    ],
)
def test_tools_that_the_policy_would_not_see_are_refused(tokenizer, prompt, reason):
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt_ids(tokenizer, prompt)
    row = {"prompt": prompt, "prompt_ids": ids}
    with pytest.raises(InputError, match=f"environment=ToolUse is invalid.*{reason}"):
        collect_episodes(Prepared([]), [row], tokenizer, Sampling(4), [0], partial(ToolUse, [add]))


def test_a_prompt_that_tools_make_too_long_is_refused():
    tokenizer = byte_tokenizer("qwen3")
    row = ROW | {"prompt_ids": prompt_ids(tokenizer, ROW["prompt"])}
    limits = EpisodeLimits(max_prompt_tokens=100)
    with pytest.raises(InputError, match="max_prompt_length=100 is invalid: a prompt of the environment ToolUse has"):
        collect_episodes(Prepared([]), [row], tokenizer, Sampling(4), [0], partial(ToolUse, [add]), limits)


def test_a_column_of_tools_reaches_the_template_too():
    tokenizer = byte_tokenizer("qwen3")
    prompts = Dataset.from_list([ROW | {"tools": tool_schemas([add])}])
    [row] = prepare_prompts(prompts, tokenizer, max_prompt_length=4096, overlong_prompts="error", source="rows")
    assert '"name": "add"' in tokenizer.decode(row["prompt_ids"])


def test_the_tokenizers_own_parser_is_asked_where_it_has_one():
    from trl import add_response_schema

    tokenizer = byte_tokenizer("qwen3")
    ids = tokenizer(f"<tool_call>\n{ADD}\n</tool_call><|im_end|>")["input_ids"]
    assert calls_by_tokenizer(tokenizer, [], ids, tool_schemas([add])) is None
    real = byte_tokenizer("qwen3")
    real.chat_template = _trl_template("qwen3")
    real = add_response_schema(real)
    prefix = prompt_ids(real, ROW["prompt"])
    assert calls_by_tokenizer(real, prefix, ids, tool_schemas([add])) == [ToolCall("add", {"a": 2, "b": 3})]
    assert calls_by_tokenizer(real, prefix, real("5<|im_end|>")["input_ids"], None) is None
    broken = real("<tool_call>\n{add}\n</tool_call><|im_end|>")["input_ids"]
    assert calls_by_tokenizer(real, prefix, broken, None) is None


def _trl_template(name):
    from importlib import resources

    return resources.files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")
