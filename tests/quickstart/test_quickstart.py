"""The quickstart on the real embedded model, small; and its stages' bookkeeping."""

import json

import pytest
from peft import get_peft_model
from tiny import make_base_tokenizer, make_lora, make_model

from hf_rlhf.cli import main
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of
from hf_rlhf.quickstart import comparison, replies
from hf_rlhf.quickstart.arguments import QuickstartArguments
from hf_rlhf.quickstart.before_after import Side
from hf_rlhf.quickstart.stages import run_stage
from hf_rlhf.quickstart.training import policy_computation
from hf_rlhf.rollout.stops import stop_token_ids


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


def test_replies_before_and_after_end_with_the_turn_whatever_the_models_end_token_is(tmp_path, monkeypatch):
    tokenizer, base, ends = make_base_tokenizer(), tmp_path / "base", []
    make_model(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    get_peft_model(make_model(tokenizer), make_lora()).save_pretrained(tmp_path / "policy")

    def candidates(engine, rows, tokenizer, sampling, seeds):
        ends.append(stop_token_ids(engine.model, tokenizer, sampling))
        return []

    def measured(model, engine, rows, sampling, seeds, **judges):
        ends.append(stop_token_ids(base_of(model), engine.tokenizer, sampling))
        return Side([], [], [], [], [])

    for stage in (replies, comparison):
        monkeypatch.setattr(stage, "quickstart_prompts", lambda: {"train": ["hello"], "test": ["hello"]})
    monkeypatch.setattr(replies, "collect", candidates)
    monkeypatch.setattr(comparison, "measure_side", measured)
    monkeypatch.setattr(comparison, "load_reward_model", lambda *args, **kwargs: (None, None))
    args = QuickstartArguments(model_name_or_path=str(base), messages=1)
    replies.sample_candidates(args, tmp_path, tmp_path)
    comparison.compare(args, tmp_path / "reward", tmp_path / "policy", tmp_path)
    assert ends == [tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])] * 4


def test_the_card_names_no_dtype_where_the_policy_recorded_none(tmp_path):
    assert policy_computation(tmp_path).for_card() == {}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quickstart_runs_end_to_end_and_again(tmp_path, capsys):
    """Few candidates and iterations: every file is there, and the second run makes nothing new."""
    folder = tmp_path / "quickstart"
    argv = ["quickstart", "--output_dir", str(folder), "--candidates_per_prompt", "2", "--max_preferences", "48"]
    argv += ["--ppo_iterations", "2", "--messages", "48"]
    assert main(argv) == 0
    for name in (
        "report.html",
        "results.json",
        "plan.json",
        "samples.jsonl",
        "policy/README.md",
        "policy/value_head.safetensors",
    ):
        assert (folder / name).is_file(), name
    results = json.loads((folder / "results.json").read_text())
    assert 0 <= results["win_rate"]["rate"] <= 1
    capsys.readouterr()
    assert main(argv) == 0
    assert capsys.readouterr().out.count("reused") == 5
