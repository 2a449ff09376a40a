"""Arithmetic that rules verify: the rows of the recipe and its rewards."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_rlhf.data.files import read_rows
from hf_rlhf.rewards import make_reward

FOLDER = Path(__file__).parents[2] / "recipes/configs/arithmetic"


@pytest.fixture(scope="module")
def arithmetic():
    spec = importlib.util.spec_from_file_location("problems", FOLDER / "problems.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_problems_are_right_the_same_for_a_seed_and_rows_of_ppo(arithmetic, tmp_path):
    rows = arithmetic.problems(50, seed=3)
    assert rows == arithmetic.problems(50, seed=3) != arithmetic.problems(50, seed=4)
    for row in rows:
        _, _, first, sign, second, *_ = row["prompt"][0]["content"].replace("?", " ").split()
        assert int(row["answer"]) == (int(first) + int(second) if sign == "+" else int(first) - int(second))
    made = subprocess.run(
        [sys.executable, FOLDER / "problems.py", "--count", "5"], capture_output=True, text=True, check=True
    )
    (tmp_path / "arithmetic.jsonl").write_text(made.stdout)
    read = read_rows(str(tmp_path / "arithmetic.jsonl"))
    assert [row["answer"] for row in read.dataset] == [row["answer"] for row in arithmetic.problems(5)]


def test_the_rewards_of_the_config_verify_the_number_and_the_form():
    number, form = map(make_reward, yaml.safe_load((FOLDER / "ppo.yaml").read_text())["reward_funcs"])
    paid = {
        "Answer: -3": (1, 1), "5 - 8 is -3. Answer: -3.": (1, 1), "Answer: 4": (0, 1), "-3": (0, 0),
        "Answer: -3 or so": (1, 0), "Well.\nAnswer: -3": (1, 0),
    }  # fmt: skip
    texts = list(paid)
    assert list(zip(number(texts, texts, answer=["-3"] * 6), form(texts, texts), strict=True)) == list(paid.values())
    assert (number.shaping.weight, form.shaping.weight) == (1.0, 0.2)
