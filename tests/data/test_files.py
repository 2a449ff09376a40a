import gzip
import json
import subprocess
import sys
from dataclasses import replace

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from hf_rlhf.data import json_files, load_rows
from hf_rlhf.data.files import read_rows
from hf_rlhf.data.prompts import prepare_prompt_set
from hf_rlhf.data.report import Limit
from hf_rlhf.errors import InputError

ROWS = [{"prompt": "the sky", "n": 1}, {"prompt": "the sea é", "n": 2}]


def lines(rows, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def error_of(name, **options):
    with pytest.raises(InputError) as caught:
        load_rows(str(name), **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        lines(ROWS),
        lines(ROWS).rstrip(b"\n"),
        lines(ROWS, end="\r\n"),
        b"\xef\xbb\xbf" + lines(ROWS),
        lines(ROWS, end="\n\n  \n"),
    ],
    ids=["plain", "no end of line", "CRLF", "BOM", "blank lines"],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json"])
def test_json_lines_load_in_every_dress(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert load_rows(str(path)).to_list() == ROWS


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_json_array(tmp_path, name):
    content = json.dumps(ROWS, indent=1).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert load_rows(str(tmp_path / name)).to_list() == ROWS


def test_csv_and_parquet(tmp_path):
    expected = datasets.Dataset.from_list(ROWS)
    expected.to_csv(tmp_path / "rows.csv")
    expected.to_parquet(tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.csv")).to_list() == ROWS
    assert load_rows(str(tmp_path / "rows.parquet")).to_list() == ROWS


def test_csv_keeps_newlines_and_words_that_look_like_missing_values(tmp_path):
    (tmp_path / "rows.csv").write_text('prompt,n\n"two\nlines",1\nNone,2\nNA,3\n')
    assert load_rows(str(tmp_path / "rows.csv"))["prompt"][:] == ["two\nlines", "None", "NA"]


def test_csv_rows_may_be_long(tmp_path):
    text = "word\n" * 600_000
    (tmp_path / "rows.csv").write_text(f'prompt\nshort\n"{text}"\n')
    assert load_rows(str(tmp_path / "rows.csv"))["prompt"][:] == ["short", text]


def test_keys_may_differ_between_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(lines([{"a": 1}, {"b": "x"}]))
    assert load_rows(str(tmp_path / "rows.jsonl")).to_list() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


def test_rows_have_all_columns_whatever_was_read_before(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    rows = read_rows(str(tmp_path / "rows.jsonl"))
    assert rows.by_row() == rows.read(["n"]).by_row() == ROWS
    assert rows.select([1]).by_row() == ROWS[1:]
    assert list(rows.read(["n"]).columns) == ["n"]


def test_saved_folders(tmp_path):
    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "splits")
    assert load_rows(str(tmp_path / "one")).to_list() == ROWS
    assert load_rows(str(tmp_path / "splits"), split="test").to_list() == ROWS[:1]
    message = error_of(tmp_path / "splits", split="dev")
    assert 'no split "dev"' in message
    assert "train, test" in message
    assert "saved without splits" in error_of(tmp_path / "one", split="test")


def test_a_damaged_saved_folder_is_named(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{")
    message = error_of(tmp_path / "one")
    assert str(tmp_path / "one") in message
    assert "Save it again" in message


def test_folder_of_split_files(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[:1])))
    assert len(load_rows(str(tmp_path))) == 2
    assert len(load_rows(str(tmp_path), split="test")) == 1
    message = error_of(tmp_path, split="dev")
    assert "dev.jsonl.gz" in message
    assert "Found: test.jsonl.gz, train.jsonl" in message
    (tmp_path / "train.csv").write_text("a\n1\n")
    assert "several files" in error_of(tmp_path)
    assert "slices" in error_of(tmp_path, split="train[:1]")


def test_streaming_gives_the_same_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    streamed = load_rows(str(tmp_path / "rows.jsonl"), streaming=True)
    assert isinstance(streamed, datasets.IterableDataset)
    assert list(streamed) == ROWS


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"a": 1}\n{"a": \n{"a": 3}\n', [":2: not valid JSON", "one complete JSON object per line"]),
        (b'{"a": 1}\n\n{"a": 2}\n{"a": "cut o', [":4: the last line is torn", "Remove that line"]),
        (b'{"a": "\xc3', [":1: the last line is torn"]),
        (b'{"a": 1}\n{"a": "\xff"}\n', [":2: not UTF-8", "byte 7", "Save the file as UTF-8"]),
        (b'{"a": 1}\n[1, 2]\n', [":2: a list where a row was expected", '{"column": value']),
        (
            b'{"a": 1}\n{"a": "x"}\n',
            [':2: column "a" holds a str', "most rows have a int", "one kind of value per column"],
        ),
        (b'{"a": "x"}\n{"a": "\\ud800"}\n', [':2: column "a"']),
        (b'{"a": 1}\n' + b"[" * 100_000 + b"\n", [":2: not valid JSON"]),
        (b'{"a": 1' + b"0" * 30 + b"}\n", [':1: column "a"']),
        (b"\n\n", ["the set is empty", "0 rows"]),
        (b"", ["the set is empty"]),
    ],
    ids=[
        "broken",
        "torn",
        "torn-in-a-character",
        "utf-8",
        "list",
        "kinds",
        "surrogate",
        "deep",
        "huge",
        "blank",
        "empty",
    ],
)
def test_a_bad_line_is_named(tmp_path, content, parts):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    message = error_of(path)
    assert message.startswith(str(path))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("rows.json", b'[\n{"a": 1},\n{"a" 2}\n]', [":3: not valid JSON"]),
        ("rows.json", b'[{"a": 1}, 5]', ["element 2", "a int where a row"]),
        ("rows.json", b'[\n"\xff"]', [":2: not UTF-8"]),
        ("rows.jsonl.gz", b"no gzip", ["cannot be read", "again"]),
        ("rows.jsonl.gz", gzip.compress(lines(ROWS * 50), mtime=0)[:-20], ["cannot be read"]),
        ("rows.parquet", b"no parquet", ["not a valid parquet file"]),
        ("rows.csv", b"a,b\n1,2\n1,2,3\n", [": record 3", "not a valid csv record", "Expected 2 columns, got 3"]),
        ("rows.csv", b"", ["not a valid csv file"]),
        ("rows.txt", b"text", ["unknown kind of file", ".jsonl"]),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content)
    message = error_of(tmp_path / name)
    assert all(part in message for part in [name, *parts]), message


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_only_an_array_is_read_as_a_whole_and_up_to_a_limit(tmp_path, monkeypatch, name):
    monkeypatch.setattr(json_files, "MAX_ARRAY_BYTES", 100)
    dress = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(dress(b" \n" + lines(ROWS * 50)))
    assert len(load_rows(str(tmp_path / name))) == 100
    (tmp_path / name).write_bytes(dress(b" " * 70_000 + json.dumps(ROWS * 50).encode()))
    assert "an array of more than 100 bytes" in error_of(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["~nosuchuser/rows.jsonl", "x" * 5000, "x" * 5000 + ".jsonl", "a\0b.jsonl", "someone\0/x"]
)
def test_a_name_that_no_file_can_have_is_told(name):
    assert len(error_of(name)) < 1000
    assert len(error_of(name, streaming=True)) < 1000


