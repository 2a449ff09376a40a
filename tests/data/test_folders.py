"""Folders of shards: what `datasets.load_dataset(folder)` reads, without the network, and errors with file and line."""

import json
import socket
import zipfile

import datasets
import pytest

from hf_rlhf.data import load_rows
from hf_rlhf.data.files import read_rows
from hf_rlhf.errors import InputError

ROWS = [{"prompt": f"the {n}", "n": n} for n in range(6)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path_factory):
    def refuse(*args, **kwargs):
        raise AssertionError(f"asked the network for {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path, rows):
    """The rows as what the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        datasets.Dataset.from_list(rows).to_csv(path)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rows.jsonl", lines)
    elif path.suffix == ".txt":
        path.write_text("".join(row["prompt"] + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)


def error_of(folder, **options):
    with pytest.raises(InputError) as caught:
        load_rows(str(folder), **options)
    return str(caught.value)


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train_prefs
    path: data/train-*
  - split: test_prefs
    path: other/part.jsonl
- config_name: small
  data_files: few.jsonl
---
# Pairs
"""


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ["train-0.jsonl", "train-1.jsonl"],
        ["train/a.json", "train/b.json"],
        ["a.csv", "b.csv"],
        ["train.zip"],
        ["data/train.jsonl"],
    ],
)
def test_every_shard_of_a_split_is_read_as_datasets_reads_them(tmp_path, names):
    for number, name in enumerate(names):
        write(tmp_path / name, ROWS[number * 3 : (number + 1) * 3] if len(names) > 1 else ROWS)
    (tmp_path / "README.md").write_text("# Rows")
    (tmp_path / "notes.bin").write_text("")
    assert load_rows(str(tmp_path)).to_list() == ROWS
    assert datasets.load_dataset(str(tmp_path), split="train").to_list() == ROWS


def test_splits_have_the_names_that_datasets_gives_them_and_those_of_their_files(tmp_path):
    for name in ("train-0.jsonl", "dev.jsonl", "eval.jsonl"):
        write(tmp_path / name, [{"file": name}])
    for split, name in (("validation", "dev"), ("test", "eval"), ("dev", "dev"), ("eval", "eval")):
        assert load_rows(str(tmp_path), split=split).to_list() == [{"file": f"{name}.jsonl"}]
    message = error_of(tmp_path, split="holdout")
    assert "holdout.jsonl.gz" in message
    assert "which finds splits: train, validation, test" in message


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_the_file_of_a_split_is_the_whole_split(tmp_path, suffix):
    for name in ("train", "train_backup", "train-hard", "sub/train", "test", "test_ood", "eval/test"):
        write(tmp_path / f"{name}{suffix}", [{"file": name}])
    (tmp_path / "README.md").write_text("# Rows")
    for split in ("train", "test", "test_ood"):
        rows = read_rows(str(tmp_path), split=split)
        assert list(rows.dataset["file"]) == [split]
        assert rows.source == f"{tmp_path} ({split})"
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train-*{suffix}\n---\n"
    )
    assert list(load_rows(str(tmp_path))["file"]) == ["train-hard"]


def test_the_source_names_the_files_that_were_put_together(tmp_path):
    for number in range(4):
        write(tmp_path / "data" / f"train-{number}.jsonl", ROWS[:1])
        write(tmp_path / "two" / "train" / f"{number % 2}.parquet", ROWS[:1])
        write(tmp_path / "texts" / f"train-{number}.txt", ROWS[:1])
    write(tmp_path / "one" / "test_backup.jsonl", ROWS[:1])
    for name, split, files in (
        ("data", "train", "4 files: train-0.jsonl, train-1.jsonl, train-2.jsonl, ..."),
        ("two", "train", "2 files: train/0.parquet, train/1.parquet"),
        ("texts", "train", "4 files: train-0.txt, train-1.txt, train-2.txt, ..."),
        ("one", "test", "1 file: test_backup.jsonl"),
    ):
        folder = tmp_path / name
        assert read_rows(str(folder), split=split).source == f"{folder} ({split}; {files})"


