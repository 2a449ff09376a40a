"""The report of a set: every row is accounted for, and what is worth knowing before training is in it."""

import json

import pytest
from tiny import make_tokenizer

from hf_rlhf.data import report as data_report
from hf_rlhf.data.files import read_rows
from hf_rlhf.data.report import DataReport, Limit, check_preferences, check_prompt_set, check_text_set, printable
from hf_rlhf.errors import InputError

LIMIT = Limit("max_length", 5, "are left out")


@pytest.fixture
def load(tmp_path):
    """Rows through a file, with `skip_bad`."""

    def load(rows, skip_bad=0):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return read_rows(str(file), skip_bad=skip_bad)

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
    dataset, report = check_preferences(load(rows, 3), make_tokenizer(), role="training", limit=LIMIT)
    assert (report.rows_read, report.rows, len(dataset)) == (8, 3, 3)
    assert [(row.place.split(":")[-1], row.problem[:18]) for row in report.bad_rows] == [
        ("2", "not valid JSON: Ex"),
        ("6", 'column "chosen": N'),
        ("7", 'column "chosen": e'),
    ]
    assert sorted(report.left_out.values()) == [1, 1]
    assert list(report.noticed.values()) == [1, 1]
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
        "training: ", "3 of 8 rows", "not used: id", "left out: 1 with chosen equal to rejected", "left out: 1 that are there already",
        "kept: 1 that contradict another", "above max_length=5: 1 of 3 rows are left out", "rows.jsonl:6", "e.g. prompt: the | chosen: cat sat",
    ):  # fmt: skip
        assert words in said


def test_one_bad_value_too_many_names_lines_and_how_many_to_allow(load):
    rows = [pair("the", " cat", " dog"), pair("the", None, " cat"), pair("the", " a", None)]
    with pytest.raises(InputError) as caught:
        check_preferences(load(rows, 1), make_tokenizer(), role="training", limit=LIMIT)
    for part in ("2 of 3 rows", "skip_bad=1", "rows.jsonl:2", "rows.jsonl:3", "set skip_bad to 2"):
        assert part in str(caught.value)


def test_nothing_left_is_an_error(load):
    with pytest.raises(InputError, match="no row is left"):
        check_prompt_set(load([{"prompt": " "}] * 2, 5), make_tokenizer(), role="training", limit=LIMIT)


def test_prompts_and_prompts_of_pairs(load):
    prompts = [
        {"prompt": "the cat", "n": 1},
        {"prompt": "the cat", "n": 2},
        {"prompt": "the cat sat on the mat", "n": 3},
    ]
    dataset, report = check_prompt_set(load(prompts), make_tokenizer(), role="training", limit=LIMIT)
    assert len(dataset) == report.rows == report.rows_read == 3
    assert list(report.noticed.values()) == [1]
    assert (report.layout, report.other_columns, report.lengths[0].above) == ("text", ["n"], 1)
    talk = [{"role": "user", "content": "hello"}]
    answers = [talk + [{"role": "assistant", "content": text}] for text in ("good", "bad", "sad")]
    pairs = [{"chosen": answers[0], "rejected": answers[n]} for n in (1, 2)]
    dataset, report = check_prompt_set(load(pairs), make_tokenizer(), role="training", limit=LIMIT)
    assert dataset["prompt"][:] == [talk]
    assert (report.layout, report.rows_read, report.rows, sum(report.left_out.values())) == ("messages", 2, 1, 1)


def test_texts(load):
    rows = [{"prompt": "the", "completion": " cat"}] * 2 + [{"prompt": "the", "completion": ""}]
    dataset, report = check_text_set(load(rows, 1), make_tokenizer(), role="training", limit=LIMIT)
    assert (len(dataset), report.rows_read, report.layout) == (2, 3, "prompt and completion, text")
    assert list(report.noticed.values()) == [1]
    assert report.lengths[0].maximum == 3


def test_of_a_large_set_a_sample_spread_evenly_is_measured(load, monkeypatch):
    monkeypatch.setattr(data_report, "MEASURED_ROWS", 4)
    rows = [{"prompt": "the " * (1 + n // 10)} for n in range(100)]
    _, report = check_prompt_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    (lengths,) = report.lengths
    assert (lengths.measured, lengths.minimum, lengths.maximum, lengths.above) == (4, 1, 8, 2)


def test_the_file_holds_what_the_report_says(load, tmp_path):
    _, report = check_prompt_set(load([{"prompt": "the"}, "7\n"], 1), make_tokenizer(), role="training", limit=LIMIT)
    whole = DataReport([report], {"rows are in both": 2, "nothing": 0})
    whole.write(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))
    (found,) = content["sets"]
    assert found["bad_rows"][0]["place"].endswith("rows.jsonl:2")
    assert found["lengths"][0]["limit"] == {"name": "max_length", "tokens": 5, "then": "are left out"}
    assert (found["rows"], found["examples"], content["shared"]["rows are in both"]) == (1, [{"prompt": "the"}], 2)
    assert "WARNING: 2 rows are in both" in str(whole)
    assert "nothing" not in str(whole)


def test_what_a_set_says_does_no_harm_to_a_terminal_and_hides_tokens():
    assert printable("a\x1b]0;evil\x07\n\u202eb", 50) == "a ]0;evil b"
    assert printable("see hf_abcdefghijABCDEFGHIJ1234 there", 50) == "see <token> there"
    assert printable("x" * 60, 10) == "x" * 9 + "…"
