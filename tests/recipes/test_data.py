"""`hf-rlhf data`, and the report that every recipe makes before it trains."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from damage import make_case
from tiny import make_model, make_tokenizer
from tiny_data import PPO_FLAGS, conversational_pairs, prompt_rows
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerBase

from hf_rlhf.cli import main
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.trainer import PPOTrainer


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
    assert main([*argv, "--skip_bad_rows", "1"]) == 2
    assert not (tmp_path / "out").exists()
    assert main([*argv, "--skip_bad_rows", "2"]) == 0
    said = capsys.readouterr().out
    end = "saved to" if stage != "sft" else "train_runtime"
    assert 0 < said.index("9 of 11 rows") < said.index(end)
    (found,) = json.loads((tmp_path / "out" / "data_report.json").read_text())["sets"]
    assert sorted(row["place"].split(":")[-1] for row in found["bad_rows"]) == ["11", "4"]
    assert (found["rows_read"], found["rows"]) == (11, 9)


def test_texts_of_ppo_ptx_are_reported_too(capsys, flags, write_rows):
    texts = write_rows([{"text": "the cat sat"}] * 3 + [{"text": ""}], "texts.jsonl")
    argv = ["data", "ppo", "--dataset_name", write_rows(prompt_rows()), "--ptx_dataset_name", texts, *flags]
    assert main(argv) == 2
    assert "texts.jsonl:4" in capsys.readouterr().err
    assert main([*argv, "--skip_bad_rows", "1"]) == 0
    assert "PPO-ptx texts: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("sft", "[messages; the set holds preference pairs ("),
        ("reward", "[conversational, implicit prompt; the set holds preference pairs ("),
        ("ppo", "[messages before the answers; the set holds preference pairs ("),
    ],
)
def test_the_report_says_what_each_stage_takes_one_file_for(capsys, flags, write_rows, stage, words):
    """A file as UltraFeedback's: the question as text beside whole dialogues."""
    rows = [
        {
            "prompt": prompt[0]["content"],
            **{name: prompt + [{"role": "assistant", "content": name}] for name in ("chosen", "rejected", "messages")},
        }
        for prompt in (row["prompt"] for row in prompt_rows(4))
    ]
    assert main(["data", stage, "--dataset_name", write_rows(rows), *flags]) == 0
    said = capsys.readouterr().out
    assert words + "conversational, implicit prompt) and messages]" in said
    if stage == "ppo":
        assert f"e.g. prompt: user: {rows[0]['prompt']}" in said


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5])
@each_stage
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
    assert "rows.jsonl:1" in (said := capsys.readouterr().err)
    assert "the chat template refuses it" in said
    template.write_text("{% for i in range(10**9) %}x{% endfor %}")
    assert main([*argv, str(template)]) == 2
    assert "the chat template refuses it" in capsys.readouterr().err


@each_stage
def test_a_row_that_the_template_refuses_ends_the_run_or_is_left_out(capsys, flags, write_rows, tmp_path, stage):
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}{% if 'martian' in m.content %}{{ raise_exception('bad words') }}{% endif %}"
        "{{ m.role }} {{ m.content }} {% endfor %}"
    )
    rows = ROWS[stage](7)
    rows[5]["prompt"] = [{"role": "user", "content": "martian"}]
    extra = [*PPO_FLAGS, "--reward_funcs", "tiny:happy_reward"] if stage == "ppo" else []
    argv = [stage, "--dataset_name", write_rows(rows), *flags, *extra, "--chat_template_path", str(template)]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "the chat template refuses it (bad words)" in said
    assert "rows.jsonl:6" in said
    assert not (tmp_path / "out").exists()
    assert main(["data", *argv, "--skip_bad_rows", "1"]) == 0


LONG = {"ppo": "max_prompt_length", "reward": "max_length"}


@pytest.mark.parametrize(
    ("stage", "limit", "more", "words"),
    [
        ("ppo", "4", [], "prompts longer than max_prompt_length=4 tokens: 16 rows ("),
        ("ppo", "4", ["--overlong_prompts", "filter"], "leaves no prompt"),
        ("ppo", "7", ["--overlong_prompts", "filter", "--per_device_train_batch_size", "8"], "fewer than the 8"),
        ("reward", "2", [], "all 16 pairs are longer than max_length=2 tokens"),
    ],
)
def test_rows_that_are_too_long_end_the_command_as_they_would_the_run(
    capsys, flags, write_rows, stage, limit, more, words
):
    argv = ["data", stage, "--dataset_name", write_rows(ROWS[stage]()), *flags, f"--{LONG[stage]}", limit, *more]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "rows.jsonl" in said


