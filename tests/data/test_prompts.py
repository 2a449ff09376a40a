import logging
from pathlib import Path

import datasets
import pytest

from hf_rlhf.data import load_rows, prepare_prompts, require_rows
from hf_rlhf.data.prompts import prompt_rows
from hf_rlhf.errors import InputError

DATA = Path(__file__).parents[3] / "shared" / "data"


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def prepare(tokenizer, rows, max_prompt_length=8, **options):
    dataset = datasets.Dataset.from_list(rows)
    return prepare_prompts(dataset, tokenizer, max_prompt_length=max_prompt_length, source="prompts.jsonl", **options)


def error_of(tokenizer, rows, **options):
    with pytest.raises(InputError) as caught:
        prepare(tokenizer, rows, **options)
    return str(caught.value)


def words(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_text_is_tokenised_and_other_columns_stay(word_tokenizer):
    dataset = prepare(word_tokenizer, [{"prompt": "the sky is", "id": 3}, {"prompt": "why", "id": 4}])
    assert dataset.column_names == ["prompt", "id", "prompt_ids"]
    assert dataset["prompt"][:] == ["the sky is", "why"]
    assert dataset["id"][:] == [3, 4]
    assert [words(word_tokenizer, ids) for ids in dataset["prompt_ids"]] == ["the sky is", "why"]


def test_messages_go_through_the_chat_template_with_a_generation_prompt(word_tokenizer):
    prompt = [user("what colour")]
    dataset = prepare(word_tokenizer, [{"prompt": prompt}])
    assert dataset[0]["prompt"] == prompt
    assert words(word_tokenizer, dataset[0]["prompt_ids"]) == "<user> what colour <eos> <assistant>"


def test_chat_template_arguments_reach_the_template(word_tokenizer):
    word_tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}{{ ending }}"
    dataset = prepare(word_tokenizer, [{"prompt": [user("the sky is")]}], chat_template_kwargs={"ending": "blue"})
    assert words(word_tokenizer, dataset[0]["prompt_ids"]) == "the sky is blue"


def test_keys_filled_with_none_do_not_reach_the_template(word_tokenizer, monkeypatch):
    given = []
    apply = word_tokenizer.apply_chat_template
    monkeypatch.setattr(
        word_tokenizer,
        "apply_chat_template",
        lambda messages, **options: given.append(messages) or apply(messages, **options),
    )
    prompt = [user("the sky") | {"name": "x"}, user("is")]
    assert prepare(word_tokenizer, [{"prompt": prompt}], 20)[0]["prompt"] == prompt
    assert given == [prompt]


def test_preparing_twice_changes_nothing(word_tokenizer):
    once = prepare(word_tokenizer, [{"prompt": "the sky"}])
    twice = prepare_prompts(once, word_tokenizer, max_prompt_length=8, source="prompts.jsonl")
    assert twice.to_list() == once.to_list()


def test_a_preference_set_gives_each_prompt_once(word_tokenizer):
    rows = [
        {
            "chosen": f"\n\nHuman: {prompt}\n\nAssistant: {answer}",
            "rejected": f"\n\nHuman: {prompt}\n\nAssistant: sea",
            "id": id,
        }
        for id, (prompt, answer) in enumerate([("why", "red"), ("what", "red"), ("why", "blue")])
    ]
    dataset = prepare(word_tokenizer, rows)
    assert dataset.column_names == ["prompt", "id", "prompt_ids"]
    assert dataset["prompt"][:] == [[user("why")], [user("what")]]
    assert dataset["id"][:] == [0, 1]


def test_plain_text_pairs_have_no_prompt_to_take(word_tokenizer):
    message = error_of(word_tokenizer, [{"chosen": "the sky is blue", "rejected": "the sky is red"}])
    assert 'prompts.jsonl: no column "prompt"' in message
    assert "Add a prompt column" in message


# --- bad prompts -------------------------------------------------------------------------------------------------


def test_missing_column_and_empty_set(word_tokenizer):
    message = error_of(word_tokenizer, [{"prompts": "why"}])
    assert 'no column "prompt"; columns found: prompts. Did you mean "prompts"?' in message
    empty = datasets.Dataset.from_dict({"prompt": []})
    with pytest.raises(InputError, match=r"nothing\.jsonl: the set is empty"):
        prepare_prompts(empty, word_tokenizer, max_prompt_length=8, source="nothing.jsonl")


