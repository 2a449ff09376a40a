"""Environments by name: what the flag takes, refuses, and a run of the command line."""

import json
import random
from functools import partial

import pytest
from http_double import HTTPDouble, chat

from hf_rlhf.cli import main
from hf_rlhf.environments import (
    CartPole,
    Dialogue,
    FrozenLake,
    GymText,
    Recommendation,
    Segmented,
    ToolUse,
    Turn,
    load_environment,
)
from hf_rlhf.environments.named import ENVIRONMENTS
from hf_rlhf.errors import InputError

FILE = '''
from hf_rlhf.environments import Turn


class Longer:
    """Asks twice, and pays for words."""

    def reset(self, row, rng):
        self.turn = 0
        return row["prompt"]

    def step(self, completion):
        self.turn += 1
        reward = float(len(completion.split()))
        if self.turn == 2:
            return Turn(reward=reward, terminated=True)
        return Turn(({"role": "user", "content": "more ?"},), reward=reward)


class NeedsArguments:
    def __init__(self, size):
        self.size = size


class ForTRL:
    def reset(self, **row):
        return None

    def get_reward(self):
        return 1.0


def user(messages, row, rng):
    return "go on"


def reached(messages, row):
    return 1.0 if messages[-1]["content"] == "yes" else None


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def paid(prompts, completions):
    return [float(len(completion[0]["content"])) for completion in completions]


def joined(turns, shown, ended):
    return " ".join([done for _, done in turns])


def render(observation):
    return str(observation)


def parse(text):
    return int(text) if text.isdigit() else None
'''
SMALL = [
    "--num_mini_batches",
    "1",
    "--num_ppo_epochs",
    "1",
    "--max_completion_length",
    "4",
    "--max_prompt_length",
    "16",
]
ROW = {"prompt": [{"role": "user", "content": "hello"}], "lines": ["a"]}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "lines.txt").write_text("first\n\nsecond\n", encoding="utf-8")
    return tmp_path / "mine.py"


def begun(text):
    env = load_environment(text)()
    env.reset(ROW, random.Random(0))
    return env


def test_each_name_makes_its_environment(file):
    lines = file.parent / "lines.txt"
    kinds = {
        f"{file}:Longer": "Longer",
        "dialogue:column=lines": Dialogue,
        f"dialogue:lines={lines},max_turns=2": Dialogue,
        f"dialogue:user={file}:user,reached={file}:reached": Dialogue,
        f"tools:functions={file}:add,max_calls=2": ToolUse,
        "frozen_lake": FrozenLake,
        "cart_pole:penalty=0.5": CartPole,
        f"gym:env=FrozenLake-v1,render={file}:render,parse={file}:parse": GymText,
        "recommendation:items=3": Recommendation,
        f'segments:environment="gym:env=FrozenLake-v1,render={file}:render,parse={file}:parse",reward={file}:paid': Segmented,
        f"trl:environment={file}:ForTRL": ToolUse,
    }
    for text, kind in kinds.items():
        env = begun(text)
        assert type(env).__name__ == kind if isinstance(kind, str) else isinstance(env, kind), text
    assert {text.partition(":")[0] for text in list(kinds)[1:]} == set(ENVIRONMENTS)


def test_arguments_arrive(file):
    dialogue = begun(f"dialogue:lines={file.parent / 'lines.txt'},max_turns=2,reached={file}:reached")
    assert dialogue.step("no").messages[0]["content"] == "first"
    assert dialogue.step("yes").reward == 1.0
    assert begun("dialogue:column=lines").step("x").messages[0]["content"] == "a"
    lake = "environment='frozen_lake:progress=true'"
    segments = begun(f"segments:{lake},turns=2,reward={file}:paid,render={file}:joined")
    turns = [segments.step(word) for word in ("down", "down")]
    assert [turn.reward for turn in turns] == [0.0, len("down down")]
    assert turns[1].info["true_return"] == 2.0
    assert begun("cart_pole:penalty=0.5").step("wait").reward == 0.5
    assert begun(f"trl:environment={file}:ForTRL").step("done").reward == 1.0


