"""A resumed run computes in its checkpoint's dtype, or says what differs.

Machines are made up by what they multiply.
"""

import json
import shutil

import pytest
import torch
from checkpoint.runs import ppo_recipe, reward_recipe, sft_recipe, write_inputs
from tiny import make_model, make_tokenizer, make_trainer
from tiny_critics import make_places

from hf_rlhf.checkpoint.computation import Computation, difference, recorded_computation, require_same_dtypes
from hf_rlhf.errors import InputError
from hf_rlhf.models.precision import Slowdown
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.recipes.arguments import SFTTrainingArguments

RECIPES = {"sft": sft_recipe, "reward": reward_recipe, "ppo": ppo_recipe}
NATIVE = {"dtype": "native", "bf16": None, "max_steps": 4, "save_total_limit": 2}
"""Flags of a recipe that leave dtype and autocast to the machine."""


@pytest.fixture
def machine(monkeypatch):
    """Choose whether this machine multiplies bfloat16 in hardware; nothing is measured."""
    monkeypatch.setattr(Slowdown, "measured", lambda device: Slowdown(0.5))

    def choose(multiplies, name="here"):
        monkeypatch.setattr("hf_rlhf.models.precision._multiplies_bfloat16", lambda device: multiplies)
        monkeypatch.setattr("hf_rlhf.checkpoint.computation.device_name", lambda device: f"cpu ({name})")

    return choose


@pytest.mark.parametrize("kind", RECIPES)
def test_a_resumed_recipe_keeps_the_dtype_and_says_so(tmp_path, machine, capsys, caplog, kind):
    write_inputs(tmp_path)
    machine(True)
    RECIPES[kind]()(tmp_path / "run", **NATIVE)
    assert "dtype: bfloat16 base (native: this cpu multiplies bfloat16 in hardware" in capsys.readouterr().out
    checkpoint = tmp_path / "run" / "checkpoint-4"
    assert recorded_computation(checkpoint).base == "bfloat16"
    assert "dtype of the base | bfloat16" in (tmp_path / "run" / "README.md").read_text()
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["device"].startswith("cpu (")
    shutil.copytree(tmp_path / "run", tmp_path / "other")

    machine(False, "there")
    RECIPES[kind]()(tmp_path / "run", **NATIVE | {"max_steps": 8})
    printed = capsys.readouterr().out
    assert "dtype: bfloat16, as in checkpoint-4; native on this cpu is float32." in printed
    assert "pass --dtype float32" in printed
    assert "dtype: bfloat16 base (native is float32: this cpu does not multiply bfloat16 in hardware" in printed
    assert "was written" not in caplog.text
    says = (
        "autocast: bfloat16, as in checkpoint-4. Native on this cpu is none. To compute in that from here on, pass"
        " --bf16 false"
    )
    assert (says in printed) == (", under bfloat16 autocast" in printed) == (kind != "ppo")
    assert "dtype: bfloat16\n" in (tmp_path / "run" / "config.yaml").read_text()

    RECIPES[kind]()(tmp_path / "other", **NATIVE | {"max_steps": 8, "dtype": "float32"})
    said = next(record.getMessage() for record in caplog.records if "was written" in record.getMessage())
    assert (
        "checkpoint-4 was written on cpu (here) with base bfloat16, and this run, on cpu (there), has base float32"
        in said
    )
    assert "To compute as before: --dtype bfloat16" in said
    assert recorded_computation(tmp_path / "other" / "checkpoint-8").base == "float32"


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_a_run_without_autocast_gets_none_where_bfloat16_is_native(tmp_path, machine, capsys, caplog, kind):
    write_inputs(tmp_path)
    machine(False)
    RECIPES[kind]()(tmp_path / "run", **NATIVE)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    machine(True)
    capsys.readouterr()
    RECIPES[kind]()(tmp_path / "run", **NATIVE | {"max_steps": 8})
    printed = capsys.readouterr().out
    assert "dtype: float32, as in checkpoint-4" in printed
    assert "autocast: none, as in checkpoint-4. Native on this cpu is bfloat16." in printed
    assert "under bfloat16 autocast" not in printed
    assert recorded_computation(tmp_path / "run" / "checkpoint-8").dtypes == {"base": "float32", "autocast": "no"}
    assert "was written" not in caplog.text

    RECIPES[kind]()(tmp_path / "other", **NATIVE | {"max_steps": 8, "bf16": True})
    printed = capsys.readouterr().out
    assert "autocast: none" not in printed
    assert "under bfloat16 autocast" in printed
    assert "with autocast no, and this run has autocast bf16" in caplog.text
    assert "To compute as before: --bf16 false" in caplog.text


