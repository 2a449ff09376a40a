"""The flags that say what is trained and evaluated on: a mixture, held-out prompts, margins and weights of ratings."""

import json

import pytest
import yaml
from tiny_data import conversational_pairs, prompt_rows

from hf_rlhf.cli import main
from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.data.rows import read_columns
from hf_rlhf.errors import InputError
from hf_rlhf.recipes.arguments import DataArguments, ModelArguments, RewardArguments, RewardTrainingArguments
from hf_rlhf.recipes.data import margins_are_used, pairs_for_loss, reward_sets
from hf_rlhf.recipes.mixture import MixtureDataset


def scored(count=40):
    whole = []
    for n, row in enumerate(conversational_pairs(count)):
        asked = [{"role": "user", "content": f"the cat {n // 2}"}]
        answers = {name: asked + row[name] for name in ("chosen", "rejected")}
        whole.append(answers | {"score_chosen": 7.0 + n, "score_rejected": 1.0})
    return whole


@pytest.fixture
def sets(tmp_path, model_folder):
    """The sets of a reward model by the keys of a YAML file."""
    from tiny import make_tokenizer

    def read(*argv, **keys):
        file = tmp_path / "reward.yaml"
        common = {"output_dir": str(tmp_path / "out"), "use_cpu": True, "per_device_train_batch_size": 2}
        file.write_text(yaml.safe_dump(common | {"report_to": "none"} | keys), encoding="utf-8")
        classes = [RewardArguments, RewardTrainingArguments, ModelArguments]
        script, training, _ = parse_arguments(classes, ["--config", str(file), *argv], "test")
        return script, reward_sets(script, training, make_tokenizer())

    return read


def test_a_share_of_the_prompts_is_held_out_of_one_file(sets, write_rows):
    _, found = sets(dataset_name=write_rows(scored()), eval_fraction=0.3)
    train, evaluation = (each.dataset for each in (found.train, found.evaluation))
    assert len(train) + len(evaluation) == 40
    assert not set(map(str, train["prompt"])) & set(map(str, evaluation["prompt"]))
    assert set(evaluation.column_names) == {"prompt", "chosen", "rejected", "margin"}
    said = str(found.report)
    assert said.count(f"held out by their prompts: {len(evaluation)} of 40 rows (eval_fraction=0.3)") == 2
    assert "WARNING" not in said


def test_a_mixture_is_converted_split_and_mixed_with_its_shares(sets, write_rows):
    ranked = [
        {
            "prompt": f"\n\nHuman: the cat {n}\n\nAssistant: ",
            "answers": [{"answer": f"{rank} {n}", "rank": float(rank)} for rank in (1, 2, 3)],
        }
        for n in range(20)
    ]
    mixture = [
        {"path": write_rows(scored(), "scored.jsonl"), "fraction": 1},
        {"path": write_rows(ranked, "ranked.jsonl"), "fraction": 1},
    ]
    _, found = sets(datasets=mixture, eval_fraction=0.3)
    columns = read_columns(found.train.dataset, ["prompt", "source"])
    counts = {name: columns["source"].count(name) for name in ("scored.jsonl", "ranked.jsonl")}
    assert counts["scored.jsonl"] == counts["ranked.jsonl"] > 20
    held = read_columns(found.evaluation.dataset, ["prompt", "source"])
    assert set(held["source"]) == set(counts)
    assert not set(map(str, columns["prompt"])) & set(map(str, held["prompt"]))
    assert [each.source.rpartition("/")[2] for each in found.report.sets] == [
        "scored.jsonl (train)", "ranked.jsonl (train)", "a mixture of 2 datasets",
    ] * 2  # fmt: skip


def test_margins_made_of_scores_are_in_the_loss_only_when_asked_for(sets, write_rows):
    file = write_rows(scored())
    script, found = sets(dataset_name=file)
    assert not margins_are_used(found.train, script)
    assert "margins: not in the loss, unless use_margin is true" in str(found.report)
    assert "margin" not in pairs_for_loss(found.train.dataset, margins=False).column_names
    script, found = sets(dataset_name=file, use_margin=True)
    assert margins_are_used(found.train, script)
    assert "margins: taken by the loss" in str(found.report)
    script, found = sets(dataset_name=write_rows([row | {"margin": 1.5} for row in scored()]))
    assert margins_are_used(found.train, script)
    both = found.train.dataset.select([0, 1]).remove_columns("margin").add_column("margin", [2.0, None])
    assert pairs_for_loss(both, margins=True)["margin"][:] == [2.0, 0.0]


