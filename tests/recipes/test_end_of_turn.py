"""A base model with a chat template learns to stop in sft, and what sft leaves stops by itself."""

import json
import logging

import pytest
from peft import PeftModel
from tiny import CHAT_TEMPLATE, make_base_tokenizer, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_rlhf.cli import main
from hf_rlhf.rollout.stops import _warn

IM_END, END_OF_TEXT = 3, 29
ROW = {
    "prompt": [{"role": "user", "content": "hello"}],
    "completion": [{"role": "assistant", "content": "happy dog"}],
}
TEXT = {"text": "the cat sat on the mat <|im_end|> happy"}
FLAGS = "--max_length 32 --learning_rate 1e-2 --num_train_epochs 1 --max_steps"


@pytest.fixture
def model_folder(tmp_path):
    """A base model: its tokenizer has a chat template, and another end token."""
    tokenizer, folder = make_base_tokenizer(), tmp_path / "model"
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def sft(flags, write_rows, *more, rows=(ROW,) * 8, steps=1):
    return main(["sft", "--dataset_name", write_rows(rows), *flags, *FLAGS.split(), str(steps), *more])


def test_a_full_model_stops_at_the_end_of_the_turn_in_plain_generate(flags, write_rows, tmp_path):
    assert sft(flags, write_rows, "--use_peft", "false", steps=60) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == [IM_END, END_OF_TEXT]
    inputs = tokenizer.apply_chat_template(
        ROW["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]) == "happy dog <|im_end|>"


def test_an_adapter_says_where_it_stops_and_ppo_goes_on_from_it(flags, write_rows, tmp_path, model_folder, caplog):
    with caplog.at_level(logging.WARNING):
        assert sft(flags, write_rows) == 0
    (said,) = [record.message for record in caplog.records if "chat template" in record.message]
    assert "eos_token=<|im_end|>" in said
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"
    base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), tmp_path / "out")
    assert base.generation_config.eos_token_id == END_OF_TEXT  # for which the card has the rest
    assert "max_new_tokens=64, eos_token_id=[3, 29])" in (tmp_path / "out" / "README.md").read_text()

    caplog.clear()
    _warn.cache_clear()
    reward = tmp_path / "ends.py"
    reward.write_text(
        "def ends(prompts, completions, completion_ids):\n"
        f"    assert not any({IM_END} in ids[:-1] for ids in completion_ids)\n    return [1.0] * len(prompts)\n"
    )
    argv = ["ppo", "--dataset_name", write_rows([ROW] * 8), *flags, "--reward_funcs", f"{reward}:ends"]
    argv += ["--model_name_or_path", str(tmp_path / "out"), "--output_dir", str(tmp_path / "ppo")]
    assert (
        main(
            [
                *argv,
                "--max_steps",
                "1",
                "--num_ppo_epochs",
                "1",
                "--max_completion_length",
                "12",
                "--max_prompt_length",
                "32",
            ]
        )
        == 0
    )
    assert not [record for record in caplog.records if "chat template" in record.message]
    assert "do_sample=True, eos_token_id=[3, 29])" in (tmp_path / "ppo" / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "rows", "eos", "warned"),
    [
        (["--eos_token", "<|im_end|>"], [ROW] * 8, "<|im_end|>", False),
        (["--eos_token", "happy"], [ROW] * 8, "happy", True),
        ([], [TEXT] * 8, "<|endoftext|>", False),
    ],
    ids=["the flag names it", "the flag names another", "plain text"],
)
def test_a_flag_wins_and_plain_text_keeps_its_end_token(flags, write_rows, tmp_path, caplog, more, rows, eos, warned):
    with caplog.at_level(logging.WARNING):
        assert sft(flags, write_rows, *more, rows=rows) == 0
    assert any("chat template closes" in record.message for record in caplog.records) == warned
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == eos


NEEDS_TOOLS = "{{ raise_exception('no tools') if not tools }}" + CHAT_TEMPLATE
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


def test_the_end_of_a_template_that_asks_for_tools_is_known_to_sft(flags, write_rows, tmp_path):
    (tmp_path / "tools.jinja").write_text(NEEDS_TOOLS)
    rows = [ROW | {"tools": TOOLS}] * 8
    assert sft(flags, write_rows, "--chat_template_path", str(tmp_path / "tools.jinja"), rows=rows) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"


UNENDED = {
    "no token": ("{% for m in messages %}{{ m.role }} {{ m.content }}  {% endfor %}", []),
    "a token outside of the marks": (
        "{% for m in messages %}{{ m.role }} {% generation %}{{ m.content }}{% endgeneration %} <|im_end|>"
        " {% endfor %}",
        ["--assistant_only_loss", "true"],
    ),
}


@pytest.mark.parametrize(("template", "more"), UNENDED.values(), ids=UNENDED)
def test_sft_warns_where_no_end_of_an_answer_is_trained(flags, write_rows, tmp_path, caplog, template, more):
    (tmp_path / "unended.jinja").write_text(template)
    ended = template.replace("  ", " <|im_end|> ").replace(
        "{% endgeneration %} <|im_end|>", "<|im_end|>{% endgeneration %}"
    )
    (tmp_path / "ended.jinja").write_text(ended)
    warned = []
    for name in ("unended", "ended"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            flags[flags.index("--output_dir") + 1] = str(tmp_path / name)
            assert sft(flags, write_rows, *more, "--chat_template_path", str(tmp_path / f"{name}.jinja")) == 0
        warned.append([record.message for record in caplog.records if "does not learn to stop" in record.message])
    assert [len(each) for each in warned] == [1, 0]
    assert ("generation" in warned[0][0]) == bool(more)
