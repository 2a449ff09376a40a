import json
from dataclasses import dataclass

import torch

from hf_rlhf.records import (
    append_json_line,
    changed_settings,
    keep_whole_parts,
    read_json_lines,
    sample_row,
    write_json_lines,
)
from hf_rlhf.types import Completion, Reward, Score, Trajectory


def test_what_rewards_logged_is_part_of_a_sample_if_there_is_any():
    trajectory = Trajectory({"prompt": "p"}, [1], Completion([2], [0.0], True), "text")
    assert "extra" not in sample_row(trajectory, Reward(1.0), None, "eval")
    assert sample_row(trajectory, Reward(1.0, extra={"parsed": 7}), None, "eval")["extra"] == {"parsed": 7}


def test_a_sample_has_the_reward_as_it_was_given_and_in_training_the_score_that_is_paid():
    trajectory = Trajectory({"prompt": "p"}, [1], Completion([2, 3], [0.0, 0.0], False), "text")
    reward = Reward(3.0, {"steps": 3.0}, torch.tensor([1.0, 2.0]))
    row = sample_row(trajectory, reward, Score(-0.5, torch.tensor([0.5, 1.0])), "train")
    assert (row["reward"], row["rewards"], row["score"]) == (3.0, {"steps": 3.0}, 1.0)
    assert "score" not in sample_row(trajectory, reward, None, "eval")


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


def test_a_changed_flag_is_found_under_the_name_it_had_in_an_earlier_run(tmp_path):
    @dataclass
    class Flags:
        critic_lam: float = 0.9

    (tmp_path / "config.yaml").write_text("value_lam: 0.5\n", encoding="utf-8")
    assert changed_settings(tmp_path, Flags()) == {"critic_lam": (0.5, 0.9)}
