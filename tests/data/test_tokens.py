"""Conversion of a row to ids: one BOS and one end, and the row's tools and template arguments each time."""

import pytest
from tiny import make_tokenizer

from hf_rlhf.data.tokens import (
    RefusedByTemplate,
    begin_already,
    chat_text,
    options_by_row,
    row_ids,
    text_ids,
    token_ids,
    tokenize_prompts,
    with_row_options,
)
from hf_rlhf.errors import InputError

BOS, EOS, CAT, DOG = 0, 1, 2, 3
TALK = [{"role": "user", "content": "cat"}]
TOOLS = [{"type": "function", "function": {"name": "dog"}}]


def words_with(single: str | None, *, bos="<s>", eos="</s>"):
    """A tokenizer of words that puts around a text what `single` says, such as "<s> $A </s>"."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", "cat", "dog", "<unk>", "<sep>", "<cls>"]
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if single is not None:
        added = [(word, names.index(word)) for word in single.split() if word != "$A"]
        words.post_processor = processors.TemplateProcessing(single=single, special_tokens=list(dict.fromkeys(added)))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token=bos, eos_token=eos)


WHOLE = [
    (None, "cat dog", [CAT, DOG, EOS]),
    (None, "cat dog </s>", [CAT, DOG, EOS]),
    (None, "<s> cat", [BOS, CAT, EOS]),  # what the tokenizer does not add is the text's own
    ("<s> $A", "cat", [BOS, CAT, EOS]),
    ("<s> $A", "<s> cat", [BOS, CAT, EOS]),
    ("<s> $A", "<s> cat </s>", [BOS, CAT, EOS]),
    ("<s> $A", "", [BOS, EOS]),
    ("$A </s>", "cat", [CAT, EOS]),
    ("$A </s>", "cat </s>", [CAT, EOS]),
    ("<s> $A </s>", "cat", [BOS, CAT, EOS]),
    ("<s> $A </s>", "<s> cat", [BOS, CAT, EOS]),
    ("<s> $A </s>", "<s> cat </s>", [BOS, CAT, EOS]),
    ("<s> $A </s>", "<s>", [BOS, EOS]),
    ("<s> $A </s>", "", [BOS, EOS]),
    ("<s> $A </s>", "cat <s> dog </s> cat", [BOS, CAT, BOS, DOG, EOS, CAT, EOS]),  # inside, all is the text's own
    ("$A <sep> <cls>", "cat", [CAT, 5, 6]),  # as XLNet: the text is closed, though not by the end token
    ("</s> $A", "cat", [EOS, CAT, EOS]),  # as OPT, whose BOS is its end token
    ("</s> $A", "</s> cat", [EOS, CAT, EOS]),
    ("<s> <cls> $A", "<s> <cls> cat", [BOS, 6, CAT, EOS]),
]


@pytest.mark.parametrize(("single", "text", "ids"), WHOLE)
def test_a_whole_text_begins_and_ends_once(single, text, ids):
    tokenizer = words_with(single)
    assert text_ids([text, "dog dog dog"], tokenizer, continued=False)[0] == ids
    assert row_ids(text, tokenizer, continued=False) == ids


CONTINUED = [
    (None, "cat", [CAT]),
    ("<s> $A", "cat", [BOS, CAT]),
    ("<s> $A", "<s> cat", [BOS, CAT]),
    ("<s> $A </s>", "<s> cat", [BOS, CAT]),  # nothing follows an end
    ("$A </s>", "cat", [CAT]),
    ("<s> $A", "<s> cat </s>", [BOS, CAT, EOS]),  # the text's own: an earlier turn ends there
]


@pytest.mark.parametrize(("single", "text", "ids"), CONTINUED)
def test_a_prompt_begins_once_and_has_no_end_that_the_tokenizer_adds(single, text, ids):
    assert tokenize_prompts([text], words_with(single), source="rows") == [ids]


def test_without_an_end_token_none_is_added():
    assert text_ids(["cat"], words_with("<s> $A", eos=None), continued=False) == [[BOS, CAT]]


def test_texts_that_begin_already_are_counted():
    texts = ["<s> cat", "cat", "<s> " + "dog " * 100, "cat <s>"]
    assert begin_already(texts, words_with("<s> $A")) == [True, False, True, False]
    assert begin_already(texts, words_with("$A </s>")) == [False] * 4
    assert begin_already(texts, words_with(None)) == [False] * 4
    assert begin_already([], words_with("<s> $A")) == []


@pytest.fixture
def tokenizer():
    """One whose template shows what it got: tools by name, then `mood`."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{% if tools is defined and tools == [] %}no"
        " {% endif %}{{ messages[-1].content }} {{ mood is defined and mood or '' }}{% if add_generation_prompt %} ?"
        " {% endif %}"
    )
    return tokenizer


