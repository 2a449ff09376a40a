"""The recipes from the command line, and what they leave behind, loaded without this package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from ranks import run_ranks
from tiny_data import PPO_FLAGS, conversational_pairs, plain_pairs, prompt_rows

from hf_rlhf.cli import main
from hf_rlhf.errors import InputError
from hf_rlhf.recipes.reward_results import RESULTS

REPOSITORY = Path(__file__).parents[2]
REWARD_FLAGS = ["--num_train_epochs", "20", "--learning_rate", "3e-3", "--logging_steps", "5"]

# Runs in a process in which `import hf_rlhf` fails.
WITHOUT_THIS_PACKAGE = """
import sys
sys.modules["hf_rlhf"] = None
import json, torch
try:
    import hf_rlhf
except ImportError:
    pass
else:
    raise SystemExit("hf_rlhf could be imported")
"""


def run_without_this_package(code, *argv):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_THIS_PACKAGE + code, *map(str, argv)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


def evaluation_of(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_reward_model_needs_separate_evaluation_pairs(capsys, flags, write_rows):
    """The same pairs in training and evaluation are a leak, and an error."""
    file = write_rows(conversational_pairs())
    assert main(["reward", "--dataset_name", file, "--eval_dataset_name", file, *flags]) == 2
    assert "in the training set too" in capsys.readouterr().err


@pytest.mark.parametrize("make_pairs", [conversational_pairs, plain_pairs])
def test_reward_recipe_learns_a_rule(make_pairs, flags, write_rows, tmp_path):
    pairs = make_pairs(24)
    train, test = write_rows(pairs[:16], "train.jsonl"), write_rows(pairs[16:], "test.jsonl")
    assert main(["reward", "--dataset_name", train, "--eval_dataset_name", test, *flags, *REWARD_FLAGS]) == 0
    result = evaluation_of(tmp_path / "out")
    assert result["eval_rows"] == 8
    assert result["eval_accuracy"] >= 0.9
    assert result["reload_gap"] < 1e-5
    assert set(result) <= set(RESULTS)  # of which docs/reference/metrics.md says what they mean


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("native", [torch.float32, torch.bfloat16])
def test_every_recipe_takes_the_dtype_that_the_device_multiplies(
    stage, native, monkeypatch, write_rows, tmp_path, flags
):
    loaded = []

    def load(model, *args, **kwargs):
        loaded.append(model.dtype)
        raise InputError("enough")

    monkeypatch.setattr("hf_rlhf.recipes.arguments.native_dtype", lambda device=None: native)
    monkeypatch.setattr(f"hf_rlhf.recipes.{stage}.load_start", load)
    rows = {"sft": [{"text": "the cat"}] * 8, "reward": plain_pairs(8), "ppo": prompt_rows(8)}[stage]
    argv = [stage, "--dataset_name", write_rows(rows), *[flag for flag in flags if flag not in ("--dtype", "float32")]]
    argv += [*PPO_FLAGS, "--reward_funcs", "math:fsum"] if stage == "ppo" else []
    assert main(argv) == 2
    assert loaded == [str(native).removeprefix("torch.")]


def train_happy(flags, write_rows, folder):
    pairs = conversational_pairs(24)
    argv = [
        "reward", "--dataset_name", write_rows(pairs[:16], "train.jsonl"), "--eval_dataset_name",
        write_rows(pairs[16:], "test.jsonl"), *flags, *REWARD_FLAGS, "--output_dir", str(folder),
    ]  # fmt: skip
    assert main(argv) == 0
    return folder


def test_reward_model_loads_in_a_pipeline_with_the_same_score(flags, write_rows, tmp_path):
    from hf_rlhf.models.reward_model import load_reward_model
    from hf_rlhf.rewards.learned import LearnedReward

    folder = train_happy(flags, write_rows, tmp_path / "reward")
    rows = conversational_pairs(6)
    scorer, tokenizer = load_reward_model(str(folder), dtype="float32")
    scores = LearnedReward(scorer, tokenizer)([row["prompt"] for row in rows], [row["chosen"] for row in rows])
    texts = [tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False) for row in rows]
    code = """
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1], function_to_apply="none", device="cpu")
print(json.dumps([classify(text)[0]["score"] for text in json.loads(sys.argv[2])]))
"""
    assert run_without_this_package(code, folder / "merged", json.dumps(texts)) == pytest.approx(scores, abs=1e-4)


def test_ppo_against_a_trained_reward_model_and_back(flags, write_rows, tmp_path, model_folder):
    """Reward adapter on the policy's base, PPO, then plain transformers + peft: the same greedy text."""
    reward = train_happy(flags, write_rows, tmp_path / "reward")
    prompts = write_rows(prompt_rows(), "prompts.jsonl")
    argv = ["ppo", "--dataset_name", prompts, "--eval_dataset_name", prompts, "--reward_model_path", str(reward)]
    assert main([*argv, *flags, *PPO_FLAGS, "--max_steps", "6"]) == 0
    folder = tmp_path / "out"
    for name in ("README.md", "curves.png", "metrics.jsonl", "samples.jsonl", "config.yaml", "versions.json"):
        assert (folder / name).is_file(), name

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_rlhf.models.policy import wrap_policy
    from hf_rlhf.rollout.engines import TransformersEngine
    from hf_rlhf.rollout.sampling import Sampling

    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    policy = wrap_policy(PeftModel.from_pretrained(base, folder))
    ids = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
        for row in prompt_rows(4)
    ]
    ours = TransformersEngine(policy, tokenizer).generate(ids, Sampling(6, temperature=0), [0] * 4)
    code = """
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
out = [model.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                      max_new_tokens=6, do_sample=False)[0, len(ids):].tolist() for ids in json.loads(sys.argv[2])]
print(json.dumps(out))
"""
    theirs = run_without_this_package(code, folder, json.dumps(ids))
    assert [completion.ids for completion in ours] == theirs


