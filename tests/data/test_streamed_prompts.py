import logging

import datasets
import pytest

from hf_rlhf.data import prepare_prompts
from hf_rlhf.errors import InputError


def user(content):
    return {"role": "user", "content": content}


def stream_of(rows, read=None):
    """A stream that notes in `read` the number of each row it has given."""

    def generate():
        for number, row in enumerate(rows):
            if read is not None:
                read.append(number)
            yield row

    return datasets.IterableDataset.from_generator(generate)


def prepare(tokenizer, rows, max_prompt_length=8, **options):
    stream = rows if isinstance(rows, datasets.IterableDataset) else stream_of(rows)
    return prepare_prompts(stream, tokenizer, max_prompt_length=max_prompt_length, source="stream", **options)


def error_of(tokenizer, rows, **options):
    """The message of the InputError, at preparation or when the rows are read."""
    with pytest.raises(InputError) as caught:
        list(prepare(tokenizer, rows, **options))
    return str(caught.value)


ROWS = [{"prompt": "the sky", "id": 3}, {"prompt": "the sky is blue", "id": 4}, {"prompt": "the sea is", "id": 5}]


@pytest.mark.parametrize(("overlong", "limit"), [("error", 4), ("filter", 3), ("truncate_left", 3)])
def test_a_stream_gives_the_rows_that_the_loaded_set_gives(word_tokenizer, overlong, limit):
    loaded = prepare_prompts(
        datasets.Dataset.from_list(ROWS),
        word_tokenizer,
        max_prompt_length=limit,
        source="set",
        overlong_prompts=overlong,
    )
    assert list(prepare(word_tokenizer, ROWS, limit, overlong_prompts=overlong)) == loaded.to_list()


def test_messages_of_a_stream_go_through_the_chat_template(word_tokenizer):
    rows = [{"prompt": [user("what colour")]}, {"prompt": [user("why")]}]
    loaded = prepare_prompts(datasets.Dataset.from_list(rows), word_tokenizer, max_prompt_length=8, source="set")
    assert list(prepare(word_tokenizer, rows)) == loaded.to_list()
    word_tokenizer.chat_template = "{{ ending }}"
    [row, _] = prepare(word_tokenizer, rows, chat_template_kwargs={"ending": "sky blue"})
    assert word_tokenizer.convert_ids_to_tokens(row["prompt_ids"]) == ["sky", "blue"]


def test_preparing_reads_one_row_and_reading_reads_no_further_than_asked(word_tokenizer):
    read = []
    stream = prepare(word_tokenizer, stream_of([{"prompt": "why"}] * 10, read))
    assert read == [0]
    rows = iter(stream)
    next(rows), next(rows)
    assert read == [0, 0, 1]


def test_filtering_reads_on_until_a_prompt_fits(word_tokenizer, caplog):
    read = []
    stream = prepare(word_tokenizer, stream_of(ROWS * 2, read), 3, overlong_prompts="filter")
    with caplog.at_level(logging.WARNING, logger="hf_rlhf"):
        rows = iter(stream)
        assert [next(rows)["id"], next(rows)["id"]] == [3, 5]
        assert read == [0, 0, 1, 2]
        assert [row["id"] for row in rows] == [3, 5]
    assert len(caplog.records) == 1
    assert "row 1 of the stream (rows count from 0): the prompt has 4 tokens" in caplog.text
    assert "leaves such prompts out" in caplog.text


def test_a_bad_row_is_named_when_its_turn_comes(word_tokenizer):
    rows = iter(prepare(word_tokenizer, [{"prompt": "why"}, {"prompt": "the sky"}, {"prompt": " "}]))
    next(rows), next(rows)
    with pytest.raises(InputError, match=r'stream: row 2 of the stream .*: column "prompt": empty text'):
        next(rows)


@pytest.mark.parametrize(
    ("prompts", "part"),
    [
        (["why", None], "row 1 of the stream (rows count from 0): column \"prompt\": None"),
        ([3], "row 0 of the stream (rows count from 0): column \"prompt\": int instead of text"),
        (["why", [user("why")]], "row 1 of the stream (rows count from 0): column \"prompt\": list instead of text"),
        ([[user("why")], [user("a"), {"role": "assistant", "content": "b"}]], "a last message from the assistant"),
        ([[user("why")], []], "no messages"),
    ],
)  # fmt: skip
def test_bad_prompts_name_their_row(word_tokenizer, prompts, part):
    message = error_of(word_tokenizer, [{"prompt": prompt} for prompt in prompts])
    assert part in message
    assert "A prompt is text, or a list of messages" in message