def test_columns_that_are_not_used_are_not_decoded(tmp_path):
    images = datasets.Features({"bytes": datasets.Value("binary"), "path": datasets.Value("string")})
    rows = [{"prompt": "the", "picture": {"bytes": b"junk", "path": None}}]
    features = datasets.Features({"prompt": datasets.Value("string"), "picture": images})
    made = datasets.Dataset.from_list(rows, features=features).cast_column("picture", datasets.Image())
    made.save_to_disk(tmp_path / "saved")
    limit = Limit("max_prompt_length", 5, "end the run")
    assert prepare_prompt_set(
        read_rows(str(tmp_path / "saved")), make_tokenizer(), role="training", limit=limit
    ).report.rows
    junk = replace(
        read_rows(str(tmp_path / "saved")), dataset=made.remove_columns("prompt").rename_column("picture", "prompt")
    )
    with pytest.raises(InputError, match='column "prompt": dict instead of text'):
        prepare_prompt_set(junk, make_tokenizer(), role="training", limit=limit)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 200), junk=st.binary(max_size=6), cut=st.integers(0, 200))
def test_damage_never_gives_another_error(tmp_path, position, junk, cut):
    content = lines(ROWS * 2)
    damaged = (content[:position] + junk + content[position + len(junk) :])[: len(content) - cut % len(content)]
    (tmp_path / "rows.jsonl").write_bytes(damaged)
    try:
        rows = len(load_rows(str(tmp_path / "rows.jsonl")))
    except InputError as error:
        rows = str(error).count("rows.jsonl")
    assert rows > 0


def test_a_missing_file_suggests_a_neighbour(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(lines(ROWS))
    message = error_of(tmp_path / "trian.jsonl")
    assert "no such file" in message
    assert f'did you mean "{tmp_path / "train.jsonl"}"?' in message
    assert "does not exist either" in error_of(tmp_path / "nowhere" / "x.jsonl")


def test_an_unknown_hub_set_says_what_was_tried(monkeypatch):
    def not_found(name, config, *, split, streaming):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist\ndetails")

    monkeypatch.setattr(datasets, "load_dataset", not_found)
    message = error_of("someone/pairs", split="dev", config_name="small")
    for part in (
        "Tried: file or folder",
        "Hub dataset",
        "config small",
        "split dev",
        "DatasetNotFoundError",
        "hf auth",
    ):
        assert part in message
    assert "details" not in message


def test_a_hub_set_is_passed_through(monkeypatch):
    asked = {}

    def load(name, config, *, split, streaming):
        asked.update(name=name, config=config, split=split, streaming=streaming)
        return datasets.Dataset.from_list(ROWS if split == "train" else [])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_rows("someone/pairs").to_list() == ROWS
    assert asked == {"name": "someone/pairs", "config": None, "split": "train", "streaming": False}
    assert "the set is empty" in error_of("someone/pairs", split="test")


def test_importing_the_package_is_cheap():
    code = "import sys, hf_rlhf.data; print({'torch', 'datasets', 'transformers', 'trl'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
