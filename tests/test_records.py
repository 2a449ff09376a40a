import json

from hf_rlhf.records import append_json_line, keep_whole_parts, read_json_lines, sample_rows, write_json_lines
from hf_rlhf.types import Completion, Trajectory


def test_what_rewards_logged_is_part_of_a_sample_if_there_is_any():
    plain = Trajectory({"prompt": "p"}, [1], Completion([2], [0.0], True), "text")
    logged = Trajectory({"prompt": "p"}, [1], Completion([2], [0.0], True), "text", extra={"parsed": 7})
    first, second = sample_rows([plain, logged], split="train", limit=2)
    assert "extra" not in first
    assert second["extra"] == {"parsed": 7}


def test_every_line_is_json(tmp_path):
    rows = tmp_path / "rows.jsonl"
    append_json_line(rows, {"nan": float("nan"), "nested": {"list": [float("inf"), 1.5], "type": int}})
    assert read_json_lines(rows) == [{"nan": None, "nested": {"list": [None, 1.5], "type": "<class 'int'>"}}]
    json.loads(rows.read_text(), parse_constant=lambda constant: (_ for _ in ()).throw(ValueError(constant)))


def test_half_a_character_is_written_as_its_escape(tmp_path):
    """Rewards may log what a completion holds, and a completion may end in the middle of an emoji."""
    rows = tmp_path / "rows.jsonl"
    append_json_line(rows, {"extra": "é \ud83d"})
    assert rows.read_text(encoding="utf-8") == '{"extra": "é \\ud83d"}\n'
    assert read_json_lines(rows) == [{"extra": "é \ud83d"}]


def test_parts_that_a_kill_has_torn_are_cut_off(tmp_path):
    file = tmp_path / "rows.jsonl"
    assert keep_whole_parts(file, 2, 5) == 0
    write_json_lines(file, [{"row": number} for number in range(3)])
    with file.open("a") as lines:
        lines.write('{"ro')
    assert keep_whole_parts(file, 2, 5) == 2
    assert read_json_lines(file) == [{"row": 0}, {"row": 1}]
    write_json_lines(file, [{"row": number} for number in range(5)])
    assert keep_whole_parts(file, 2, 5) == 5
    assert len(read_json_lines(file)) == 5
