"""Trajectories hold the numbers that the loss saw, whole and once, however the run is cut, stopped or resumed."""

import shutil
from pathlib import Path

import pytest
import torch
from environments.games import Fails, TwoTurns
from invariance.runs import number_reward
from pyarrow import parquet
from ranks import run_ranks
from tiny import happy_reward, make_model, make_tokenizer, make_trainer
from trajectories import completion_row

from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.ppo.trajectories import COLUMNS, PER_TOKEN, trajectory_files, write_trajectories

EVERY = {"log_trajectories": 1, "max_steps": 8}


def written(folder):
    """The rows of each iteration."""
    return {iteration: parquet.read_table(file).to_pylist() for iteration, file in trajectory_files(folder).items()}


def keep_experience(trainer):
    """Let the trainer keep the experience of each iteration, as its loss takes it; returns where."""
    kept, make = [], trainer.make_experience
    trainer.make_experience = lambda *args: kept.append(make(*args)) or kept[-1]
    return kept


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"critic": "adapter", "whiten_rewards": True, "top_k": 6},
        {"advantage_estimator": "leave_one_out", "num_generations": 2, "vf_coef": 0.0},
        {"advantage_estimator": "dae"},
        {"kl_in_loss": True, "kl_estimator": "k3", "first_greedy_tokens": 2},
    ],
    ids=["value head", "adapter", "no critic", "advantage head", "greedy start"],
)
def test_the_numbers_are_those_of_the_experience_to_the_bit(tmp_path, flags):
    trainer = make_trainer(tmp_path, reward=number_reward, **EVERY, **flags)
    kept = keep_experience(trainer)
    trainer.train()
    found = written(tmp_path)
    assert list(found) == [1, 2]
    for experience, rows in zip(kept, found.values(), strict=True):
        assert [row["row"] for row in rows] == list(range(8))
        for b, row in enumerate(rows):
            mask = experience.mask[b]
            assert row["completion_mask"] == mask[: len(row["completion_ids"])].tolist()
            assert not mask[len(row["completion_ids"]) :].any()
            prompt = experience.sequences.prompt_lengths[b]
            ids = experience.sequences.input_ids[b][experience.sequences.attention_mask[b]].tolist()
            assert (row["prompt_ids"], row["completion_ids"]) == (ids[:prompt], ids[prompt:])
            for name in PER_TOKEN:
                assert [number is not None for number in row[name]] == row["completion_mask"]
                numbers = torch.tensor([number for number in row[name] if number is not None])
                assert torch.equal(numbers, getattr(experience, name)[b][mask]), name
            assert row["kl_coef"] == experience.kl_coef
            assert (row["reward"] is None) == (row["score"] is None)
            assert row["reward"] is not None or not mask.any()
    assert {row["reward"] is None for rows in found.values() for row in rows} == {True, False}


def test_a_row_says_where_it_belongs_and_what_was_paid(tmp_path):
    make_trainer(tmp_path, reward=number_reward, use_score_scaling=True, **EVERY).train()
    samples = make_samples(tmp_path)
    for iteration, rows in written(tmp_path).items():
        for row, sample in zip(rows, samples[iteration], strict=False):
            for name in ("iteration", "step", "completion", "reward", "rewards", "score", "stopped"):
                assert row[name] == sample.get(name), name
            assert "".join(row["tokens"]) == make_tokenizer().decode(row["completion_ids"])
            assert row["turns"] == [
                {"role": "policy", "start": 0, "end": len(row["tokens"]), "text": "".join(row["tokens"])}
            ]


def make_samples(folder):
    """The rows of samples.jsonl by iteration."""
    from hf_rlhf.records import read_json_lines

    by_iteration = {}
    for row in read_json_lines(folder / "samples.jsonl"):
        by_iteration.setdefault(row["iteration"], []).append(row)
    return by_iteration


def test_a_run_writes_none_unless_it_is_asked(tmp_path):
    make_trainer(tmp_path, max_steps=4).train()
    assert not (tmp_path / "trajectories").exists()


