"""`skip_bad_rows`: so many rows that cannot be used are skipped, each named; one more is an error with the first ones."""

import gzip
import json

import pytest

from hf_rlhf.data import json_files
from hf_rlhf.data.files import read_rows
from hf_rlhf.errors import InputError

GOOD = '{"prompt": "the sky"}'
BROKEN = {
    "torn": ('{"prompt": "the', "last line is torn"),
    "trailing garbage": (GOOD + "}", "Extra data"),
    "two objects": (GOOD + " " + GOOD, "Extra data"),
    "list": ('["the sky"]', "a list where a row was expected"),
    "null": ("null", "a NoneType where a row was expected"),
    "number": ("7", "a int where a row was expected"),
    "doubled key": ('{"prompt": "a", "prompt": "b"}', 'the key "prompt" is there twice'),
    "doubled key inside": ('{"prompt": [{"role": "user", "role": "user"}]}', 'the key "role" is there twice'),
    "number for text": ('{"prompt": 3}', 'column "prompt" holds a int, where most rows have a str'),
    "messages for text": (
        '{"prompt": [{"role": "user"}]}',
        'column "prompt" holds a list of dict, where most rows have a str',
    ),
    "half a character": ('{"prompt": "\\ud800"}', 'column "prompt"'),
    "deep": ('{"prompt": ' + "[" * 30 + "]" * 30 + "}", "nested more than 16 levels"),
}


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return str(path)


@pytest.mark.parametrize(("line", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_left_out_by_name_or_ends_the_run(tmp_path, line, problem):
    file = write(tmp_path / "rows.jsonl", GOOD, GOOD, line)
    rows = read_rows(file, skip_bad_rows=1)
    assert rows.dataset.to_list() == [json.loads(GOOD)] * 2
    ((place, found),) = rows.bad_rows.found
    assert place == f"{file}:3"
    assert problem in found
    with pytest.raises(InputError) as caught:
        read_rows(file)
    assert str(caught.value).startswith(f"{file}:3: ")
    assert problem in str(caught.value)


def test_bad_utf8_in_the_middle_is_left_out(tmp_path):
    file = write(tmp_path / "rows.jsonl", GOOD, b'{"prompt": "\xff"}', GOOD)
    rows = read_rows(file, skip_bad_rows=1)
    assert len(rows.dataset) == 2
    assert "not UTF-8" in rows.bad_rows.found[0].problem
    assert rows.place(1) == f"{file}:3"


def test_one_more_than_allowed_is_an_error_that_names_the_first_ones(tmp_path):
    file = write(tmp_path / "rows.jsonl", GOOD, "7", GOOD, "{", "null", GOOD)
    assert len(read_rows(file, skip_bad_rows=3).dataset) == 3
    with pytest.raises(InputError) as caught:
        read_rows(file, skip_bad_rows=2)
    for part in ("3 rows", "skip_bad_rows=2", f"{file}:2: a int", f"{file}:4: not valid JSON", f"{file}:5: a NoneType"):
        assert part in str(caught.value)


@pytest.mark.parametrize("first", [True, False])
def test_the_kind_that_most_rows_have_is_the_right_one(tmp_path, first):
    lines = ['{"prompt": 3}', GOOD, GOOD] if first else [GOOD, GOOD, '{"prompt": 3}']
    rows = read_rows(write(tmp_path / "rows.jsonl", *lines), skip_bad_rows=1)
    assert rows.dataset["prompt"][:] == ["the sky"] * 2
    assert rows.bad_rows.found[0].place.endswith(":1" if first else ":3")


def test_elements_of_an_array_and_compressed_files(tmp_path):
    (tmp_path / "rows.json").write_text(f"[{GOOD}, 5, {GOOD}]")
    rows = read_rows(str(tmp_path / "rows.json"), skip_bad_rows=1)
    assert len(rows.dataset) == 2
    assert rows.bad_rows.found[0].place == f"{tmp_path / 'rows.json'}:1 (element 2)"
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(f"{GOOD}\n5\n".encode()))
    assert (
        read_rows(str(tmp_path / "rows.jsonl.gz"), skip_bad_rows=1).bad_rows.found[0].place.endswith("rows.jsonl.gz:2")
    )


def test_records_of_a_csv_file(tmp_path):
    file = write(tmp_path / "rows.csv", "prompt,id", '"two\nlines",1', "a,b,c", "x", "last,2")
    rows = read_rows(file, skip_bad_rows=2)
    assert rows.dataset["prompt"][:] == ["two\nlines", "last"]
    assert [row.place for row in rows.bad_rows.found] == [f"{file}: record {n} (the head is 1)" for n in (3, 4)]
    with pytest.raises(InputError, match="Expected 2 columns, got 3"):
        read_rows(file)
    file = write(tmp_path / "rows.csv", "prompt,id", b"\xff,1")
    with pytest.raises(InputError, match=r"rows.csv:2: not UTF-8"):
        read_rows(file, skip_bad_rows=5)


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["prompt", "the", '"the cat', "b", "c"], 3),
        (["prompt,id", '"two', 'lines",1', '"b,2', "c,3", "d,4"], 4),
        (['"prompt', "a"], 1),
        (["prompt", '5" wide', '"b""', "c"], 3),
        (["prompt", 'a"b', 'c "d" e', '"f""g"', '""', '"h"i"'], None),
    ],
)
def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path, lines, line):
    file = write(tmp_path / "rows.csv", *lines)
    if line is None:
        assert read_rows(file).dataset["prompt"][:] == ['a"b', 'c "d" e', 'f"g', "", 'hi"']
        return
    with pytest.raises(InputError) as caught:
        read_rows(file, skip_bad_rows=1)
    assert str(caught.value).startswith(f"{file}:{line}: a quote opens here and is never closed")


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_last_line_that_is_whole_is_not_called_torn(tmp_path, end):
    for line, problem in (('{"a": 1, "a": 2}', "is there twice"), (GOOD + "}", "Extra data"), ('{"a" 2}', "delimiter")):
        with pytest.raises(InputError, match=problem) as caught:
            read_rows(write(tmp_path / "rows.jsonl", GOOD, line + end))
        assert "torn" not in str(caught.value)


