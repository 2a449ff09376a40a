import logging

import datasets
import pytest

from hf_rlhf.data import prepare_texts
from hf_rlhf.data.report import Limit
from hf_rlhf.data.rows import LoadedRows
from hf_rlhf.data.texts import prepare_text_set
from hf_rlhf.errors import InputError


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def prepare(tokenizer, rows, max_ptx_length=16):
    return prepare_texts(
        datasets.Dataset.from_list(rows), tokenizer, max_ptx_length=max_ptx_length, source="texts.jsonl"
    )


def error_of(tokenizer, rows, **options):
    with pytest.raises(InputError) as caught:
        prepare(tokenizer, rows, **options)
    return str(caught.value)


def words(tokenizer, dataset):
    """(tokens that only condition, tokens that count) of each row."""
    return [
        tuple(" ".join(tokenizer.convert_ids_to_tokens(row[name])) for name in ("prompt_ids", "completion_ids"))
        for row in dataset
    ]


# --- binary labels -----------------------------------------------------------------------------------------------

LABELED = [
    {"prompt": "the sky is", "completion": " blue", "label": True},
    {"prompt": "the sky is", "completion": " why", "label": False},
    {"prompt": "why", "completion": " the sky", "label": True},
]


def test_completions_labeled_false_are_not_imitated_and_are_counted(word_tokenizer):
    dataset = prepare(word_tokenizer, LABELED)
    assert words(word_tokenizer, dataset) == [("the sky is", "blue <eos>"), ("why", "the sky <eos>")]
    rows = LoadedRows.given(datasets.Dataset.from_list(LABELED), source="kto.jsonl")
    limit = Limit("max_length", 16, "are cut on the right")
    found = prepare_text_set(rows, word_tokenizer, role="training", limit=limit)
    assert found.dataset["completion"][:] == [" blue", " the sky"]
    assert (found.report.rows_read, found.report.rows) == (3, 2)
    assert "skipped: 1 whose label is false" in str(found.report)


def test_labels_of_one_and_zero_leave_the_same_rows(word_tokenizer):
    numbers = [row | {"label": int(row["label"])} for row in LABELED]
    assert words(word_tokenizer, prepare(word_tokenizer, numbers)) == words(
        word_tokenizer, prepare(word_tokenizer, LABELED)
    )


def test_a_label_that_is_missing_is_an_error_and_so_are_labels_that_are_all_false(word_tokenizer):
    message = error_of(word_tokenizer, [*LABELED, LABELED[0] | {"label": None}])
    assert 'column "label": None instead of true or false in 1 row (3)' in message
    assert "every label is false" in error_of(word_tokenizer, [LABELED[1]])


# --- layouts -----------------------------------------------------------------------------------------------------


def test_every_token_of_a_text_after_the_first_counts_and_the_end_too(word_tokenizer):
    dataset = prepare(word_tokenizer, [{"text": "the sky is blue", "id": 1}, {"text": "why"}])
    assert words(word_tokenizer, dataset) == [("the", "sky is blue <eos>"), ("why", "<eos>")]
    assert dataset.column_names == ["prompt_ids", "completion_ids"]


def test_a_text_that_has_its_end_token_gets_no_second_one(word_tokenizer):
    assert words(word_tokenizer, prepare(word_tokenizer, [{"text": "the sky <eos>"}])) == [("the", "sky <eos>")]


def test_a_tokenizer_without_end_token_adds_none(word_tokenizer):
    word_tokenizer.eos_token = None
    assert words(word_tokenizer, prepare(word_tokenizer, [{"text": "the sky"}])) == [("the", "sky")]


def test_every_token_of_a_dialogue_after_the_first_counts(word_tokenizer):
    dataset = prepare(word_tokenizer, [{"messages": [user("what colour"), assistant("blue")]}])
    assert words(word_tokenizer, dataset) == [("<user>", "what colour <eos> <assistant> blue <eos>")]


def test_of_a_prompt_with_completion_the_completion_counts(word_tokenizer):
    dataset = prepare(word_tokenizer, [{"prompt": "the sky", "completion": " is blue"}])
    assert words(word_tokenizer, dataset) == [("the sky", "is blue <eos>")]