def test_texts_of_ppo_ptx_with_nothing_to_learn_end_the_command(capsys, flags, write_rows):
    texts = write_rows(
        [{"prompt": "the", "completion": " cat"}, {"prompt": "the cat sat", "completion": " on"}], "t.jsonl"
    )
    argv = ["data", "ppo", "--dataset_name", write_rows(prompt_rows()), "--ptx_dataset_name", texts, *flags]
    assert main([*argv, "--max_ptx_length", "4"]) == 0
    assert main([*argv, "--max_ptx_length", "3"]) == 2
    assert "t.jsonl:2" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1"])
@pytest.mark.parametrize("flag", ["max_train_samples", "max_eval_samples"])
@each_stage
def test_no_rows_at_all_cannot_be_asked_for(capsys, flags, write_rows, stage, flag, number):
    file = write_rows(ROWS[stage]())
    test = write_rows(ROWS[stage](24)[16:], "test.jsonl")
    argv = ["data", stage, "--dataset_name", file, "--eval_dataset_name", test, *flags, f"--{flag}", number]
    assert main(argv) == 2
    assert f"{flag}={number}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["~nosuchuser/rows.jsonl", "x" * 5000, "~nosuchuser"])
def test_a_name_that_no_file_can_have_is_told(capsys, flags, name):
    for more in ([], ["--do_eval", "true"]):
        assert main(["data", "ppo", "--dataset_name", name, *flags, *more]) == 2
        assert "error: " in capsys.readouterr().err