def test_a_key_that_only_later_rows_lack_is_a_bad_prompt(word_tokenizer):
    assert 'row 1 of the stream (rows count from 0): column "prompt": None' in error_of(
        word_tokenizer, [{"prompt": "why"}, {"question": "why"}]
    )


def test_an_overlong_prompt_stops_the_stream_with_the_options(word_tokenizer):
    message = error_of(word_tokenizer, ROWS, max_prompt_length=3)
    for part in ("row 1 of the stream", "has 4 tokens", "max_prompt_length=3", "filter", "truncate_left"):
        assert part in message


def test_templates_that_refuse_or_write_nothing_name_the_row(word_tokenizer):
    rows = [{"prompt": [user("why")]}, {"prompt": [user("sea")]}]
    word_tokenizer.chat_template = "{% if messages[0].content == 'sea' %}{{ raise_exception('no') }}{% endif %}why"
    assert "the chat template refuses row 1" in error_of(word_tokenizer, rows)
    word_tokenizer.chat_template = "{% if messages[0].content != 'sea' %}why{% endif %}"
    assert "no tokens in 1 row (1)" in error_of(word_tokenizer, rows)


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([{"prompts": "why"}], 'no column "prompt"; columns found: prompts. Did you mean "prompts"?'),
        ([{"chosen": "a", "rejected": "b"}], "Give a column prompt, or load the set with streaming=False"),
        ([{"input_ids": [1, 2]}], 'the rows hold token ids ("input_ids"). Give a column "prompt"'),
        ([], "the stream is empty"),
        ([{"prompt": [user("why")]}], "has no chat template"),
    ],
    ids=["misspelt", "pairs", "token ids", "empty", "no template"],
)
def test_what_the_first_row_shows_is_an_error_at_preparation(word_tokenizer, rows, part):
    word_tokenizer.chat_template = None
    with pytest.raises(InputError) as caught:
        prepare(word_tokenizer, rows)
    assert part in str(caught.value)


def test_a_format_on_the_stream_does_not_change_its_prompts(word_tokenizer):
    stream = datasets.Dataset.from_list([{"prompt": [user("why")]}]).with_format("numpy").to_iterable_dataset()
    assert list(prepare(word_tokenizer, stream)) == list(prepare(word_tokenizer, [{"prompt": [user("why")]}]))


def test_streamed_splits_are_not_one_set(word_tokenizer):
    splits = datasets.IterableDatasetDict(train=stream_of(ROWS))
    with pytest.raises(InputError, match=r"Pass dataset\[split\]"):
        prepare_prompts(splits, word_tokenizer, max_prompt_length=8, source="stream")


def test_a_rows_tools_and_template_arguments_are_in_its_prompt(word_tokenizer):
    word_tokenizer.chat_template = (
        "{% for tool in tools or [] %}{{ tool.name }} {% endfor %}{{ messages[0].content }}"
        " {{ mood is defined and mood or '' }}"
    )
    rows = [
        {"prompt": [user("sky")], "tools": [{"name": "sea"}]},
        {"prompt": [user("sky")], "chat_template_kwargs": {"mood": "red"}},
    ]
    prompts = [row["prompt_ids"] for row in prepare(word_tokenizer, rows, chat_template_kwargs={"mood": "blue"})]
    assert [word_tokenizer.decode(ids).split() for ids in prompts] == [["sea", "sky", "blue"], ["sky", "red"]]


def test_text_that_a_template_rendered_already_has_one_beginning(word_tokenizer):
    from tokenizers.processors import TemplateProcessing

    added = [("<user>", word_tokenizer.convert_tokens_to_ids("<user>"))]
    word_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<user> $A", special_tokens=added)
    (row,) = prepare(word_tokenizer, [{"prompt": "<user> the sky"}])
    assert word_tokenizer.decode(row["prompt_ids"]).split() == ["<user>", "the", "sky"]