@pytest.mark.parametrize("column", ["input_ids", "prompt_ids"])
def test_token_ids_alone_are_refused_with_what_to_give(word_tokenizer, column):
    message = error_of(word_tokenizer, [{column: [6, 7], "id": 3}])
    assert f'prompts.jsonl: no column "prompt"; the rows hold token ids ("{column}")' in message
    assert 'Give a column "prompt" with text or messages' in message
    assert "input_ids" in prepare(word_tokenizer, [{"prompt": "why", "input_ids": [6, 7]}]).column_names


@pytest.mark.parametrize(
    ("prompts", "part"),
    [
        (["why", None, "", None], "None in 2 rows (1, 3)"),
        (["why", "\n"], "empty text in 1 row (1)"),
        ([1, 2], "int instead of text in 2 rows (0, 1)"),
        ([[user("why")], None], "None in 1 row (1)"),
        ([[user("why")], []], "no messages in 1 row (1)"),
        ([[user("why")], [user("")]], "empty last message in 1 row (1)"),
        ([[user("why"), assistant("red")]], "a last message from the assistant"),
        ([[{"content": "why"}]], 'a message without "role"'),
    ],
)
def test_bad_prompts_are_listed_by_row(word_tokenizer, prompts, part):
    message = error_of(word_tokenizer, [{"prompt": prompt} for prompt in prompts])
    assert message.startswith("prompts.jsonl: ")
    assert f'column "prompt": {part}' in message
    assert "rows count from 0" in message
    assert "Mend these rows" in message


def test_messages_need_a_chat_template_and_text_does_not(word_tokenizer):
    word_tokenizer.chat_template = None
    message = error_of(word_tokenizer, [{"prompt": [user("why")]}])
    assert "the tokenizer words has no chat template" in message
    for fix in ("plain text", "--chat_template_path", "instruct model"):
        assert fix in message
    assert len(prepare(word_tokenizer, [{"prompt": "why"}])) == 1


def test_a_template_that_refuses_names_the_row(word_tokenizer):
    word_tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}why"
    )
    rows = [{"prompt": [user("a")]}, {"prompt": [{"role": "system", "content": "b"}, user("a")]}]
    message = error_of(word_tokenizer, rows)
    assert 'column "prompt": the chat template refuses it (no system role) in 1 row (1)' in message


def test_a_template_without_tokens_is_an_error(word_tokenizer):
    word_tokenizer.chat_template = "{{ '' }}"
    assert "no tokens in 1 row (0)" in error_of(word_tokenizer, [{"prompt": [user("a")]}])


# --- length ------------------------------------------------------------------------------------------------------

LENGTHS = [{"prompt": "the sky"}, {"prompt": "the sky is blue"}, {"prompt": "the sea is"}]


def test_overlong_prompts_are_an_error_with_the_options(word_tokenizer):
    message = error_of(word_tokenizer, LENGTHS, max_prompt_length=2)
    for part in ("prompts.jsonl", "=2 tokens", "2 rows (1, 2) of 3", "longest has 4", "filter", "truncate_left"):
        assert part in message
    assert len(prepare(word_tokenizer, LENGTHS, max_prompt_length=4)) == 3