def test_of_a_conversational_prompt_with_completion_the_completion_counts(word_tokenizer):
    dataset = prepare(word_tokenizer, [{"prompt": [user("what colour")], "completion": [assistant("blue")]}])
    assert words(word_tokenizer, dataset) == [("<user> what colour <eos> <assistant>", "blue <eos>")]


def test_a_word_that_runs_over_the_end_of_the_prompt_counts(word_tokenizer):
    dataset = prepare(word_tokenizer, [{"prompt": "the s", "completion": "ky is"}])
    assert words(word_tokenizer, dataset) == [("the", "sky is <eos>")]


def test_without_a_common_token_the_first_one_conditions(word_tokenizer):
    dataset = prepare(word_tokenizer, [{"prompt": "b", "completion": "lue is"}])
    assert words(word_tokenizer, dataset) == [("blue", "is <eos>")]


def test_a_tokenizer_that_ends_every_text_itself(word_tokenizer):
    from tokenizers.processors import TemplateProcessing

    word_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", word_tokenizer.eos_token_id)]
    )
    dataset = prepare(word_tokenizer, [{"prompt": "the sky", "completion": " is blue"}])
    assert words(word_tokenizer, dataset) == [("the sky", "is blue <eos>")]


def test_the_tokens_that_count_are_those_of_trl(word_tokenizer, tmp_path):
    """Rows and masks as trl's SFTTrainer makes them from the same layouts."""
    from tiny import make_model
    from trl import SFTConfig, SFTTrainer

    word_tokenizer.chat_template = word_tokenizer.chat_template.replace(" <eos> ", " <eos>")
    for row in (
        {"text": "the sky is blue"},
        {"prompt": "the sky", "completion": " is blue"},
        {"prompt": [user("what colour")], "completion": [assistant("blue")]},
        {"messages": [user("what colour"), assistant("blue")]},
    ):
        trainer = SFTTrainer(
            make_model(word_tokenizer),
            SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
            train_dataset=datasets.Dataset.from_list([row]),
            processing_class=word_tokenizer,
        )
        batch = next(iter(trainer.get_train_dataloader()))
        ours = prepare(word_tokenizer, [row])[0]
        labels = batch["labels"][0].tolist()
        given = max(labels.count(-100), 1)  # the first token is a label without a position to predict it from
        ids = batch["input_ids"][0].tolist()
        assert (ours["prompt_ids"], ours["completion_ids"]) == (ids[:given], ids[given:])


# --- length ------------------------------------------------------------------------------------------------------


def test_long_texts_keep_their_first_tokens_aloud(word_tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_rlhf"):
        dataset = prepare(word_tokenizer, [{"text": "the sky is blue"}, {"text": "why"}], max_ptx_length=3)
    assert words(word_tokenizer, dataset) == [("the", "sky is"), ("why", "<eos>")]
    assert "texts.jsonl: 1 of 2 texts have more than max_ptx_length=3 tokens (the longest 5)" in caplog.text
    assert len(caplog.records) == 1


def test_a_prompt_that_fills_the_length_leaves_nothing_to_learn(word_tokenizer):
    rows = [{"prompt": "why", "completion": " blue"}, {"prompt": "what colour is", "completion": " blue"}]
    message = error_of(word_tokenizer, rows, max_ptx_length=3)
    assert "the prompt alone fills max_ptx_length=3 tokens (raise it above 3) in 1 row (1)" in message
    assert words(word_tokenizer, prepare(word_tokenizer, rows, 4))[1] == ("what colour is", "blue")


def test_a_text_of_one_token_leaves_nothing_to_learn(word_tokenizer):
    word_tokenizer.eos_token = None
    message = error_of(word_tokenizer, [{"text": "the sky"}, {"text": "why"}])
    assert 'column "text": no token to learn after the first or the prompt in 1 row (1)' in message
    assert "max_ptx_length=1 leaves nothing to learn" in error_of(word_tokenizer, [{"text": "why"}], max_ptx_length=1)


# --- bad rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"text": "why"}, {"text": None}, {"text": " "}], ["None in 1 row (1)", "empty text in 1 row (2)"]),
        ([{"text": [user("why")]}], ['column "text": list instead of text']),
        ([{"messages": "why"}], ['column "messages": str instead of a list of messages']),
        ([{"messages": [user("")]}], ["empty last message"]),
        ([{"prompt": "why", "completion": ""}], ['column "completion": empty text in 1 row (0)']),
        ([{"prompt": [user("why")], "completion": "red"}], ['column "completion": str instead of a list']),
        ([{"prompt": [assistant("a")], "completion": [assistant("b")]}], ["a last message from the assistant"]),
    ],
)
def test_bad_texts_are_listed_by_row(word_tokenizer, rows, parts):
    message = error_of(word_tokenizer, rows)
    for part in ("texts.jsonl: ", "rows count from 0", "Mend these rows", *parts):
        assert part in message


