"""The quickstart on the real embedded model, small."""

import json

import pytest
from peft import get_peft_model
from tiny import make_base_tokenizer, make_lora, make_model

from hf_rlhf.cli import main
from hf_rlhf.evaluation.before_after import Side
from hf_rlhf.models.adapters import base_of
from hf_rlhf.quickstart import comparison, replies
from hf_rlhf.quickstart.arguments import QuickstartArguments
from hf_rlhf.quickstart.training import policy_computation
from hf_rlhf.recipes import candidates as sampled
from hf_rlhf.rollout.stops import stop_token_ids


def test_replies_before_and_after_end_with_the_turn_whatever_the_models_end_token_is(tmp_path, monkeypatch):
    tokenizer, base, ends = make_base_tokenizer(), tmp_path / "base", []
    make_model(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    get_peft_model(make_model(tokenizer), make_lora()).save_pretrained(tmp_path / "policy")

    def candidates(engine, rows, tokenizer, sampling, seeds, chat_template_kwargs):
        ends.append(stop_token_ids(engine.model, tokenizer, sampling))
        return []

    def measured(model, engine, rows, sampling, seeds, **judges):
        ends.append(stop_token_ids(base_of(model), engine.tokenizer, sampling))
        return Side([], [], [], [], [])

    for stage in (replies, comparison):
        monkeypatch.setattr(stage, "quickstart_prompts", lambda: {"train": ["hello"], "test": ["hello"]})
    monkeypatch.setattr(sampled, "collect", candidates)
    monkeypatch.setattr(comparison, "measure_side", measured)
    monkeypatch.setattr(comparison, "load_reward_model", lambda *args, **kwargs: (None, None))
    args = QuickstartArguments(model_name_or_path=str(base), messages=1)
    replies.sample_candidates(args, tmp_path, tmp_path)
    comparison.compare(args, tmp_path / "reward", tmp_path / "policy", tmp_path)
    assert ends == [tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])] * 4


def test_the_card_names_no_dtype_where_the_policy_recorded_none(tmp_path):
    assert policy_computation(tmp_path).for_card() == {}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quickstart_runs_end_to_end_and_again(tmp_path, capsys):
    """Few candidates and iterations: every file is there, and the second run makes nothing new."""
    folder = tmp_path / "quickstart"
    argv = ["quickstart", "--output_dir", str(folder), "--candidates_per_prompt", "2", "--max_preferences", "48"]
    argv += ["--ppo_iterations", "2", "--messages", "48"]
    assert main(argv) == 0
    for name in (
        "report.html",
        "results.json",
        "plan.json",
        "samples.jsonl",
        "policy/README.md",
        "policy/value_head.safetensors",
    ):
        assert (folder / name).is_file(), name
    results = json.loads((folder / "results.json").read_text())
    assert 0 <= results["win_rate"]["rate"] <= 1
    capsys.readouterr()
    assert main(argv) == 0
    assert capsys.readouterr().out.count("(reused,") == 5