SHOWN = [
    ({}, "cat"),
    ({"tools": TOOLS}, "dog cat"),
    ({"tools": '[{"type": "function", "function": {"name": "dog"}}]'}, "dog cat"),
    ({"tools": None, "chat_template_kwargs": None}, "cat"),
    ({"tools": []}, "cat"),  # templates would write the frame of a list of tools
    ({"chat_template_kwargs": {"mood": "happy"}}, "cat happy"),
    ({"chat_template_kwargs": '{"mood": "happy"}'}, "cat happy"),
    ({"number": 3}, "cat"),
]


@pytest.mark.parametrize(("options", "shown"), SHOWN)
def test_a_rows_options_reach_the_template(tokenizer, options, shown):
    assert chat_text(TALK, tokenizer, continued=False, options=options).split() == shown.split()
    ids = row_ids(TALK, tokenizer, continued=True, options=options)
    assert tokenizer.decode(ids).split() == [*shown.split(), "?"]


def test_a_row_wins_over_the_run_key_by_key(tokenizer):
    run = {"mood": "sad"}
    for own, shown in (
        (None, "cat sad"),
        ({"mood": "happy"}, "cat happy"),
        ({"other": 1}, "cat sad"),
        ({"mood": None}, "cat sad"),
    ):
        options = {"chat_template_kwargs": own}
        assert chat_text(TALK, tokenizer, continued=False, options=options, chat_template_kwargs=run).split() == shown.split()  # fmt: skip


def test_tools_of_the_run_are_those_of_rows_without_any(tokenizer):
    run, other = {"tools": TOOLS}, [{"type": "function", "function": {"name": "mat"}}]
    for own, shown in ((None, "dog cat"), ([], "dog cat"), (other, "mat cat")):
        assert chat_text(TALK, tokenizer, continued=False, options={"tools": own}, chat_template_kwargs=run).split() == shown.split()  # fmt: skip


@pytest.mark.parametrize("options", [{"tools": "[{"}, {"chat_template_kwargs": [1]}, {"chat_template_kwargs": {"tokenize": True}}])  # fmt: skip
def test_options_that_are_none_are_refused(tokenizer, options):
    with pytest.raises(RefusedByTemplate, match="the chat template refuses it"):
        chat_text(TALK, tokenizer, continued=False, options=options)
    with pytest.raises(InputError, match="rows: the chat template refuses row 8 "):
        token_ids([TALK, TALK], tokenizer, continued=False, source="rows", options=[{}, options], first_row=7)


def test_the_columns_of_options_are_told_from_the_others():
    assert with_row_options(["prompt"], ["tools", "id", "prompt"]) == ["prompt", "tools"]
    assert options_by_row({"prompt": ["a", "b"], "tools": [1, None]}) == [{"tools": 1}, {"tools": None}]
    assert options_by_row({"prompt": ["a", "b"]}) == [{}, {}]


def test_a_template_that_writes_the_bos_itself_doubles_nothing():
    tokenizer = words_with("<s> $A </s>")
    tokenizer.chat_template = "<s> {{ messages[0].content }} </s>"
    assert row_ids(TALK, tokenizer, continued=False) == [BOS, CAT, EOS]
