"""A server that is not there ends a command at its start: the models that cannot be loaded either are never asked for."""

import pytest
from http_double import dead_url
from tiny import make_tokenizer
from tiny_data import PPO_FLAGS, plain_pairs

from hf_rlhf.cli import main

COMMANDS = {
    "ppo": ["ppo", "--dataset_name", "{rows}", "--reward_funcs", "{http}", *PPO_FLAGS],
    "ppo, judge": ["ppo", "--dataset_name", "{rows}", "--reward_funcs", "{judge}", *PPO_FLAGS],
    "score": ["score", "{rows}", "--reward_funcs", "{http}", "{no_model}", "--output", "{out}.jsonl"],
    "report card": ["report-card", "{http}", "--dataset_name", "no set"],
    "evaluate": ["evaluate", "{no_model}", "--dataset_name", "{prompts}", "--baseline", "{no_model}", "--reward_funcs", "{http}"],
    "evaluate, judge": ["evaluate", "{no_model}", "--dataset_name", "{prompts}", "--baseline", "{no_model}", "--judge_url",
                        "{url}", "--judge_model", "m", "--retries", "0"],
    "judge": ["ai-feedback", "--dataset_name", "{rows}", "--judge_url", "{url}", "--judge_model", "m", "--retries", "0"],
    "writer": ["ai-feedback", "--dataset_name", "{rows}", "--url", "{url}", "--judge_model", "{no_model}", "--retries", "0"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_server_that_is_not_there_is_told_before_a_model_is_loaded(command, write_rows, tmp_path, capsys):
    url, no_model = dead_url(), tmp_path / "a tokenizer alone"
    make_tokenizer().save_pretrained(no_model)
    given = {"rows": write_rows(plain_pairs(4)), "url": url, "no_model": no_model, "out": tmp_path / "out",
             "prompts": write_rows([{"prompt": "hello"}], "prompts.jsonl"), "http": f"http:url={url},retries=0", "judge": f"judge:model=m,url={url},retries=0"}  # fmt: skip
    argv = [part.format(**given) for part in COMMANDS[command]]
    if command != "score":
        argv += ["--output_dir", str(tmp_path / "out")]
    if argv[0] in ("ppo", "ai-feedback"):
        argv += ["--model_name_or_path", str(no_model)]
    assert main(argv) == 1
    assert "no connection ([Errno 111] Connection refused). Check the url, and that the serv" in capsys.readouterr().err
