"""Preferences between segments of a game, from the first question to the policy, by the commands that people type."""

import json

import pytest

from hf_rlhf.cli import main
from hf_rlhf.feedback import FeedbackStore
from hf_rlhf.feedback.page.views import shown_task
from hf_rlhf.records import read_json_lines

GAME = '''
from hf_rlhf.environments import Turn


class Praise:
    """Six turns about a cat or a dog, which pay each `good` that is said and charge each `bad`."""

    def reset(self, row, rng):
        self.turn, self.pet = 0, rng.choice(["cat", "dog"])
        return [*row["prompt"][:-1], {"role": "user", "content": row["prompt"][-1]["content"] + " the " + self.pet}]

    def step(self, completion):
        self.turn += 1
        words = completion.split()
        pet = ({"role": "user", "content": "the " + self.pet},)
        return Turn(pet, reward=float(words.count("good") - words.count("bad")), terminated=self.turn == 6)
'''
PLAY = [
    "--turns",
    "3",
    "--episodes",
    "40",
    "--max_completion_length",
    "6",
    "--comparisons",
    "150",
    "--dtype",
    "float32",
]


@pytest.fixture
def files(tmp_path, write_rows):
    (tmp_path / "game.py").write_text(GAME, encoding="utf-8")
    rows = write_rows([{"prompt": [{"role": "user", "content": f"hello {n}"}]} for n in range(2)], "prompts.jsonl")
    return {"dataset_name": rows, "environment": f"{tmp_path / 'game.py'}:Praise"}


def as_flags(values):
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def test_the_chain_from_questions_to_a_policy_by_commands(files, model_folder, flags, tmp_path, capsys):
    model = ["--model_name_or_path", model_folder]
    for name, seed in (("train", 0), ("test", 1)):
        store = str(tmp_path / f"{name}.db")
        asked = [*as_flags(files), *PLAY, *model, "--store", store, "--seed", str(seed), "--simulated_answers", "150"]
        assert main(["segments", *asked]) == 0
        assert main(["feedback", "export", store, "--output_dir", str(tmp_path / name)]) == 0
    assert "A of the first question:\nthe " in capsys.readouterr().out
    rows = {name: read_json_lines(tmp_path / name / "preferences.jsonl") for name in ("train", "test")}
    assert all(row["annotators"] == ["simulated"] and "ratings" not in row for row in rows["train"])
    assert all(_paid(row["chosen"]) > _paid(row["rejected"]) for row in rows["train"])  # an annotator without noise
    assert not {json.dumps(row["chosen"]) for row in rows["test"]} & {
        json.dumps(row["chosen"]) for row in rows["train"]
    }
    common = dict(zip(flags[::2], flags[1::2], strict=True)) | {"--output_dir": str(tmp_path / "reward")}
    reward = {
        "dataset_name": tmp_path / "train/preferences.jsonl", "eval_dataset_name": tmp_path / "test/preferences.jsonl",
        "learning_rate": 3e-3, "num_train_epochs": 10, "use_peft": "false", "center_rewards_coefficient": 0.01,
    }  # fmt: skip
    assert main(["reward", *_flat(common), *as_flags(reward)]) == 0
    assert json.loads((tmp_path / "reward/evaluation.json").read_text())["eval_accuracy"] > 0.8
    ppo = {
        **files, "environment": f'segments:environment={files["environment"]},turns=3,reward={tmp_path / "reward"}',
        "rollout_batch_size": 8, "num_generations": 4, "max_steps": 2, "num_ppo_epochs": 1, "max_completion_length": 6,
        "max_prompt_length": 16, "max_episode_length": 96,
    }  # fmt: skip
    assert main(["ppo", *_flat(common | {"--output_dir": str(tmp_path / "policy")}), *as_flags(ppo)]) == 0
    logged = [row for row in read_json_lines(tmp_path / "policy/metrics.jsonl") if "reward" in row]
    assert all(row["episodes/turns"] == 6 and row["reward"] == row["rewards/environment/mean"] for row in logged)
    assert all(row["episodes/true_return"] != row["reward"] for row in logged)


def _paid(completion):
    done = [line.split() for line in completion[0]["content"].splitlines() if line.startswith(">")]
    return sum(words.count("good") - words.count("bad") for words in done)


def _flat(flags):
    return [part for pair in flags.items() for part in pair]


def test_people_are_asked_first_what_the_simulated_annotator_was_not(files, model_folder, tmp_path):
    store = tmp_path / "feedback.db"
    play = [*as_flags(files), *PLAY, "--model_name_or_path", model_folder, "--store", str(store)]
    for _ in range(2):  # the second time nothing is new
        assert main(["segments", *play, "--simulated_answers", "100", "--annotator_tie_margin", "0.5"]) == 0
    with FeedbackStore(store) as feedback:
        answers = feedback.current()
        assert (len(list(feedback.tasks())), len(answers)) == (150, 100)
        assert {event.annotator_kind for event in answers} == {"rule"}
        assert {event.value["preferred"] for event in answers} == {0, 1, "tie"}
        task = feedback.next_task("ann")
        assert task.id not in {event.task for event in answers}
    shown = shown_task(task, [1, 0])
    assert shown["form"]["question"] == "Which one plays better?"
    assert shown["prompt"][-1]["content"].startswith("hello")
    assert "ratings" not in json.dumps(shown)
    assert [turns[0]["content"] for turns in shown["completions"]] == task.texts[::-1]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"environment": None}, "environment is missing"),
        ({"environment": "frozen_lak"}, "environment=frozen_lak is invalid"),
        ({"turns": "40"}, "turns=40 is invalid: an episode of max_turns=32 has no such segment"),
        ({"annotator_noise": "-1"}, "annotator_noise=-1.0 is invalid"),
        ({"comparisons": "100000"}, "comparisons=100000 is invalid: the 40 segments that were played have"),
        ({"render": "nowhere.py:f"}, "render=nowhere.py:f is invalid"),
    ],
)
def test_what_is_wrong_is_said_before_a_store_is_made(changed, reason, files, model_folder, tmp_path, capsys):
    play = {**files, "model_name_or_path": model_folder, "store": tmp_path / "feedback.db", "episodes": 20, "turns": 3}
    given = {name: value for name, value in (play | changed).items() if value is not None}
    assert main(["segments", *as_flags(given), "--max_completion_length", "6", "--dtype", "float32"]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "feedback.db").exists()