def test_columns_of_no_layout_are_named(word_tokenizer):
    message = error_of(word_tokenizer, [{"prompt": "why", "answer": "red"}])
    assert "texts.jsonl: columns prompt, answer; texts need messages, or prompt and completion, or text" in message


def test_messages_need_a_chat_template(word_tokenizer):
    word_tokenizer.chat_template = None
    assert "has no chat template" in error_of(word_tokenizer, [{"messages": [user("why"), assistant("red")]}])


def test_a_template_that_rewrites_the_prompt_is_refused(word_tokenizer):
    word_tokenizer.chat_template = (
        "{{ messages | length }} {% for message in messages %}{{ message.content }} {% endfor %}"
    )
    word_tokenizer.add_tokens(["1", "2"])
    message = error_of(word_tokenizer, [{"prompt": [user("why")], "completion": [assistant("red")]}])
    assert "renders the prompt otherwise once the completion follows" in message
    assert "in 1 row (0)" in message


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (lambda rows: rows.to_iterable_dataset(), "streaming=False"),
        (lambda rows: rows.select([]), "the set is empty"),
    ],
)
def test_what_is_not_one_loaded_set_is_refused(word_tokenizer, wrong, part):
    with pytest.raises(InputError, match=part):
        prepare_texts(
            wrong(datasets.Dataset.from_list([{"text": "why"}])), word_tokenizer, max_ptx_length=8, source="texts.jsonl"
        )


# --- what a row says about its rendering -------------------------------------------------------------------------


def test_a_rows_tools_and_template_arguments_are_in_its_text(word_tokenizer):
    word_tokenizer.chat_template = (
        "{% for tool in tools or [] %}{{ tool.name }} {% endfor %}{{ mood is defined and mood or '' }} "
        "{% for message in messages %}{{ message.content }} {% endfor %}"
    )
    own = {"tools": [{"name": "sea"}], "chat_template_kwargs": {"mood": "red"}}
    none = {"tools": None, "chat_template_kwargs": None}
    texts = [
        {"messages": [user("what"), assistant("sky")]},
        {"prompt": [user("what")], "completion": [assistant("sky")]},
    ]
    for row, given in zip(texts, (("sea", "red what sky"), ("sea red what", "sky")), strict=True):
        rows = datasets.Dataset.from_list([row | own, row | none])
        kwargs = {"chat_template_kwargs": {"mood": "blue"}}
        dataset = prepare_texts(rows, word_tokenizer, max_ptx_length=16, source="texts.jsonl", **kwargs)
        first, second = words(word_tokenizer, dataset)
        assert first == given
        assert " ".join(second) == "blue what sky"


def test_text_that_a_template_rendered_already_has_one_beginning(word_tokenizer):
    from tokenizers.processors import TemplateProcessing

    added = [("<user>", word_tokenizer.convert_tokens_to_ids("<user>"))]
    word_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<user> $A", special_tokens=added)
    assert words(word_tokenizer, prepare(word_tokenizer, [{"text": "<user> the sky"}])) == [("<user>", "the sky <eos>")]
    dataset = prepare(word_tokenizer, [{"prompt": "<user> the", "completion": " sky"}])
    assert words(word_tokenizer, dataset) == [("<user> the", "sky <eos>")]
