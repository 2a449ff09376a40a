import json

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rewards.named import load_named_function, make_reward
from hf_rlhf.rewards.sources import require_functions
from hf_rlhf.rewards.values import Unkept

SCHEMA = json.dumps({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 0}}})


def scores(text, completions, **columns):
    """Score the completions as text and as messages, which has to be the same."""
    reward = make_reward(text)
    prompts = ["?"] * len(completions)
    found = reward(prompts, completions, **columns)
    messages = [[{"role": "assistant", "content": completion}] for completion in completions]
    assert reward([[{"role": "user", "content": "?"}]] * len(prompts), messages, **columns) == found
    return found


def test_a_pattern_is_searched_for_or_has_to_match_all():
    assert scores(r"regex:pattern=\d{2}", ["a 42 b", "4 2", ""]) == [1.0, 0.0, 0.0]
    assert scores(r"regex:pattern=\d+,full=true", [" 42\n", "42 b"]) == [1.0, 0.0]
    assert scores("regex:pattern=yes,ignore_case=true", ["YES", "no"]) == [1.0, 0.0]


def test_an_exact_match_is_of_the_text_after_the_normalization_that_was_asked_for():
    answers = {"answer": ["The cat.", "The cat.", "The cat.", None]}
    texts = [" The   cat.\n", "the cat.", "The cat", "The cat."]
    assert scores("exact_match", texts, **answers) == [1.0, 0.0, 0.0, None]
    assert scores("exact_match:ignore_case=true", texts, **answers) == [1.0, 1.0, 0.0, None]
    assert scores("exact_match:ignore_punctuation=true", texts, **answers) == [1.0, 0.0, 1.0, None]
    assert scores("exact_match:ignore_whitespace=false", texts, **answers) == [0.0, 0.0, 0.0, None]


def test_an_exact_match_takes_numbers_several_answers_and_the_last_match_of_a_pattern():
    assert scores("exact_match:column=gold", ["4", "5", "6"], gold=[4, ["3", "5"], []]) == [1.0, 1.0, None]
    assert scores("exact_match", ["4", "4.5", "4.0"], answer=[4.0, 4.5, 4.0]) == [1.0, 1.0, 0.0]
    extract = r"exact_match:extract=#### (\d+)"
    assert scores(extract, ["7 #### 1 so #### 42", "42", "#### 41"], answer=["42"] * 3) == [1.0, 0.0, 0.0]


def test_an_answer_written_as_messages_is_its_text_and_another_mapping_is_refused():
    asked, said = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
    answers = [[said], [asked, said], [[said], "5"], []]
    assert scores("exact_match", ["4"] * 4, answer=answers) == [1.0, 1.0, 1.0, None]
    assert scores("math", [r"\boxed{4}", r"\boxed{4}"], solution=[[asked, said], said]) == [1.0, 1.0]
    with pytest.raises(InputError, match="reward 'exact_match' reads text, and its column holds a mapping with text"):
        scores("exact_match", ["4"], answer=[{"text": ["4"], "answer_start": [0]}])


def test_a_json_schema_accepts_json_of_its_kind_only():
    texts = [
        '{"n": 1}',
        '{"n": -1}',
        '{"n": 1.5}',
        '{"m": 1}',
        "n",
        '{"n": NaN}',
        "[" * 100_000,
        '```json\n{"n": 1}\n```',
    ]
    assert scores(f"json_schema:schema='{SCHEMA}'", texts) == [1.0] + [0.0] * 7
    assert scores(f"json_schema:fenced=true,schema='{SCHEMA}'", texts) == [1.0] + [0.0] * 6 + [1.0]


def test_a_json_schema_is_read_from_a_file_and_refused_where_it_is_none(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA, encoding="utf-8")
    assert scores(f"json_schema:schema={file}", ['{"n": 0}']) == [1.0]
    for schema, message in [
        ("missing.json", "cannot be read"),
        ("{nonsense", "not JSON"),
        ('{"type": 3}', "no JSON Schema"),
    ]:
        with pytest.raises(InputError, match=message):
            make_reward(f"json_schema:schema='{schema}'")


def test_a_json_schema_downloads_nothing():
    reward = make_reward("""json_schema:schema='{"$ref": "http://127.0.0.1:9/schema.json"}'""")
    with pytest.raises(InputError, match="nothing is downloaded"):
        reward(["?"], ["{}"])


def test_mathematics_is_compared_as_trls_accuracy_reward_does():
    from trl.rewards import accuracy_reward

    solutions = [r"\frac{1}{2}", r"$\frac{1}{2}$", r"\frac{1}{2}", "no mathematics", None, "$x^2+2x+1$"]
    texts = [
        r"It is \boxed{0.5}.",
        r"\boxed{\frac{2}{4}}",
        r"\boxed{2}",
        r"\boxed{1}",
        r"\boxed{1}",
        r"\boxed{(x+1)^2}",
    ]
    found = scores("math", texts, solution=solutions)
    assert found == [1.0, 1.0, 0.0, None, None, 1.0]
    rows = [row for row, solution in enumerate(solutions) if solution is not None]
    messages = [[{"role": "assistant", "content": texts[row]}] for row in rows]
    assert accuracy_reward(messages, [solutions[row] for row in rows]) == [found[row] for row in rows]


def test_mathematics_that_was_not_compared_in_time_is_not_kept(monkeypatch):
    reward = make_reward("math")
    assert not isinstance(reward(["?"], [r"\boxed{2}"], solution=["1"])[0], Unkept)
    monkeypatch.setattr("hf_rlhf.rewards.verifiers._LATE_SECONDS", 0.0)
    found = reward(["?"] * 2, [r"\boxed{2}", r"\boxed{1}"], solution=["1", "no mathematics"])
    assert found == [0.0, None]
    assert isinstance(found[0], Unkept)


def test_mathematics_is_not_compared_while_the_policy_samples_in_the_main_thread():
    with pytest.raises(InputError, match="reward_while_sampling=True is invalid: math keeps its time limits"):
        require_functions(Rewards([make_reward("regex:pattern=a"), make_reward("math")]))
    require_functions(Rewards([make_reward("regex:pattern=a")]))


def test_numbers_that_no_float_holds_end_no_run():
    reward = make_reward("""json_schema:schema='{"multipleOf": 0.5}'""")
    assert reward(["?"] * 3, ["1" + "0" * 400, "1e400", "1.5"]) == [0.0, 0.0, 1.0]


def test_trls_own_rewards_are_functions_by_name():
    function = load_named_function("trl.rewards:think_format_reward")
    assert function([[{"content": "<think>a</think>b"}], [{"content": "b"}]]) == [1.0, 0.0]