def test_a_server_plays_the_user(monkeypatch):
    monkeypatch.setenv("USER_KEY", "secret")
    with HTTPDouble(chat("Go on.")) as server:
        text = f"dialogue:model=m,url={server.url},api_key_env=USER_KEY,persona=a cook,goal=soup,max_tokens=7,temperature=0.5"
        assert begun(text).step("x").messages[0]["content"] == "Go on."
    [(_, body)] = server.requests
    assert (body["max_tokens"], body["temperature"]) == (7, 0.5)
    assert "a cook" in body["messages"][0]["content"]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_a_model_plays_the_user(model_folder):
    turn = begun(f"dialogue:model={model_folder},max_tokens=3").step("hello")
    assert isinstance(turn, Turn)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dialog:column=x", "environment=dialog:column=x is invalid: there is no environment 'dialog'. Did you mean 'dialogue'"),
        ("dialogues", "there is none of that name. Did you mean 'dialogue'"),
        ("dialogue", "it has no user. Give one of column, lines, user, model"),
        ("dialogue:column=a,lines=b", "it has column and lines"),
        ("dialogue:column=a,persona=b", "persona=b is invalid without model"),
        ("dialogue:model=a,api_key_env=b", "api_key_env=b is invalid without url"),
        ("dialogue:lines=nowhere.txt", "lines=nowhere.txt is invalid: it cannot be read"),
        ("dialogue:column=a,max_turns=x", "environment=dialogue:column=a,max_turns=x is invalid: max_turns=x is not a whole number"),
        ("dialogue:colum=a", "it takes no 'colum'. Did you mean 'column'"),
        ("frozen_lake:size=5", "size=5"),
        ("segments:environment=frozen_lake", "segments needs reward"),
        ("segments:environment=frozen_lak,reward=FILE:paid", "environment=frozen_lak is invalid"),
        ("segments:environment=frozen_lake,reward=FILE:paid,turns=0", "turns=0 is invalid"),
        ("segments:environment=frozen_lake,reward=nowhere", "reward model 'nowhere': there is no such folder"),
        ("tools", "tools needs functions"),
        ("tools:functions=", "it names none"),
        ("FILE:Missing", "there is no 'Missing' in it"),
        ("FILE:NeedsArguments", "making one raised TypeError"),
        ("FILE:ForTRL", "has no step. For a class of trl's environment_factory, write trl:environment="),
        ("nowhere.py:Class", "environment=nowhere.py:Class is invalid: there is no file"),
    ],
)  # fmt: skip
def test_what_names_no_environment_is_refused(text, reason, file):
    with pytest.raises(InputError) as refused:
        load_environment(text.replace("FILE", str(file)))
    assert reason in str(refused.value)


def test_a_run_needs_no_reward_beside_an_environment_that_pays(flags, file, write_rows, tmp_path):
    rows = write_rows([{"prompt": [{"role": "user", "content": f"the cat {i % 3}"}]} for i in range(8)])
    ppo = [
        *flags, *SMALL, "--dataset_name", rows, "--environment", f"{file}:Longer", "--max_steps", "2", "--max_turns", "3",
    ]  # fmt: skip
    assert main(["ppo", *ppo]) == 0
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["episodes/turns"] for row in logged if "episodes/turns" in row] == [2.0, 2.0]
    assert all(row["rewards/environment/mean"] == row["reward"] > 0 for row in logged if "reward" in row)


def test_a_wrong_environment_or_none_is_said_before_anything_is_written(flags, failing, write_rows):
    rows = write_rows([{"prompt": "hello"}] * 4)
    assert "or an environment that pays" in failing("ppo", *flags, "--dataset_name", rows)
    assert "environment=none is invalid" in failing("ppo", *flags, "--dataset_name", rows, "--environment", "none")
    missing = failing("ppo", *flags, *SMALL, "--dataset_name", rows, "--environment", "dialogue:column=lines")
    assert "it reads lines, and the dataset has no such column (it has prompt" in missing


def test_an_object_of_a_file_may_give_arguments(tmp_path):
    (tmp_path / "made.py").write_text(
        "from functools import partial\nfrom hf_rlhf.environments import Dialogue\nmine = partial(Dialogue, ['why ?'])\n",
        encoding="utf-8",
    )
    made = load_environment(f"{tmp_path / 'made.py'}:mine")
    assert isinstance(made, partial)
    assert isinstance(made(), Dialogue)
