"""`hf-rlhf data`, and the report that every recipe makes before it trains."""

import json

import pytest
from tiny import make_tokenizer
from tiny_data import PPO_FLAGS, conversational_pairs, prompt_rows

from hf_rlhf.cli import main


def demonstrations(count=16):
    return [row | {"completion": [{"role": "assistant", "content": "happy"}]} for row in prompt_rows(count)]


ROWS = {"sft": demonstrations, "reward": conversational_pairs, "ppo": prompt_rows}
each_stage = pytest.mark.parametrize("stage", ROWS)


@each_stage
def test_the_command_reports_and_trains_nothing(capsys, flags, write_rows, tmp_path, stage):
    train, test = write_rows(ROWS[stage]()), write_rows(ROWS[stage](24)[12:], "test.jsonl")
    if stage == "reward":  # a pair in both sets is an error
        test = write_rows(ROWS[stage](24)[16:], "test.jsonl")
    argv = ["--dataset_name", train, "--eval_dataset_name", test, "--report_folder", str(tmp_path / "report")]
    assert main(["data", stage, *argv, *flags]) == 0
    said = capsys.readouterr().out
    assert "16 of 16 rows" in said
    assert "evaluation: " in said
    assert ("different rows of evaluation are in training too" in said) == (stage != "reward")
    assert len(json.loads((tmp_path / "report" / "data_report.json").read_text())["sets"]) == 2
    assert not (tmp_path / "out").exists()


@each_stage
def test_the_command_ends_with_2_where_the_run_would(capsys, flags, write_rows, stage):
    rows = ROWS[stage]()
    rows[3]["prompt"] = None
    assert main(["data", stage, "--dataset_name", write_rows(rows), *flags]) == 2
    said = capsys.readouterr().err
    assert 'column "prompt": None in 1 row' in said
    assert "rows.jsonl:4" in said


def test_the_command_wants_a_stage(capsys):
    assert main(["data"]) == 2
    assert main(["data", "quickstart"]) == 2
    assert "sft | reward | ppo" in capsys.readouterr().err
    assert main(["data", "--help"]) == 0


@each_stage
def test_a_recipe_leaves_bad_rows_out_and_says_so_before_and_after(capsys, flags, write_rows, tmp_path, stage):
    rows = ROWS[stage](10)
    rows[3]["prompt"] = None
    file = write_rows(rows)
    with open(file, "a", encoding="utf-8") as lines:
        lines.write("{\n")
    extra = [*PPO_FLAGS, "--reward_funcs", "tiny:happy_reward"] if stage == "ppo" else []
    argv = [stage, "--dataset_name", file, *flags, *extra, "--max_steps", "1"]
    assert main([*argv, "--skip_bad", "1"]) == 2
    assert not (tmp_path / "out").exists()
    assert main([*argv, "--skip_bad", "2"]) == 0
    said = capsys.readouterr().out
    assert said.index("9 of 11 rows") < said.index("saved to") if "saved to" in said else True
    (found,) = json.loads((tmp_path / "out" / "data_report.json").read_text())["sets"]
    assert sorted(row["place"].split(":")[-1] for row in found["bad_rows"]) == ["11", "4"]
    assert (found["rows_read"], found["rows"]) == (11, 9)


def test_texts_of_ppo_ptx_are_reported_too(capsys, flags, write_rows):
    texts = write_rows([{"text": "the cat sat"}] * 3 + [{"text": ""}], "texts.jsonl")
    argv = ["data", "ppo", "--dataset_name", write_rows(prompt_rows()), "--ptx_dataset_name", texts, *flags]
    assert main(argv) == 2
    assert "texts.jsonl:4" in capsys.readouterr().err
    assert main([*argv, "--skip_bad", "1"]) == 0
    assert "PPO-ptx texts: " in capsys.readouterr().out


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_sets_around_the_size_of_a_batch(capsys, flags, write_rows, rows, stage):
    """Fewer rows than one batch of 4 are an error, never a run that ends untrained."""
    status = main(["data", stage, "--dataset_name", write_rows(ROWS[stage](rows)), *flags])
    assert status == (0 if rows >= 4 else 2)
    said = capsys.readouterr().err
    assert status == 0 or "fewer than the 4" in said or "the set is empty" in said


@each_stage
def test_a_tokenizer_of_another_model_ends_the_run(capsys, flags, write_rows, model_folder, tmp_path, stage):
    """Ids without an embedding would be an index error far from here."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<new{n}>" for n in range(9)])
    tokenizer.save_pretrained(model_folder)
    extra = [*PPO_FLAGS, "--reward_funcs", "tiny:happy_reward"] if stage == "ppo" else []
    assert main([stage, "--dataset_name", write_rows(ROWS[stage]()), *flags, *extra]) == 2
    assert "embeddings for a vocabulary of 29" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@each_stage
def test_a_chat_template_of_a_file_is_the_one_that_counts(capsys, flags, write_rows, tmp_path, stage):
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}the the the the the the the {% endfor %}")
    argv = ["data", stage, "--dataset_name", write_rows(ROWS[stage]()), *flags, "--chat_template_path"]
    if stage != "sft":  # which asks that the prompt's ids begin the whole's
        assert main([*argv, str(template)]) == 0
        assert ("tokens of prompt: 7 to 7" if stage == "ppo" else "14 to 14") in capsys.readouterr().out
    assert main([*argv, str(tmp_path / "none.jinja")]) == 2
    assert "cannot read chat_template_path" in capsys.readouterr().err
    template.write_text("{{ ''.__class__.__mro__ }}")
    assert main([*argv, str(template)]) == 2
    assert "the chat template refuses row 0" in capsys.readouterr().err
    template.write_text("{% for i in range(10**9) %}x{% endfor %}")
    assert main([*argv, str(template)]) == 2
    assert "the chat template refuses row 0" in capsys.readouterr().err
