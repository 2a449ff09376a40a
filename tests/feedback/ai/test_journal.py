"""A journal keeps every answer once, through kills and torn lines."""

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.ai.journal import JOURNAL_FILE, Journal

MADE_BY = {"seed": 0, "prompts": "abc"}


def test_answers_are_there_again(tmp_path):
    Journal(tmp_path, MADE_BY).add([{"key": "completion/0/0", "text": "é"}])
    again = Journal(tmp_path, MADE_BY)
    assert again["completion/0/0"]["text"] == "é"
    assert again.kept == 1
    assert "completion/0/1" not in again


def test_a_torn_last_line_is_cut_off_and_the_next_answer_stands_alone(tmp_path):
    Journal(tmp_path, MADE_BY).add([{"key": "a", "text": "1"}, {"key": "b", "text": "2"}])
    file = tmp_path / JOURNAL_FILE
    file.write_bytes(file.read_bytes()[:-5])
    again = Journal(tmp_path, MADE_BY)
    assert "a" in again
    assert "b" not in again
    again.add([{"key": "b", "text": "3"}])
    assert Journal(tmp_path, MADE_BY)["b"]["text"] == "3"


def test_a_torn_first_line_begins_anew(tmp_path):
    (tmp_path / JOURNAL_FILE).write_bytes(b'{"key": "beg')
    Journal(tmp_path, MADE_BY).add([{"key": "a", "text": "1"}])
    assert Journal(tmp_path, MADE_BY)["a"]["text"] == "1"


def test_other_settings_do_not_continue_it(tmp_path):
    Journal(tmp_path, MADE_BY)
    with pytest.raises(InputError, match="seed=1 is invalid for a run that resumes: it was 0 before"):
        Journal(tmp_path, MADE_BY | {"seed": 1})


def test_a_damaged_line_is_named(tmp_path):
    Journal(tmp_path, MADE_BY).add([{"key": "a"}])
    file = tmp_path / JOURNAL_FILE
    file.write_bytes(file.read_bytes() + b"\0\0\0\n")
    with pytest.raises(InputError, match=r"journal\.jsonl, line 3: it is damaged"):
        Journal(tmp_path, MADE_BY)
