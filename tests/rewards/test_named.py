import importlib
import inspect
import math
import re
from pathlib import Path

import pytest
import torch

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rewards.named import (
    REWARDS,
    is_named_reward,
    load_named_function,
    make_reward,
    named_text,
    names_function,
    parse_named,
    require_named,
)
from hf_rlhf.rewards.parts import PartShaping
from hf_rlhf.rewards.sources import resolve_rewards, reward_tokenizers


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (r"regex:pattern=\d{1,3},weight=2", {"pattern": r"\d{1,3}", "weight": "2"}),
        (r'regex:pattern="^\d+$"', {"pattern": r"^\d+$"}),
        ('regex: pattern = "a,b=c""d" , full=true', {"pattern": 'a,b=c"d', "full": "true"}),
        ("regex:pattern='it''s'", {"pattern": "it's"}),
        ("regex:pattern= a b ", {"pattern": "a b"}),
        ("regex", {}),
    ],
)
def test_a_text_is_read_as_a_name_and_arguments(text, arguments):
    assert parse_named(text) == ("regex", arguments)


def test_a_mapping_of_yaml_becomes_the_text_that_reads_the_same():
    text = named_text({"name": "regex", "pattern": 'a",b=\\d', "weight": 0.5, "full": True, "ignore_case": None})
    assert parse_named(text) == ("regex", {"pattern": 'a",b=\\d', "weight": "0.5", "full": "true"})
    with pytest.raises(InputError, match="no name"):
        named_text({"pattern": "a"})
    with pytest.raises(InputError, match="schema holds a dict"):
        named_text({"name": "json_schema", "schema": {"type": "object"}})


@pytest.mark.parametrize(
    ("text", "named", "function"),
    [
        ("regex:pattern=a", True, True),
        ("rexeg:pattern=a", True, True),  # so that the message is about the name
        ("math", True, True),
        ("math:sqrt", False, True),
        ("rewards.py:math", False, True),
        (r"C:\models\reward", False, True),
        ("owner/name", False, False),
        ("runs/reward=2", False, False),
        ("https://example.org/a=b", False, True),
        ("regex:pattern=" + "a" * 5000, True, True),
    ],
)
def test_named_rewards_are_told_from_functions_models_and_paths(text, named, function):
    assert (is_named_reward(text), names_function(text)) == (named, function)


def test_a_folder_of_the_name_is_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "math").mkdir()
    assert not names_function("math")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rexeg:pattern=a", "no reward 'rexeg'. Did you mean 'regex'?"),
        ("regex:patern=a", "takes no 'patern'. Did you mean 'pattern'?"),
        ("regex", "regex needs pattern. Write regex:pattern=VALUE"),
        ("regex:pattern=a,pattern=b", "pattern twice"),
        ("regex:pattern=a,weight=heavy", "weight=heavy is not a number"),
        ("regex:pattern=a,weight=nan", "weight=nan must be a finite number"),
        ("regex:pattern=a,clip=0", "clip=0.0 must be above 0"),
        ("regex:pattern=a,full=yes", "neither true nor false"),
        ("regex:pattern='a", "does not close"),
        ("regex:pattern=a,math:column=b", "two rewards"),
        ("regex:pattern=a, math", "two rewards"),
        ("regex:pattern=(", "no regular expression"),
    ],
)
def test_a_wrong_text_is_one_message_that_says_what_is_right(text, message):
    with pytest.raises(InputError) as error:
        make_reward(text)
    assert str(error.value).startswith(f"reward_funcs={text} is invalid: ")
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("regexx", "Did you mean 'regex'"), ("model=b", "quotes")])
def test_what_would_be_taken_for_a_model_by_a_slip_is_refused_before_models_are_looked_for(text, message):
    with pytest.raises(InputError, match=message):
        reward_tokenizers([text])
    with pytest.raises(InputError, match="takes no"):
        reward_tokenizers(["regex:patern=a"])


def test_every_named_reward_has_a_factory_with_arguments_of_plain_types():
    for name in REWARDS:
        with pytest.raises(InputError, match="it takes no 'nonsense'"):
            require_named(f"{name}:nonsense=1")


def test_the_page_has_a_row_for_each_named_reward_with_all_of_its_arguments():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "rewards.md"
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page.read_text(encoding="utf-8"), re.MULTILINE))
    for name in REWARDS:
        module, _, attribute = REWARDS[name].partition(":")
        factory = getattr(importlib.import_module(module), attribute)
        assert set(re.findall(r"`(\w+)`", rows[name])) == set(inspect.signature(factory).parameters), name


def test_the_arguments_of_a_named_reward_reach_it_in_python_too():
    rewards = resolve_rewards(
        ["regex:pattern=^A,ignore_case=true,weight=2", "regex:pattern=b$,full=false,clip=0.5,normalize=true"],
        None,
        policy=None,
        device=torch.device("cpu"),
        weights=None,
    )
    assert rewards.names == ["regex", "regex_2"]
    assert rewards.shapings == {"regex": PartShaping(2.0), "regex_2": PartShaping(1.0, 0.5, True)}
    assert [function([""] * 2, ["ab", "b a"]) for function in rewards.functions] == [[1.0, 0.0], [1.0, 0.0]]
    assert load_named_function("math:sqrt") is math.sqrt


def test_a_column_that_a_named_reward_reads_has_to_be_there():
    rewards = Rewards([make_reward("exact_match:column=gold")])
    with pytest.raises(InputError, match="'exact_match' takes gold, and the dataset has no such column"):
        rewards.require_columns(["prompt", "answer"])
    with pytest.raises(
        InputError, match=r"besides the prompt it has answer, golden\)\. Did you mean 'golden'\? Add it"
    ):
        rewards.require_columns(["prompt", "answer", "golden"])


def test_weights_come_from_the_list_or_the_reward_and_not_from_both():
    weighted = make_reward("regex:pattern=a,weight=2")
    assert Rewards([weighted], clips=[3.0]).shapings == {"regex": PartShaping(2.0, 3.0)}
    with pytest.raises(InputError, match=r"reward_weights=.* weight= of its own"):
        Rewards([weighted], [1.0])
    with pytest.raises(InputError, match="reward_clips has 2 numbers for 1 rewards"):
        Rewards([weighted], clips=[1.0, 2.0])