@pytest.mark.parametrize("stage", ["sft", "ppo", "reward"])
def test_the_card_says_what_was_trained_and_names_no_folder_of_this_machine(
    flags, write_rows, tmp_path, monkeypatch, stage
):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = [row | {"completion": row["chosen"]} for row in conversational_pairs()]
    write_rows([{key: row[key] for key in row if stage != "sft" or key in ("prompt", "completion")} for row in rows])
    extra = [*PPO_FLAGS, "--reward_funcs", f"{tiny.__file__}:happy_reward"] if stage == "ppo" else []
    argv = [stage, "--dataset_name", "~/rows.jsonl", *flags, *extra, "--max_steps", "1", "--use_peft", "false"]
    assert main(argv) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "transformers"
    assert {"datasets", "base_model"}.isdisjoint(card.data.to_dict())
    assert str(tmp_path) not in str(card)
    assert "~" not in str(card)
    assert "More Information Needed" not in str(card)
    assert ("tiny.py:happy" in str(card)) == (stage == "ppo")
    assert str(Path(tiny.__file__).parent) not in str(card)


def test_ppo_starts_from_an_sft_adapter(flags, write_rows, tmp_path):
    """SFT, then PPO from its adapter: the KL to the reference starts at 0, so the reference is the SFT model."""
    rows = [row | {"completion": [{"role": "assistant", "content": "happy cat"}]} for row in prompt_rows()]
    sft = tmp_path / "sft"
    argv = ["sft", "--dataset_name", write_rows(rows, "sft.jsonl"), *flags, "--output_dir", str(sft)]
    assert main([*argv, "--max_steps", "3", "--learning_rate", "1e-2"]) == 0
    argv = ["ppo", "--dataset_name", write_rows(prompt_rows()), "--reward_funcs", "tiny:happy_reward", *flags]
    assert main([*argv, *PPO_FLAGS, "--model_name_or_path", str(sft)]) == 0
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)


def test_script_runs_under_two_ranks(flags, write_rows, tmp_path):
    """`recipes/ppo.py` as a launcher starts it, with two real processes."""
    argv = [
        "--dataset_name", write_rows(prompt_rows()), "--reward_funcs", "tiny:happy_reward", *flags, *PPO_FLAGS,
    ]  # fmt: skip
    result = run_ranks([REPOSITORY / "recipes" / "ppo.py", *argv], folder=tmp_path)
    assert "x 2 ranks" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["episode"] for row in rows if "episode" in row] == [8, 16]


def test_pairs_that_are_too_long_are_neither_counted_as_trained_on_nor_evaluated(flags, write_rows, tmp_path):
    long = {"prompt": "the ", "chosen": "cat " * 30, "rejected": "dog"}
    train, test = write_rows([*plain_pairs(), long]), write_rows([*plain_pairs(24)[18:], long | {"rejected": "mat"}], "test.jsonl")  # fmt: skip
    argv = ["--dataset_name", train, "--eval_dataset_name", test, "--max_length", "20", "--max_steps", "1"]
    assert main(["reward", *argv, *flags, "--save_merged", "false"]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (found["train_rows"], found["eval_rows"]) == (16, 6)