def test_every_so_many_iterations_and_so_many_rows(tmp_path):
    make_trainer(tmp_path, log_trajectories=2, num_logged_trajectories=3, max_steps=16).train()
    found = written(tmp_path)
    assert list(found) == [1, 3]
    assert [len(rows) for rows in found.values()] == [3, 3]
    assert [rows[0]["step"] for rows in found.values()] == [0, 8]


@pytest.mark.parametrize("flag", ["log_trajectories", "num_logged_trajectories"])
def test_less_than_one_is_an_error(tmp_path, flag):
    with pytest.raises(InputError, match=f"{flag}=0 is invalid: it must be at least 1"):
        make_trainer(tmp_path, **{flag: 0})


def test_turns_of_an_episode_say_who_wrote_which_tokens(tmp_path):
    trainer = make_trainer(
        tmp_path,
        model=make_model(make_tokenizer(), max_position_embeddings=256),
        trainer_kwargs={"environment": TwoTurns},
        first_greedy_tokens=1,
        **EVERY,
    )
    kept = keep_experience(trainer)
    trainer.train()
    for experience, rows in zip(kept, written(tmp_path).values(), strict=True):
        for b, row in enumerate(rows):
            assert [turn["role"] for turn in row["turns"]] == ["policy", "environment", "policy"]
            first, between, second = row["turns"]
            assert (first["start"], second["end"]) == (0, len(row["tokens"]))
            assert (first["end"], between["end"]) == (between["start"], second["start"])
            assert "user" in between["text"]
            said = row["completion_ids"][second["start"] :]
            assert row["completion"] == make_tokenizer().decode(said, skip_special_tokens=True)
            chosen = [  # all but the first of each completion, which is taken without a draw
                turn["role"] == "policy" and t > turn["start"]
                for turn in row["turns"]
                for t in range(turn["start"], turn["end"])
            ]
            assert row["completion_mask"] == chosen == experience.mask[b, : len(chosen)].tolist()
            assert row["bootstrap"] == experience.bootstrap[b].item()
            assert sum(row["rewards"].values()) == pytest.approx(row["reward"])


def test_an_episode_that_failed_is_there_with_its_reason(tmp_path):
    make_trainer(
        tmp_path,
        model=make_model(make_tokenizer(), max_position_embeddings=256),
        trainer_kwargs={"environment": Fails},
        max_failed_episodes=0.5,
        log_trajectories=1,
        max_steps=4,
    ).train()
    (rows,) = written(tmp_path).values()
    failed = [row for row in rows if row["failure"] is not None]
    assert failed
    assert len(failed) < len(rows)
    for row in failed:
        assert "out of order" in row["failure"]
        assert row["reward"] is None
        assert not any(row["completion_mask"])


def test_a_loop_of_the_user_writes_the_same(tmp_path):
    make_trainer(tmp_path / "train", **EVERY).train()
    loop = make_trainer(tmp_path / "loop", **EVERY)
    for iteration in range(2):
        prompts = [row["prompt"] for row in loop.prompts.rows(iteration)]
        completions = loop.generate(prompts)
        texts = [loop.processing_class.decode(each.ids, skip_special_tokens=True) for each in completions]
        loop.step(prompts, completions, happy_reward(prompts, texts))
    one, other = written(tmp_path / "train"), written(tmp_path / "loop")
    for rows in (*one.values(), *other.values()):
        for row in rows:
            del row["rewards"]  # whose name is another
    assert one == other


# Resuming