def test_configs_of_a_cloned_repository_name_the_files(tmp_path):
    write(tmp_path / "data" / "train-0.jsonl", ROWS[:2])
    write(tmp_path / "data" / "train-1.jsonl", ROWS[2:4])
    write(tmp_path / "other" / "part.jsonl", ROWS[4:])
    write(tmp_path / "few.jsonl", ROWS[:1])
    (tmp_path / "README.md").write_text(CARD)
    assert load_rows(str(tmp_path), split="train_prefs").to_list() == ROWS[:4]
    assert load_rows(str(tmp_path), split="test_prefs").to_list() == ROWS[4:]
    assert load_rows(str(tmp_path), config_name="small").to_list() == ROWS[:1]
    assert "which finds splits: train_prefs, test_prefs" in error_of(tmp_path, split="test")
    message = error_of(tmp_path, split="test", config_name="big")
    assert "'big' not found. Available: ['default', 'small']" in message


def test_options_of_a_config_are_those_of_datasets(tmp_path):
    (tmp_path / "train.csv").write_text("a;b\n1;2\n")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  sep: ';'\n---\n"
    )
    assert load_rows(str(tmp_path)).to_list() == [{"a": 1, "b": 2}]


def test_a_bad_line_of_a_shard_has_its_file_and_line(tmp_path):
    write(tmp_path / "train-0.jsonl", ROWS[:3])
    (tmp_path / "train-1.jsonl").write_text(
        '{"prompt": "the", "n": 1}\n{"prompt": "the", "n": \n{"prompt": 3, "n": 2}\n'
    )
    assert error_of(tmp_path).startswith(f"{tmp_path / 'train-1.jsonl'}:2: not valid JSON")
    rows = read_rows(str(tmp_path), skip_bad_rows=2)
    assert [row.place for row in rows.bad_rows.found] == [f"{tmp_path / 'train-1.jsonl'}:{line}" for line in (2, 3)]
    assert rows.place(3) == f"{tmp_path / 'train-1.jsonl'}:1"
    assert len(rows.dataset) == 4


def test_rows_of_several_shards_keep_their_own_keys_and_kinds(tmp_path):
    rows = [{"info": {"v": 1}}, {"info": {"v": "1", "w": None}}]
    for number, row in enumerate(rows):
        write(tmp_path / f"train-{number}.jsonl", [row])
    assert load_rows(str(tmp_path)).to_list() == rows
    write(tmp_path / "other" / "train-0.parquet", [{"n": 1}])
    write(tmp_path / "other" / "train-1.parquet", [{"n": 1.5, "m": "x"}])
    assert load_rows(str(tmp_path / "other")).to_list() == [{"n": 1.0, "m": None}, {"n": 1.5, "m": "x"}]
    for number, row in enumerate(rows):
        write(tmp_path / "third" / f"train-{number}.parquet", [row])
    assert load_rows(str(tmp_path / "third")).to_list() == rows
    write(tmp_path / "other" / "train-2.parquet", [{"n": "x"}])
    assert "the files do not have the same columns" in error_of(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("data/train-0.parquet", b"no parquet", ["train-0.parquet", "not a valid parquet file"]),
        ("data/train-0.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ["train-0.parquet", "git lfs pull"]),
        ("train.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ["train.jsonl", "git lfs pull"]),
        ("train.zip", b"no zip", ["train.zip"]),
        ("train.arrow", b"no arrow", ["train.arrow", "cannot read"]),
        ("README.md", b"---\nconfigs: [\n---\n", ["README.md", "metadata cannot be read"]),
        ("README.md", b"---\nconfigs:\n- config_name: a\n  data_files: https://example.org/a.jsonl\n---\n", ["https://example.org/a.jsonl, which is not in this folder"]),
        ("README.md", b"---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: [hf://datasets/a/b/c.jsonl]\n---\n", ["hf://datasets"]),
        ("README.md", b"---\nconfigs:\n- data_files: a.jsonl\n---\n", ["config_name"]),
        ("README.md", b"---\nconfigs: 3\n---\n", ["configs"]),
        ("weights.bin", b"", ["no rows for split", "Found: weights.bin"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_one_clear_message(tmp_path, name, content, parts):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    message = error_of(tmp_path)
    assert message.startswith(str(tmp_path))
    assert all(part in message for part in parts), message
    assert len(message) < 600 + 3 * len(str(tmp_path))


def test_a_folder_named_as_a_builder_of_datasets_is_a_folder(tmp_path, monkeypatch):
    write(tmp_path / "json" / "train-0.jsonl", ROWS)
    write(tmp_path / "train.jsonl", [{"another": "set"}])
    monkeypatch.chdir(tmp_path)
    assert load_rows("json").to_list() == ROWS