@pytest.mark.parametrize("kind", RECIPES)
def test_a_run_that_trains_every_weight_is_in_float32_and_resumes_without_a_word(tmp_path, machine, capsys, kind):
    write_inputs(tmp_path)
    machine(True)
    for updates in (4, 8):
        RECIPES[kind]("--use_peft", "false")(tmp_path / "run", **NATIVE | {"max_steps": updates})
        assert "dtype: float32\n" in (tmp_path / "run" / "config.yaml").read_text()
    printed = capsys.readouterr().out
    assert "as in checkpoint-4" not in printed
    assert "dtype bfloat16" not in printed


def test_a_launcher_that_asks_for_autocast_is_obeyed(tmp_path, machine, monkeypatch):
    machine(False)
    (tmp_path / "manifest.json").write_text(json.dumps({"computation": {"dtypes": {"autocast": "no"}}}))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    training = SFTTrainingArguments(output_dir=str(tmp_path))
    assert training.mixed_precision == "bf16"
    assert training.with_autocast_of(str(tmp_path)) is training


def test_a_run_whose_models_are_given_says_what_differs(tmp_path, machine, caplog):
    places, tokenizer = make_places(tmp_path / "places"), make_tokenizer()
    settings = {"save_strategy": "steps", "save_steps": 4, "reward": places["full_reward"], "lora": None}
    model = make_model(tokenizer)
    machine(True)
    make_trainer(tmp_path / "run", model=model, max_steps=4, **settings).train()
    recorded = recorded_computation(tmp_path / "run" / "checkpoint-4").dtypes
    assert recorded == {"base": "float32", "reward model full_reward": "bfloat16", "autocast": "no"}

    machine(False)
    make_trainer(tmp_path / "run", model=make_model(tokenizer), max_steps=8, **settings).train("last")
    (said,) = [record.getMessage() for record in caplog.records if "was written" in record.getMessage()]
    assert "with reward model full_reward bfloat16, and this run has reward model full_reward float32" in said
    assert "give the reward model full_reward as an object, loaded with dtype='bfloat16'" in said
    caplog.clear()
    settings["reward"] = load_reward_model(places["full_reward"], dtype="bfloat16")[0].model
    first = str(tmp_path / "run" / "checkpoint-4")
    make_trainer(tmp_path / "run", model=make_model(tokenizer), max_steps=8, **settings).train(first)
    assert "was written" not in caplog.text


def test_ranks_on_machines_of_several_kinds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hf_rlhf.training.durable.gather_in_order", lambda rows: [*rows, {"base": "bfloat16", "autocast": "no"}]
    )
    with pytest.raises(
        InputError, match=r"\(rank 0: base float32, autocast no; rank 1: base bfloat16, .* one kind, or set dtype\.$"
    ):
        make_trainer(tmp_path)


@pytest.mark.parametrize(
    ("other", "fix"),
    [
        ({"base": "bfloat16"}, "set dtype"),
        ({"autocast": "bf16"}, "set bf16"),
        ({"reward model helpful": "bfloat16"}, "give the reward model helpful as an object, loaded in one dtype"),
        ({"base": "bfloat16", "autocast": "bf16"}, "set dtype and set bf16"),
    ],
)
def test_ranks_that_differ_are_told_what_governs_the_difference(other, fix):
    dtypes = {"base": "float32", "reward model helpful": "float32", "autocast": "no"}
    require_same_dtypes([dtypes, dict(dtypes)])
    with pytest.raises(InputError, match=f"Start all ranks on machines of one kind, or {fix}[.]$"):
        require_same_dtypes([dtypes, dtypes | other])


def test_what_is_said_of_a_difference(tmp_path):
    now = Computation.here(torch.device("cpu"), {"base": torch.float32, "autocast": "no"})

    def said(computation):
        (tmp_path / "manifest.json").write_text(json.dumps(computation))
        return difference(tmp_path, now)

    assert said({}) is None  # of an earlier version
    assert said({"computation": now.facts()}) is None
    assert said({"computation": {"device": "cuda (H100)", "dtypes": dict(now.dtypes)}}) is None
    words = said({"computation": {"device": "cuda (H100)", "dtypes": {"base": "bfloat16", "autocast": "bf16"}}})
    assert "written on cuda (H100) with base bfloat16, autocast bf16" in words
    assert "has base float32, autocast no" in words
    assert words.endswith("loaded with dtype='bfloat16'; --bf16 true")


@pytest.mark.parametrize(
    ("before", "now", "flags"),
    [
        ("bf16", "no", "--bf16 true"),
        ("no", "bf16", "--bf16 false"),
        ("fp16", "no", "--fp16 true"),
        ("no", "fp16", "--fp16 false"),
        ("fp16", "bf16", "--bf16 false --fp16 true"),
    ],
)
def test_the_flags_that_bring_an_autocast_back(tmp_path, before, now, flags):
    (tmp_path / "manifest.json").write_text(json.dumps({"computation": {"dtypes": {"autocast": before}}}))
    words = difference(tmp_path, Computation("cpu", {"base": "float32", "autocast": now}))
    assert words.endswith(f"To compute as before: {flags}")