SAVES = {"save_strategy": "steps", "save_steps": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of four iterations, each with a checkpoint."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    make_trainer(folder, log_trajectories=1, **SAVES, max_steps=16).train()
    return folder


def contents(folder):
    return {iteration: file.read_bytes() for iteration, file in trajectory_files(folder).items()}


def resumed(whole, folder, checkpoint, **flags):
    """Resume a copy of the run from one of its checkpoints."""
    shutil.copytree(whole, folder)
    for newer in folder.glob("checkpoint-*"):
        if int(newer.name.split("-")[1]) > checkpoint:
            shutil.rmtree(newer)
    make_trainer(folder, **{"log_trajectories": 1, "max_steps": 16, **SAVES, **flags}).train("auto")
    return folder


def test_a_resumed_run_has_the_files_of_a_run_without_a_break(whole, tmp_path):
    folder = resumed(whole, tmp_path / "run", 8)
    assert list(contents(folder)) == [1, 2, 3, 4]
    assert contents(folder) == contents(whole)
    assert not [path for path in (folder / "trajectories").iterdir() if path.name.startswith(".")]


def test_what_the_resumed_run_does_not_write_again_is_not_left_from_before(whole, tmp_path):
    folder = resumed(whole, tmp_path / "run", 8, log_trajectories=None)
    assert list(contents(folder)) == [1, 2]


def test_a_run_killed_before_its_first_checkpoint_begins_anew(whole, tmp_path, caplog):
    folder = tmp_path / "run"
    (folder / "trajectories").mkdir(parents=True)
    shutil.copy(trajectory_files(whole)[4], folder / "trajectories")
    with pytest.raises(InputError, match="holds trajectories"):
        make_trainer(folder, **EVERY).train()
    make_trainer(folder, **EVERY).train("auto")
    assert list(contents(folder)) == [1, 2]
    assert (folder / "trajectories.set-aside" / "iteration-000004.parquet").exists()


# Files


def test_datasets_reads_all_iterations_as_one_table(whole):
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(whole / "trajectories" / "*.parquet"), split="train")
    assert rows.column_names == list(COLUMNS)
    assert rows["iteration"][:] == [1] * 8 + [2] * 8 + [3] * 8 + [4] * 8
    assert rows.features["values"].feature.dtype == "float32"


def test_an_iteration_without_any_reward_of_a_kind_has_the_same_columns(tmp_path):
    rows = [completion_row(["a", "b"]) | {"rewards": {"x": 1.0, "y": None}, "bootstrap": None}]
    write_trajectories(tmp_path, rows, iteration=1, step=0)
    write_trajectories(tmp_path, [rows[0] | {"rewards": {"x": None, "y": 2.0}, "bootstrap": 1.0}], iteration=2, step=4)
    one, other = (parquet.read_schema(file) for file in trajectory_files(tmp_path).values())
    assert one.equals(other)


def test_a_file_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "trajectories").write_text("in the way")
    with pytest.raises(RunFailed, match=r"iteration-000001\.parquet cannot be written"):
        write_trajectories(tmp_path, [completion_row(["a"])], iteration=1, step=0)


def test_rewards_without_names_are_written_too(tmp_path):
    write_trajectories(tmp_path, [completion_row(["a"]) | {"rewards": None}], iteration=1, step=0)
    assert written(tmp_path)[1][0]["rewards"] is None


# Ranks


def test_two_ranks_write_what_one_process_writes(tmp_path):
    from ppo.trajectories_script import RUNS, train

    run_ranks([Path(__file__).with_name("trajectories_script.py"), tmp_path / "two"], folder=tmp_path)
    for name in RUNS:
        train(tmp_path / "one", name)
        alone, together = (written(tmp_path / place / name) for place in ("one", "two"))
        assert list(together) == list(alone) == [1, 2]
        for iteration, rows in alone.items():
            for row, twin in zip(rows, together[iteration], strict=True):
                assert set(row) == set(twin)
                for column, value in row.items():
                    if column in PER_TOKEN:
                        assert [number is None for number in twin[column]] == [number is None for number in value]
                        numbers, others = ([n for n in each if n is not None] for each in (value, twin[column]))
                        assert others == pytest.approx(numbers, rel=1e-4, abs=1e-5), column
                    elif isinstance(value, float):
                        assert twin[column] == pytest.approx(value, rel=1e-5, abs=1e-6), column
                    else:
                        assert twin[column] == value, column
