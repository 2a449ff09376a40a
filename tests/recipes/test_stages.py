"""Stages whose results stay on disk: their bookkeeping."""

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.recipes.stages import run_stage


def test_a_stage_is_done_once_and_again_when_its_settings_change(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "result.txt").write_text(str(len(made)))

    folder = tmp_path / "stage"
    assert run_stage(folder, {"seed": 0}, make)
    assert not run_stage(folder, {"seed": 0}, make)
    assert (folder / "result.txt").read_text() == "1"
    assert run_stage(folder, {"seed": 1}, make)
    assert (folder / "result.txt").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_a_stage_that_fails_leaves_the_old_result(tmp_path):
    folder = tmp_path / "stage"
    run_stage(folder, {"seed": 0}, lambda scratch: (scratch / "result.txt").write_text("old"))

    def fail(scratch):
        (scratch / "result.txt").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run_stage(folder, {"seed": 1}, fail)
    assert (folder / "result.txt").read_text() == "old"


def test_a_killed_stage_finds_what_it_had_done_unless_the_settings_have_changed(tmp_path):
    folder, found = tmp_path / "stage", []

    def make(scratch):
        found.append(sorted(path.name for path in scratch.iterdir()))
        (scratch / "half.txt").write_text("half")
        raise RuntimeError("killed")

    for seed in (0, 0, 1):
        with pytest.raises(RuntimeError, match="killed"):
            run_stage(folder, {"seed": seed}, make)
    assert found == [["stage.json"], ["half.txt", "stage.json"], ["stage.json"]]


def test_a_kill_while_a_stage_is_replaced_loses_nothing(tmp_path):
    folder = tmp_path / "stage"
    run_stage(folder, {"seed": 0}, lambda scratch: None)
    folder.rename(tmp_path / ".stage.replaced")  # so far the kill let it come
    assert run_stage(folder, {"seed": 1}, lambda scratch: None)
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not made by this command"):
        run_stage(tmp_path / "stage", {}, lambda scratch: None)
    assert (tmp_path / "stage" / "mine.txt").read_text() == "mine"
