"""Damaged rows, columns and files: the result is a report or one InputError that names the file, nothing else."""

import csv
import json
from functools import partial

import pytest
from damage import make_case, strict_tokenizer

from hf_rlhf.data import prepare_prompts
from hf_rlhf.data import report as data_report
from hf_rlhf.data.files import read_rows
from hf_rlhf.data.preferences import prepare_preference_set
from hf_rlhf.data.prompts import prepare_prompt_set
from hf_rlhf.data.report import Limit
from hf_rlhf.data.rows import read_columns
from hf_rlhf.data.texts import find_columns, prepare_text_set, tokenize_texts
from hf_rlhf.data.training_rows import pair_ids
from hf_rlhf.errors import InputError

CHECKS = {
    "pairs": prepare_preference_set,
    "prompts": partial(prepare_prompt_set, overlong="filter"),
    "texts": prepare_text_set,
}


def outcome(number, folder, tokenizer):
    """`None` when the set can be used, else the message. Whatever else is raised ends the test."""
    kind, file, skip_bad_rows = make_case(number, folder)
    limit = Limit("max_length", 16, "are skipped")
    try:
        rows = read_rows(str(file), skip_bad_rows=skip_bad_rows)
        checked = CHECKS[kind](rows, tokenizer, role="training", limit=limit)
    except InputError as error:
        return str(error)
    report = checked.report
    filtered = report.lengths[0].above if kind == "prompts" else 0
    assert len(checked.dataset) == report.rows - filtered > 0
    assert report.rows_read == report.rows + len(report.bad_rows) + sum(report.left_out.values())
    assert len(report.bad_rows) <= skip_bad_rows
    assert str(report).isprintable() or all(line.isprintable() for line in str(report).splitlines())
    json.dumps(str(report)).encode("utf-8")
    assert not ends_inside_quotes(file)
    tokenize_all(kind, checked.dataset, tokenizer)
    return None


def ends_inside_quotes(file):
    """Return whether the last field of a .csv file began with a quote and has no end."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return file.suffix == ".csv" and not list(csv.reader(lines, strict=True))
    except csv.Error as error:
        return "unexpected end of data" in str(error)


def tokenize_all(kind, dataset, tokenizer):
    """Tokenize every row, as the trainers do, and not only the rows that were measured."""
    if kind == "prompts":
        prepare_prompts(dataset, tokenizer, max_prompt_length=16, source="rows", overlong_prompts="filter")
    elif kind == "texts":
        columns = find_columns(dataset, source="rows")
        tokenize_texts(read_columns(dataset, columns), tokenizer, source="rows")
    else:
        names = [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names]
        pair_ids(read_columns(dataset, names), tokenizer, source="rows")


def run(cases, folder):
    tokenizer = strict_tokenizer()
    messages = []
    for number in cases:
        try:
            found = outcome(number, folder, tokenizer)
        except Exception as error:
            raise AssertionError(f"case {number} (make_case({number}, folder) makes it)") from error
        messages += [found] if found is not None else []
    assert all("rows." in text for text in messages), next(text for text in messages if "rows." not in text)
    return messages


@pytest.fixture(autouse=True)
def one_row_measured(monkeypatch):
    monkeypatch.setattr(data_report, "MEASURED_ROWS", 1)


def test_damage_ends_in_a_report_or_in_one_message_that_names_the_file(tmp_path):
    messages = run(range(300), tmp_path)
    assert 60 < len(messages) < 270  # both happen


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_damaged_sets(tmp_path):
    messages = run(range(1000, 11_000), tmp_path)
    assert 2000 < len(messages) < 9000