def test_overlong_prompts_are_filtered_aloud(word_tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_rlhf"):
        dataset = prepare(word_tokenizer, LENGTHS, max_prompt_length=3, overlong_prompts="filter")
    assert dataset["prompt"][:] == ["the sky", "the sea is"]
    assert [words(word_tokenizer, ids) for ids in dataset["prompt_ids"]] == ["the sky", "the sea is"]
    assert "1 row (1) of 3" in caplog.text
    assert "skipped" in caplog.text
    assert "leaves no prompt" in error_of(word_tokenizer, LENGTHS, max_prompt_length=1, overlong_prompts="filter")


def test_overlong_prompts_are_cut_on_the_left(word_tokenizer):
    dataset = prepare(word_tokenizer, LENGTHS, max_prompt_length=2, overlong_prompts="truncate_left")
    assert [words(word_tokenizer, ids) for ids in dataset["prompt_ids"]] == ["the sky", "is blue", "sea is"]
    assert dataset["prompt"][1] == "the sky is blue"


def test_wrong_options_are_named(word_tokenizer):
    assert "choose one of error, filter, truncate_left" in error_of(word_tokenizer, LENGTHS, overlong_prompts="cut")
    assert "max_prompt_length=0" in error_of(word_tokenizer, LENGTHS, max_prompt_length=0)


def test_a_set_smaller_than_a_batch_is_an_error_with_the_algebra():
    dataset = datasets.Dataset.from_list(LENGTHS)
    require_rows(dataset, 3, source="prompts.jsonl", why="")
    with pytest.raises(InputError) as caught:
        require_rows(dataset, 4, source="prompts.jsonl", why="2 per device x 2 accumulation steps")
    assert "prompts.jsonl: 3 rows are fewer than the 4" in str(caught.value)
    assert "2 per device x 2 accumulation steps" in str(caught.value)
    assert "Add 1 rows" in str(caught.value)


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the checkout")
def test_prompts_of_real_hh_dialogues(word_tokenizer):
    rows = load_rows(str(DATA / "hh_harmless_dev.jsonl.gz"))
    dataset = prepare_prompts(rows, word_tokenizer, max_prompt_length=4096, source="hh_harmless_dev")
    print(f"{len(dataset)} distinct prompts of {len(rows)} pairs, longest {max(map(len, dataset['prompt_ids']))} words")
    assert 0 < len(dataset) <= len(rows)
    assert all(prompt[-1]["role"] == "user" for prompt in dataset["prompt"])


SHOWS = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{{ messages[0].content }}"
    " {{ mood is defined and mood or '' }}"
)
TOOLS = [{"type": "function", "function": {"name": "sea"}}]


@pytest.mark.parametrize("tools", [TOOLS, '[{"type": "function", "function": {"name": "sea"}}]'])
def test_a_rows_tools_and_template_arguments_are_in_its_prompt(word_tokenizer, tools):
    word_tokenizer.chat_template = SHOWS
    rows = [{"prompt": [user("sky")], "tools": tools, "chat_template_kwargs": {"mood": "blue"}}]
    rows += [{"prompt": [user("sky")], "tools": None, "chat_template_kwargs": None}]
    dataset = prepare(word_tokenizer, rows, chat_template_kwargs={"mood": "red"})
    assert [words(word_tokenizer, ids) for ids in dataset["prompt_ids"]] == ["sea sky blue", "sky red"]
    assert dataset["tools"][:] == [tools, None]  # for the rewards


def test_one_prompt_with_other_tools_is_another_prompt(word_tokenizer):
    word_tokenizer.chat_template = SHOWS
    pair = {"chosen": [user("why"), assistant("red")], "rejected": [user("why"), assistant("blue")]}
    rows = [pair, pair | {"tools": TOOLS}, pair | {"rejected": [user("why"), assistant("green")]}]
    dataset = prepare(word_tokenizer, [row if "tools" in row else row | {"tools": None} for row in rows])
    assert [words(word_tokenizer, ids) for ids in dataset["prompt_ids"]] == ["why", "sea why"]


def test_prompts_without_a_set_get_the_runs_template_arguments(word_tokenizer):
    word_tokenizer.chat_template = SHOWS
    rows = prompt_rows([[user("sky")]], word_tokenizer, chat_template_kwargs={"mood": "red"})
    assert words(word_tokenizer, rows[0]["prompt_ids"]) == "sky red"


def test_text_that_a_template_rendered_already_has_one_beginning(word_tokenizer):
    from tokenizers.processors import TemplateProcessing

    added = [("<user>", word_tokenizer.convert_tokens_to_ids("<user>"))]
    word_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<user> $A", special_tokens=added)
    dataset = prepare(word_tokenizer, [{"prompt": "<user> the sky"}, {"prompt": "the sky"}])
    assert [words(word_tokenizer, ids) for ids in dataset["prompt_ids"]] == ["<user> the sky"] * 2
    (row,) = prompt_rows(["<user> the sky"], word_tokenizer)
    assert words(word_tokenizer, row["prompt_ids"]) == "<user> the sky"
