import json

import pytest
from rewards.test_sources import bert
from tiny import make_tokenizer, make_trainer

from hf_rlhf.errors import InputError
from hf_rlhf.ppo.scores import ScoreShaper


def keyed(prompts, completions, log_extra):
    log_extra("words", [len(completion[0]["content"].split()) for completion in completions])
    keyed.calls += len(completions)
    return [float("happy" in completion[0]["content"]) for completion in completions]


keyed.cache_key, keyed.calls = "1", 0


def rows_of(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_second_run_takes_its_rewards_from_the_first_and_is_the_same_run(tmp_path):
    model = tmp_path / "model"
    bert(max_position_embeddings=64).save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    keyed.calls = 0
    for run in ("first", "second"):
        make_trainer(
            tmp_path / run, reward=[keyed, str(model)], reward_cache=str(tmp_path / "cache"), eval_strategy="no"
        ).train()
    first, second = (rows_of(tmp_path / run)[:-1] for run in ("first", "second"))
    for name in ("keyed", "model"):
        assert first[0][f"rewards/{name}/cached"] < 1
        assert [row[f"rewards/{name}/cached"] for row in second] == [1.0] * len(second)
    assert keyed.calls <= 16
    same = ("reward", "objective/scores", "loss", "rewards/model/mean")
    assert [[row[key] for key in same] for row in first] == [[row[key] for key in same] for row in second]
    assert rows_of(tmp_path / "first", "samples.jsonl") == rows_of(tmp_path / "second", "samples.jsonl")


def test_a_cache_that_cannot_be_opened_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="reward_cache="):
        make_trainer(tmp_path / "run", reward_cache=str(tmp_path / "file"))


def test_the_trainer_pays_what_the_flags_and_arguments_say_of_each_part(tmp_path):
    trainer = make_trainer(
        tmp_path,
        reward=[keyed, "regex:pattern=happy,weight=-2,normalize=true"],
        reward_clips=[0.5, float("inf")],
    )
    assert isinstance(trainer.shaper, ScoreShaper)
    assert trainer.rewards.weights == [1.0, -2.0]
    assert (trainer.shaper.parts["keyed"].clip, trainer.shaper.parts["regex"].normalize) == (0.5, True)
    trainer.train()
    assert trainer.algorithm_state()["part_moments"]["regex"]["count"] == 16
