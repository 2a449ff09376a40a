"""The report of a set: every row is accounted for, and what is worth knowing before training is in it."""

import json
from dataclasses import replace

import pytest
from tiny import make_tokenizer

from hf_rlhf.credentials import printable
from hf_rlhf.data import report as data_report
from hf_rlhf.data.files import read_rows
from hf_rlhf.data.preferences import prepare_preference_set
from hf_rlhf.data.prompts import prepare_prompt_set
from hf_rlhf.data.report import DataReport, Limit
from hf_rlhf.data.texts import prepare_ptx_set, prepare_text_set
from hf_rlhf.errors import InputError

LIMIT = Limit("max_length", 5, "are skipped")


@pytest.fixture
def load(tmp_path):
    """Rows through a file, with `skip_bad_rows`."""

    def load(rows, skip_bad_rows=0):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return read_rows(str(file), skip_bad_rows=skip_bad_rows)

    return load


def pair(prompt, chosen, rejected, **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def test_pairs(load):
    rows = [
        pair("the", " cat sat", " dog", id=1),
        "{\n",
        pair("the", " cat sat", " dog"),  # a duplicate
        pair("the", " dog", " cat sat"),  # a contradiction
        pair("the", " cat", " cat"),
        pair("the", None, " cat"),
        pair("the", " ", " cat"),
        pair("the cat sat on the mat", " good", " bad bad"),
    ]
    dataset, report, *_ = prepare_preference_set(load(rows, 3), make_tokenizer(), role="training", limit=LIMIT)
    assert (report.rows_read, report.rows, len(dataset)) == (8, 3, 3)
    assert [(row.place.split(":")[-1], row.problem[:18]) for row in report.bad_rows] == [
        ("2", "not valid JSON: Ex"),
        ("6", 'column "chosen": N'),
        ("7", 'column "chosen": e'),
    ]
    assert sorted(report.left_out.values()) == [1, 1]
    assert list(report.noticed.values()) == [1, 1, 0]
    assert report.columns == ["prompt", "chosen", "rejected"]
    assert report.other_columns == ["id"]
    chosen, rejected = report.lengths
    assert (chosen.part, chosen.minimum, chosen.maximum, chosen.above) == (
        "prompt and chosen",
        3,
        8,
        1,
    )  # with end token
    assert rejected.above == 1
    said = str(report)
    for words in (
        "training: ", "3 of 8 rows", "not used: id", "skipped: 1 with chosen equal to rejected", "skipped: 1 that are there already",
        "kept: 1 that contradict another", "above max_length=5: 1 of 3 rows are skipped", "rows.jsonl:6", "e.g. prompt: the | chosen: cat sat",
    ):  # fmt: skip
        assert words in said


def test_one_bad_value_too_many_names_lines_and_how_many_to_allow(load):
    rows = [pair("the", " cat", " dog"), pair("the", None, " cat"), pair("the", " a", None)]
    with pytest.raises(InputError) as caught:
        prepare_preference_set(load(rows, 1), make_tokenizer(), role="training", limit=LIMIT)
    for part in ("2 of 3 rows", "skip_bad_rows=1", "rows.jsonl:2", "rows.jsonl:3", "set skip_bad_rows to 2"):
        assert part in str(caught.value)


def test_nothing_left_is_an_error(load):
    with pytest.raises(InputError, match="no row is left"):
        prepare_prompt_set(load([{"prompt": " "}] * 2, 5), make_tokenizer(), role="training", limit=LIMIT)


def test_prompts_and_prompts_of_pairs(load):
    prompts = [
        {"prompt": "the cat", "n": 1},
        {"prompt": "the cat", "n": 2},
        {"prompt": "the cat sat on the mat", "n": 3},
    ]
    dataset, report, *_ = prepare_prompt_set(
        load(prompts), make_tokenizer(), role="training", limit=LIMIT, overlong="truncate_left"
    )
    assert len(dataset) == report.rows == report.rows_read == 3
    assert list(report.noticed.values()) == [1, 0, 3]
    assert (report.layout, report.other_columns, report.lengths[0].above) == ("text", ["n"], 1)
    talk = [{"role": "user", "content": "hello"}]
    answers = [talk + [{"role": "assistant", "content": text}] for text in ("good", "bad", "sad")]
    pairs = [{"chosen": answers[0], "rejected": answers[n]} for n in (1, 2)]
    dataset, report, *_ = prepare_prompt_set(
        load(pairs), make_tokenizer(), role="training", limit=LIMIT, overlong="truncate_left"
    )
    assert dataset["prompt"][:] == [talk]
    assert (report.layout, report.rows_read, report.rows, sum(report.left_out.values())) == (
        "messages before the answers; the set holds preference pairs (conversational, implicit prompt)", 2, 1, 1
    )  # fmt: skip


def test_texts(load):
    rows = [{"prompt": "the", "completion": " cat"}] * 2 + [{"prompt": "the", "completion": ""}]
    dataset, report, *_ = prepare_text_set(load(rows, 1), make_tokenizer(), role="training", limit=LIMIT)
    assert (len(dataset), report.rows_read, report.layout) == (2, 3, "prompt and completion, text")
    assert list(report.noticed.values()) == [1, 0, 0]
    assert report.lengths[0].maximum == 3


def test_of_a_large_set_a_sample_spread_evenly_is_measured(load, monkeypatch):
    monkeypatch.setattr(data_report, "MEASURED_ROWS", 4)
    rows = [{"text": "the " * (n // 10)} for n in range(10, 110)]
    _, report, *_ = prepare_text_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    (lengths,) = report.lengths
    assert (lengths.measured, lengths.minimum, lengths.maximum, lengths.above) == (4, 2, 9, 2)


def talk(text, answer="good"):
    return [{"role": "user", "content": text}], [{"role": "assistant", "content": answer}]


def talks(kind, count, refused):
    """Rows of messages; in those of the numbers `refused`, the user says "sad"."""
    for number in range(count):
        prompt, answer = talk("sad" if number in refused else f"the cat {number}")
        yield {
            "pairs": pair(prompt, answer, talk("", "bad")[1]),
            "answers": pair("sad" if number in refused else "the", answer, talk("", "bad")[1]),
            "prompts": {"prompt": prompt},
            "prompts of pairs": {"chosen": prompt + answer, "rejected": prompt + talk("", f"bad {number}")[1]},
            "messages": {"messages": prompt + answer},
            "texts": {"prompt": prompt, "completion": answer},
        }[kind]


REFUSES = (
    "{% for m in messages %}{% if 'sad' in m.content %}{{ raise_exception('no sadness') }}{% endif %}{{ m.content }}"
    " {% endfor %}"
)
KINDS = {
    "pairs": prepare_preference_set,
    "answers": prepare_preference_set,
    "prompts": prepare_prompt_set,
    "prompts of pairs": prepare_prompt_set,
    "messages": prepare_text_set,
    "texts": prepare_text_set,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_the_chat_template_refuses_is_named_and_may_be_left_out(load, monkeypatch, kind):
    monkeypatch.setattr(data_report, "MEASURED_ROWS", 2)  # the refused ones are not among them
    tokenizer, limit = make_tokenizer(), Limit("max_length", 50, "are skipped")
    tokenizer.chat_template = REFUSES
    rows = ["{\n", *talks(kind, 9, {5})]
    dataset, report, place, *_ = KINDS[kind](load(rows, 2), tokenizer, role="training", limit=limit)
    assert [row.place.rpartition(":")[2] for row in report.bad_rows] == ["1", "7"]
    assert "the chat template refuses it (no sadness)" in report.bad_rows[1].problem
    assert report.rows_read == 10 == report.rows + 2 + sum(report.left_out.values())
    assert len(dataset) == report.rows
    assert place(len(dataset) - 1).endswith(":10" if kind != "answers" else ":2")
    with pytest.raises(
        InputError, match=r"(?s)2 of 10 rows.*refuses it \(no sadness\) in 1 row \(.*rows.jsonl:7\)"
    ) as caught:
        KINDS[kind](load(rows, 1), tokenizer, role="training", limit=limit)
    assert "set skip_bad_rows to 2" in str(caught.value)


@pytest.mark.parametrize(("column", "value"), [("tools", "[{"), ("chat_template_kwargs", "[1]")])
@pytest.mark.parametrize("kind", ["pairs", "texts"])
def test_columns_that_trl_hands_to_the_template_are_tried_too(load, kind, column, value):
    rows = list(talks(kind, 4, ()))
    rows[0][column] = {"tools": "[]", "chat_template_kwargs": '{"a": 1}'}[column]
    rows[2][column] = value
    for row in rows[1], rows[3]:
        row[column] = rows[0][column]
    with pytest.raises(InputError, match=r"chat template refuses it .* in 1 row .*rows.jsonl:3"):
        KINDS[kind](load(rows), make_tokenizer(), role="training", limit=Limit("max_length", 50, ""))


def test_a_prompt_without_tokens_is_a_bad_row(load, word_tokenizer):
    word_tokenizer.chat_template = "{{ messages[0].content if messages[0].content != 'sky' }}"
    rows = [{"prompt": talk(text)[0]} for text in ("the", "sky", "sea")]
    dataset, report, *_ = prepare_prompt_set(load(rows, 1), word_tokenizer, role="training", limit=LIMIT)
    assert report.bad_rows[0].place.endswith("rows.jsonl:2")
    assert "no tokens" in report.bad_rows[0].problem
    assert len(dataset) == 2


def test_pairs_that_are_all_too_long_are_an_error_also_beyond_the_measured_ones(load, monkeypatch):
    monkeypatch.setattr(data_report, "MEASURED_ROWS", 2)
    long = [pair("the cat sat on the mat", " good", f" bad {n}") for n in range(7)]
    prepare_preference_set(load([*long, pair("the", " cat", " dog")]), make_tokenizer(), role="training", limit=LIMIT)
    with pytest.raises(InputError, match="all 7 pairs are longer than max_length=5 tokens"):
        prepare_preference_set(load(long), make_tokenizer(), role="training", limit=LIMIT)


def test_texts_with_nothing_to_learn_are_bad_rows_where_all_have_to_teach(load):
    rows = [{"prompt": "the", "completion": " cat"}, {"prompt": "the cat sat on the mat", "completion": " good"}]
    report = prepare_text_set(load(rows), make_tokenizer(), role="texts", limit=LIMIT).report
    assert "kept: 1 of 2 whose prompt alone fills max_length" in str(report)
    with pytest.raises(InputError, match=r"the prompt alone fills max_ptx_length=5 .*rows.jsonl:2"):
        prepare_ptx_set(load(rows), make_tokenizer(), role="texts", max_ptx_length=5)


def test_the_prompts_of_pairs_are_shown_and_every_row_is_accounted_for(load):
    (the, good), (cat, _) = talk("the"), talk("cat")
    rows = [
        {"chosen": the + good, "rejected": the + talk("", "bad")[1]},
        {"chosen": cat + good, "rejected": cat + good},
        {"chosen": the + good, "rejected": the + talk("", "sad")[1]},
        {"chosen": the, "rejected": the + good},
    ]
    _, report, *_ = prepare_prompt_set(
        load(rows), make_tokenizer(), role="training", limit=LIMIT, overlong="truncate_left"
    )
    assert report.examples == [{"prompt": "user: the"}]
    assert report.left_out == {
        "malformed: does not end in an assistant turn": 1,
        "with chosen equal to rejected": 1,
        "with a prompt that is there already": 1,
    }


def test_broken_lines_count_among_the_rows(load):
    with pytest.raises(InputError, match="4 of 5 rows"):
        prepare_prompt_set(
            load(["{\n"] * 3 + [{"prompt": "a"}, {"prompt": None}], 3), make_tokenizer(), role="training", limit=LIMIT
        )


def test_places_of_rows_without_lines_stay_those_of_the_file(load):
    rows = load([{"prompt": text} for text in "abcd"])
    rows = replace(rows, places=None).without({"prompt": [None] * 4}).select([1, 3])
    assert [rows.place(row) for row in range(2)] == ["row 1 (from 0)", "row 3 (from 0)"]


def test_names_of_columns_and_files_do_no_harm_either(load, tmp_path):
    evil = "\x1b]0;evil\x07 hf_abcdefghijABCDEFGHIJ1234"
    rows = replace(load([{"prompt": "the", evil: 1}]), source="caf\udce9.jsonl")
    _, report, *_ = prepare_prompt_set(rows, make_tokenizer(), role="training", limit=LIMIT)
    DataReport([report]).write(tmp_path)
    written = (tmp_path / "data_report.json").read_text(encoding="utf-8")
    for text in (str(report), written):
        assert "hf_abc" not in text
        assert "\x1b" not in text
        assert "<token>" in text
    assert "caf\\udce9.jsonl" in str(report)


def test_the_file_holds_what_the_report_says(load, tmp_path):
    _, report, *_ = prepare_prompt_set(
        load([{"prompt": "the"}, "7\n"], 1), make_tokenizer(), role="training", limit=LIMIT
    )
    whole = DataReport([report], {"rows are in both": 2, "nothing": 0})
    whole.write(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))
    (found,) = content["sets"]
    assert found["bad_rows"][0]["place"].endswith("rows.jsonl:2")
    assert found["lengths"][0]["limit"] == {"name": "max_length", "tokens": 5, "then": "are skipped"}
    assert (found["rows"], found["examples"], content["shared"]["rows are in both"]) == (1, [{"prompt": "the"}], 2)
    assert "WARNING: 2 rows are in both" in str(whole)
    assert "nothing" not in str(whole)


def test_what_a_set_says_does_no_harm_to_a_terminal_and_hides_tokens():
    assert printable("a\x1b]0;evil\x07\n\u202eb", 50) == "a ]0;evil b"
    assert printable("see hf_abcdefghijABCDEFGHIJ1234 there", 50) == "see <token> there"
    assert printable("x" * 60, 10) == "x" * 9 + "…"
    assert "hf_" not in printable("the" + " " * 385 + "hf_abcdefghijABCDEFGHIJ1234", 100)


WITH_TOOLS = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{% for m in messages %}{{ m.content }}"
    " {% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "the cat sat"}}]  # three tokens
LENGTHS = {"pairs": 6, "answers": 6, "prompts": 6, "prompts of pairs": 6, "messages": 7, "texts": 7}


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
@pytest.mark.parametrize("kind", KINDS)
def test_tools_count_in_the_lengths_and_are_not_called_unused(load, kind, tools):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = WITH_TOOLS
    plain = {"pairs": 4, "answers": 2, "prompts": 3, "prompts of pairs": 3, "messages": 4, "texts": 4}[kind]
    for own, more in (({}, 0), ({"tools": tools}, 3)):
        rows = [row | own | {"id": 7} for row in talks(kind, 4, ())]
        limit = Limit("max_length", plain + 1, "")
        settings = {"overlong": "filter"} if KINDS[kind] is prepare_prompt_set and not more else {}
        if more and KINDS[kind] is not prepare_text_set:
            with pytest.raises(InputError, match=f"longer than .*max(_prompt)?_length={plain + 1}"):
                KINDS[kind](load(rows), tokenizer, role="training", limit=limit)
            limit = Limit("max_length", None, "")
        _, report, *_ = KINDS[kind](load(rows), tokenizer, role="training", limit=limit, **settings)
        assert report.lengths[0].maximum == plain + more
        assert report.row_options == list(own)
        assert report.other_columns == ["id"]
        assert ("for the chat template: tools" in str(report)) == bool(own)
        assert ("passed to the rewards: id" in str(report)) == (KINDS[kind] is prepare_prompt_set)


def test_tools_beside_text_are_not_used(load):
    rows = [{"prompt": "the", "completion": f" cat {n}", "tools": "[]"} for n in range(2)]
    _, report, *_ = prepare_text_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    assert (report.row_options, report.other_columns) == ([], ["tools"])


def test_rows_that_differ_in_their_tools_are_not_there_already(load):
    rows = [{"prompt": talk("the cat")[0], "tools": json.dumps(tools)} for tools in (TOOLS, [], TOOLS)]
    _, report, *_ = prepare_prompt_set(load(rows), make_tokenizer(), role="training", limit=Limit("max_length", 50, ""))
    assert report.noticed["with a prompt that is there already"] == 1


BEGIN = {
    prepare_prompt_set: [{"prompt": "<|im_start|> the cat"}, {"prompt": "the cat sat"}],
    prepare_text_set: [{"text": "<|im_start|> the cat"}, {"text": "the cat"}],
    prepare_preference_set: [pair("<|im_start|> the", " cat", " dog"), pair("the", " cat", " mat")],
}


@pytest.mark.parametrize("check", BEGIN)
def test_rows_that_begin_with_the_bos_are_counted_and_measured_with_one(load, check):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    added = [("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=added)
    _, report, *_ = check(load(BEGIN[check]), tokenizer, role="training", limit=LIMIT)
    assert "kept: 1 that begin with the BOS already; it is not added again" in str(report)
    longest = {prepare_prompt_set: 4, prepare_text_set: 4, prepare_preference_set: 4}[check]
    assert report.lengths[0].maximum == longest


def test_a_prompt_that_a_reward_models_template_refuses_is_a_bad_row(load):
    strict = make_tokenizer()
    strict.chat_template = REFUSES
    settings = {"role": "training", "limit": Limit("max_length", 50, ""), "reward_tokenizers": {"good": make_tokenizer(), "helpful": strict}}  # fmt: skip
    rows = list(talks("prompts", 9, {5}))
    with pytest.raises(
        InputError, match=r"reward model 'helpful': .*refuses it \(no sadness\) in 1 row .*rows.jsonl:6"
    ):
        prepare_prompt_set(load(rows), make_tokenizer(), **settings)
    dataset, report, *_ = prepare_prompt_set(load(rows, 1), make_tokenizer(), **settings)
    assert (len(dataset), len(report.bad_rows)) == (8, 1)
    strict.chat_template = None
    with pytest.raises(InputError, match=r"for the reward model 'helpful': .* has no chat template"):
        prepare_prompt_set(load(rows), make_tokenizer(), **settings)


@pytest.mark.parametrize("template", [True, False])
def test_plain_prompts_of_a_chat_model_are_pointed_out(load, template):
    rows = load([{"prompt": "hello you"}, {"prompt": "the cat"}])
    tokenizer = make_tokenizer(chat_template=template)
    report = prepare_prompt_set(
        rows, tokenizer, role="training", limit=Limit("max_prompt_length", 9, "end the run")
    ).report
    assert ("kept: 2 of plain text, which the policy continues" in str(report)) == template