def test_elements_of_an_array_have_lines_and_a_doubled_key_is_a_bad_row(tmp_path):
    file = write(tmp_path / "rows.json", "[", f"  {GOOD},", "", f'  {{"prompt": "a", "prompt": "b"}}, {GOOD}', "]")
    rows = read_rows(file, skip_bad_rows=1)
    assert rows.bad_rows.found == [(f"{file}:4 (element 2)", 'the key "prompt" is there twice')]
    assert [rows.place(row) for row in range(2)] == [f"{file}:2 (element 1)", f"{file}:4 (element 3)"]


@pytest.mark.parametrize("content", ["[1 2]", "[1,]", "[", "[1", "[1] 2", "[[1,]]", "[" * 100_000])
def test_a_broken_array_is_an_error_with_its_line(tmp_path, content):
    with pytest.raises(InputError, match=r"rows.json:2: not valid JSON"):
        read_rows(write(tmp_path / "rows.json", f"\n{content}"), skip_bad_rows=5)


def test_a_json_file_written_over_several_lines_hears_what_such_a_file_holds(tmp_path):
    with pytest.raises(InputError, match=r":1: not valid JSON.*A .json file holds an array of objects, or one"):
        read_rows(write(tmp_path / "rows.json", "{", f'"prompt": {GOOD}', "}"))


@pytest.mark.parametrize("first", ["[]", "null", '["a"]', '[{"role": null}]'])
def test_a_column_has_the_kind_of_most_rows_whatever_the_first_is(tmp_path, first):
    talk = '{"prompt": [{"role": "user"}]}'
    file = write(
        tmp_path / "rows.jsonl", f'{{"prompt": {first}}}', talk, '{"prompt": ["b"]}', talk, talk, '{"prompt": []}'
    )
    rows = read_rows(file, skip_bad_rows=2)
    assert [row.place.rpartition(":")[2] for row in rows.bad_rows.found] == ["1", "3"][first != '["a"]' :]
    assert 'column "prompt" holds a list of str, where most rows have a list of dict' in rows.bad_rows.found[-1].problem


@pytest.mark.parametrize("usual", ["0", "false", '""'])
def test_values_that_are_zero_or_empty_have_a_kind(tmp_path, usual):
    file = write(tmp_path / "rows.jsonl", '{"a": ["x"]}', *[f'{{"a": {usual}}}'] * 3)
    assert [row.place for row in read_rows(file, skip_bad_rows=1).bad_rows.found] == [f"{file}:1"]


def test_messages_about_rows_repeat_no_token_and_no_escape_sequence(tmp_path):
    token = "hf_abcdefghijABCDEFGHIJ1234"
    lines = ['{"n": 1}', '{"n": 2}', f'{{"n": "{token}"}}', '{"\\u001b[31m": 1, "\\u001b[31m": 2}']
    for skip_bad_rows in (0, 1, 2):
        try:
            said = str(read_rows(write(tmp_path / "rows.jsonl", *lines), skip_bad_rows=skip_bad_rows).bad_rows.found)
        except InputError as error:
            said = str(error)
        assert token not in said
        assert "\x1b" not in said
        assert "\\x1b" not in said


def test_columns_that_are_there_twice_are_told(tmp_path):
    with pytest.raises(InputError, match='the column "prompt" is there twice'):
        read_rows(write(tmp_path / "rows.csv", "prompt,prompt", "a,b"))


def test_an_endless_line_is_not_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 1000)
    long = '{"prompt": "' + "x" * 5000 + '"}'
    file = write(tmp_path / "rows.jsonl", GOOD, long, GOOD, long)
    rows = read_rows(file, skip_bad_rows=2)
    assert len(rows.dataset) == 2
    assert [row.place for row in rows.bad_rows.found] == [f"{file}:2", f"{file}:4"]
    assert "a line of more than 1000 bytes" in rows.bad_rows.found[0].problem
    assert rows.place(1) == f"{file}:3"


def test_a_new_key_in_every_row_is_no_table(tmp_path):
    file = write(tmp_path / "rows.jsonl", *(f'{{"key{n}": 1}}' for n in range(1001)))
    with pytest.raises(InputError, match="1001 different keys"):
        read_rows(file)


def test_a_negative_number_is_refused(tmp_path):
    with pytest.raises(InputError, match="skip_bad_rows=-1"):
        read_rows(write(tmp_path / "rows.jsonl", GOOD), skip_bad_rows=-1)
