"""Files are UTF-8 whatever the locale says, and what is printed never ends a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_data import prompt_rows

from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments

PROGRAM = """
import sys
from hf_rlhf.cli import main
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.progress import say
from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments
from hf_rlhf.cli.parsing import parse_arguments
say("gr\\xfc\\xdfe")  # as a script of the user's own, before main() touches stdout
config, *flags = sys.argv[1:]
_, training, _ = parse_arguments([PPOArguments, PPOConfig, ModelArguments], ["--config", config], "test")
print(ascii((training.stop_strings, training.run_name)))
sys.exit(main(["data", "ppo", "--config", config, *flags]))
"""


def test_a_config_and_rows_under_a_locale_of_ascii(tmp_path, write_rows, model_folder):
    """The locale of a cron job or container, and a stand-in for Windows, whose files are not UTF-8 by default."""
    rows = prompt_rows()
    rows[0]["prompt"][0]["content"] = "cat é cat"
    config = tmp_path / "ppo.yaml"
    config.write_text("stop_strings: fin é\nrun_name: 'größe'\nuse_cpu: true\n", encoding="utf-8")
    flags = ["--dataset_name", write_rows(rows), "--model_name_or_path", model_folder, "--report_folder", str(tmp_path)]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = os.environ | ascii_only | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("PYTHONIOENCODING", None)
    command = [sys.executable, "-c", PROGRAM, str(config), *flags]
    done = subprocess.run(command, capture_output=True, encoding="ascii", env=environment)
    assert done.returncode == 0, done.stderr
    assert r"gr\xfc\xdfe" in done.stdout
    assert r"(['fin \xe9'], 'gr\xf6\xdfe')" in done.stdout
    assert r"cat \xe9 cat" in done.stdout
    assert "cat é cat" in (tmp_path / "data_report.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "flag", ["output_dir", "dataset_name", "model_name_or_path", "reward_funcs", "reward_model_path"]
)
def test_a_path_that_the_locale_cannot_name_is_refused(flag, tmp_path, write_rows, model_folder):
    """It is there, under a name that YAML can write and this process cannot."""
    (tmp_path / "reward.py").write_text("def f(completions, **columns):\n    return [0.0] * len(completions)\n")
    values = {
        "output_dir": "out",
        "dataset_name": write_rows(prompt_rows()),
        "model_name_or_path": model_folder,
        "reward_funcs": "reward.py:f",
        "use_cpu": "true",
    }
    named = {"output_dir": "é", "dataset_name": "é.jsonl", "reward_funcs": "é.py:f"}.get(flag, "./é")
    if flag == "reward_model_path":
        del values["reward_funcs"]
    Path(tmp_path, named.removesuffix(":f")).mkdir()
    config = tmp_path / "ppo.yaml"
    config.write_text("".join(f"{key}: {value}\n" for key, value in (values | {flag: named}).items()), encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "hf_rlhf.cli", "ppo", "--config", str(config)]
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, encoding="ascii", env=environment, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")  # a slow bfloat16 is said before
    assert r"\xe9" in done.stderr
    assert "PYTHONUTF8=1" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_stop_string_that_the_locale_took_apart_is_refused():
    """Refuse `fin é` in the form that it has where the locale is ASCII and the terminal UTF-8."""
    with pytest.raises(InputError, match=r"stop_strings.*PYTHONUTF8=1"):
        parse_arguments([PPOArguments, PPOConfig, ModelArguments], ["--stop_strings", "fin \udcc3\udca9"], "test")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_config_is_read_once(tmp_path):
    """Read a config from `--config <(generate)`, which gives its content to the first reader only."""
    import threading

    pipe = tmp_path / "ppo.yaml"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("kl_coef: 0.25\n",), kwargs={"encoding": "utf-8"})
    writer.start()
    _, training, _ = parse_arguments([PPOArguments, PPOConfig, ModelArguments], ["--config", str(pipe)], "test")
    writer.join()
    assert training.kl_coef == 0.25