def test_a_file_of_the_home_folder_is_one_file_too(capsys, flags, write_rows, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_rows(prompt_rows())
    assert main(["data", "ppo", "--dataset_name", "~/rows.jsonl", *flags]) == 0
    assert main(["data", "ppo", "--dataset_name", "~/rows.jsonl", "--do_eval", "true", *flags]) == 2
    assert "is one file. Give eval_dataset_name" in capsys.readouterr().err


def test_a_pair_in_both_sets_is_named_by_its_line(capsys, flags, write_rows):
    pairs = conversational_pairs(24)
    test = [pairs[20], pairs[20], pairs[20] | {"chosen": None}, pairs[21], pairs[20], pairs[3]]
    argv = ["--dataset_name", write_rows(pairs[:16]), "--eval_dataset_name", write_rows(test, "test.jsonl")]
    assert main(["data", "reward", *argv, "--skip_bad_rows", "1", *flags]) == 2
    assert "test.jsonl:6) of 3 pairs of" in capsys.readouterr().err


def test_a_report_folder_that_cannot_be_one_is_told_before_the_work(capsys, flags, write_rows, tmp_path):
    argv = ["data", "ppo", "--dataset_name", write_rows([{"prompt": None}]), *flags, "--report_folder"]
    for folder in (tmp_path / "rows.jsonl", tmp_path / "rows.jsonl" / "inside"):
        assert main([*argv, str(folder)]) == 2
        assert "report_folder=" in (said := capsys.readouterr().err)
        assert "is a file" in said


def test_names_and_rows_that_a_terminal_cannot_show(flags, tmp_path):
    file = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    with open(file, "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"prompt": "café the"}, ensure_ascii=False) + "\n" for _ in range(4))
    argv = [sys.executable, "-m", "hf_rlhf.cli", "data", "ppo", "--dataset_name", file, *flags]
    done = subprocess.run(
        [*argv, "--report_folder", str(tmp_path / "report")],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"caf\udce9.jsonl" in done.stdout
    assert rb"caf\xe9 the" in done.stdout
    (found,) = json.loads((tmp_path / "report" / "data_report.json").read_text(encoding="utf-8"))["sets"]
    assert found["examples"][0] == {"prompt": "café the"}


def test_a_message_holds_no_token_and_no_escape_sequence(capsys, flags, write_rows):
    rows = [{"hf_abcdefghijABCDEFGHIJ1234": 1, "\x1b]0;evil\x07": 2}]
    assert main(["data", "ppo", "--dataset_name", write_rows(rows), *flags]) == 2
    said = capsys.readouterr().err
    assert "columns found: <token>,  ]0;evil" in said
    assert said.removesuffix("\n").isprintable()


def run(cases, capsys, flags, folder):
    """The statuses of the command on damaged files."""
    statuses = []
    for number in cases:
        kind, file, skip_bad_rows = make_case(number, folder)
        stage = {"pairs": "reward", "prompts": "ppo", "texts": "sft"}[kind]
        argv = ["data", stage, "--dataset_name", str(file), "--skip_bad_rows", str(skip_bad_rows), *flags]
        statuses.append(main([*argv, "--per_device_train_batch_size", "1"]))
        messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert statuses[-1] in (0, 2), number
        assert len(messages) == (statuses[-1] == 2), number
        assert all(map(str.isprintable, messages)), number
    return statuses


def test_damaged_files_end_in_a_report_or_in_one_message(capsys, flags, tmp_path):
    assert set(run(range(20), capsys, flags, tmp_path)) == {0, 2}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_damaged_files_end_in_a_report_or_in_one_message(capsys, flags, tmp_path):
    assert set(run(range(1000, 2000), capsys, flags, tmp_path)) == {0, 2}


def test_prompts_are_tried_with_the_reward_models_template_before_any_model_is_loaded(
    capsys, flags, write_rows, tmp_path
):
    """Check a reward model's folder with a tokenizer and nothing else: loading the model ends in another message."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}"
        " {% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "helpful")
    rows = prompt_rows()
    rows[4]["prompt"].insert(0, {"role": "system", "content": "you are good"})
    argv = ["--dataset_name", write_rows(rows), "--reward_model_path", str(tmp_path / "helpful"), *flags, *PPO_FLAGS]
    for command in (["ppo"], ["data", "ppo"]):
        assert main([*command, *argv]) == 2
        said = capsys.readouterr().err
        assert "helpful': the chat template refuses it (no system) in 1 row" in said
        assert "rows.jsonl:5" in said
        assert not (tmp_path / "out").exists()
    assert main(["data", "ppo", *argv, "--skip_bad_rows", "1"]) == 0
    assert "15 of 16 rows" in capsys.readouterr().out


def test_template_arguments_of_the_run_count_in_the_report(capsys, flags, write_rows, tmp_path):
    template = "{% if calm %}the cat sat {% endif %}{% for m in messages %}{{ m.content }} {% endfor %}"
    (tmp_path / "own.jinja").write_text(template)
    rows = write_rows([{"prompt": [{"role": "user", "content": "no yes"}]}] * 8)
    texts = write_rows([{"messages": [{"role": "user", "content": "no"}]}] * 8, "texts.jsonl")
    argv = ["data", "ppo", "--dataset_name", rows, "--ptx_dataset_name", texts, "--ptx_coef", "0.1", *flags, *PPO_FLAGS]
    argv += ["--chat_template_path", str(tmp_path / "own.jinja"), "--per_device_train_batch_size", "2"]
    (tmp_path / "run.yaml").write_text("chat_template_kwargs: {calm: true}\n")
    given = {"--chat_template_kwargs": '{"calm": true}', "--config": str(tmp_path / "run.yaml")}
    for more, lengths in (((), (2, 1)), *(((name, value), (5, 4)) for name, value in given.items())):
        assert main([*argv, *more]) == (0 if more else 2)  # a text of one token has nothing to learn
        if more:
            said = capsys.readouterr().out
            assert f"tokens of prompt: {lengths[0]} to {lengths[0]}," in said
            assert f"tokens of text: {lengths[1]} to {lengths[1]}," in said


def test_a_run_renders_each_prompt_once_with_every_tokenizer(flags, write_rows, tmp_path, monkeypatch):
    """The recipe prepares the prompts for its report, and PPOTrainer takes them as they are."""
    folder, renders = tmp_path / "reward", Counter()
    config = make_model(make_tokenizer()).config
    config.num_labels = 1
    for each in (LlamaForSequenceClassification(config), make_tokenizer()):
        each.save_pretrained(folder)
    render = PreTrainedTokenizerBase.apply_chat_template

    def counted(tokenizer, messages, **options):
        renders[tokenizer.name_or_path == str(folder), messages[0]["content"]] += 1
        return render(tokenizer, messages, **options)

    def enough(*_, **__):
        raise InputError("enough")

    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", counted)
    monkeypatch.setattr(PPOTrainer, "train", enough)
    rows = [{"prompt": [{"role": "user", "content": f"the cat {number}"}]} for number in range(8)]
    argv = ["ppo", "--dataset_name", write_rows(rows), "--reward_model_path", str(folder), *flags, *PPO_FLAGS]
    assert main(argv) == 2
    contents = [row["prompt"][0]["content"] for row in rows]
    assert {renders[scores, content] for scores in (False, True) for content in contents} == {1}