def test_weights_make_the_rating_of_a_row(sets, write_rows):
    rows = [
        {"prompt": f"the cat {n // 2}", "response": f"good {n}", "helpfulness": n % 2, "verbosity": 4 * (1 - n % 2)}
        for n in range(8)
    ]
    file = write_rows(rows)
    weights = ["--rating_weights", "helpfulness:1,verbosity:0.5"]
    _, found = sets(*weights, dataset_name=file)
    assert found.train.dataset["margin"][:] == [1.0] * 4
    assert found.train.dataset[0]["chosen"][0]["content"] == "good 0"
    other = write_rows(conversational_pairs(), "other.jsonl")
    _, found = sets(*weights, datasets=[file, other])
    assert found.train.dataset["margin"][:] == [1.0] * 4 + [None] * 16
    with pytest.raises(InputError, match=r"rating_weights=helpfulness:1,verbosity:0\.5 is invalid: no dataset holds"):
        sets(*weights, dataset_name=other)


def test_a_mixture_is_trained_on_and_its_settings_say_so(flags, write_rows, tmp_path):
    files = [write_rows(rows, name) for rows, name in ((scored(), "scored.jsonl"), (conversational_pairs(), "b.jsonl"))]
    more = ["--eval_fraction", "0.3", "--max_steps", "2", "--datasets", *files]
    assert main(["reward", *flags, *more]) == 0
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert [each["path"] for each in settings["datasets"]] == files
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())
    assert result["eval_rows"] == report["sets"][-1]["rows"] > 0


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_every_stage_takes_a_mixture_and_holds_out_prompts(capsys, flags, write_rows, stage):
    rows = [row | {"completion": [{"role": "assistant", "content": "good"}]} for row in prompt_rows()]
    files = [write_rows(rows[:8], "a.jsonl"), write_rows(rows[8:], "b.jsonl")]
    more = [] if stage == "sft" else ["--max_prompt_length", "32", "--reward_funcs", "none.py:x"]
    size = "--per_device_train_batch_size" if stage == "sft" else "--rollout_batch_size"
    command = [*flags, *more, size, "4", "--eval_fraction", "0.4", "--datasets", *files]
    assert main(["data", stage, *command]) == 0
    said = capsys.readouterr().out
    assert "training: a mixture of 2 datasets" in said
    assert "evaluation: a mixture of 2 datasets" in said
    assert "WARNING" not in said


WRONG = {
    "both": ({"dataset_name": "a.jsonl", "datasets": ["b.jsonl"]}, "dataset_name and datasets name what to train on"),
    "fraction": ({"datasets": [{"path": "a", "fraction": 0}]}, "fraction=0 of a is invalid: it must be a number above 0"),
    "some": ({"datasets": [{"path": "a", "fraction": 1}, "b"]}, "only some have a fraction"),
    "key": ({"datasets": [{"path": "a", "fractoin": 1}]}, 'did you mean "fraction"?'),
    "files": ({"datasets": [{"path": "a", "data_files": "b"}]}, "data_files is not taken here. Give the file"),
    "path": ({"datasets": [{"split": "train"}]}, "it has no path"),
    "kind": ({"datasets": [{"path": "a", "columns": "prompt"}]}, "columns='prompt' of a is invalid: it must be a list"),
    "number": ({"datasets": [3]}, "does not fit"),
    "share": ({"dataset_name": "a", "eval_fraction": 1.0}, "eval_fraction=1.0 is invalid: it must be above 0"),
    "two": ({"dataset_name": "a", "eval_fraction": 0.1, "eval_dataset_name": "b"}, "both name what to evaluate on"),
    "weight": ({"dataset_name": "a", "rating_weights": ["helpfulness"]}, "rating_weights=helpfulness is invalid"),
    "infinite": ({"dataset_name": "a", "rating_weights": ["helpfulness:inf"]}, "rating_weights=helpfulness:inf is invalid"),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "part"), WRONG.values(), ids=WRONG)
def test_a_wrong_flag_is_one_message(sets, keys, part):
    with pytest.raises(InputError) as caught:
        sets(**keys)
    assert part in str(caught.value)


def test_an_evaluation_without_rows_says_both_ways_to_get_some(sets, write_rows):
    file = write_rows(scored())
    with pytest.raises(InputError, match="Give eval_dataset_name, or eval_fraction"):
        sets(dataset_name=file, eval_strategy="epoch")
    with pytest.raises(InputError, match="Give eval_dataset_name or eval_fraction"):
        sets(datasets=[file], eval_strategy="epoch")


def test_datasets_of_one_file_name_keep_names_of_their_own():
    from hf_rlhf.recipes.datasets import _named

    data = DataArguments(datasets=[MixtureDataset("owner/set", "a"), MixtureDataset("owner/set", "b"), "owner/set", "owner/set"])  # fmt: skip
    assert list(_named(data)) == ["owner/set/a", "owner/set/b", "owner/set", "owner/set (2)"]
