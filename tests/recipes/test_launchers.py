"""The launcher's YAML files start two ranks of each recipe, and what is saved is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharding_on_cpu
from checkpoint.runs import write_inputs
from safetensors import safe_open
from tiny_data import prompt_rows

REPOSITORY = Path(__file__).parents[2]
CPU = {"ACCELERATE_USE_CPU": "true"}
DEEPSPEED = {"DS_ACCELERATOR": "cpu"}
LAUNCHES = [
    pytest.param("ddp", "ppo", CPU, marks=pytest.mark.slow),
    pytest.param("ddp", "reward", CPU, marks=pytest.mark.slow),
    ("fsdp2", "ppo", CPU),
    ("fsdp2", "reward", CPU),
    pytest.param("fsdp2", "sft", CPU, marks=pytest.mark.slow),
    *(
        pytest.param(name, recipe, DEEPSPEED, marks=pytest.mark.deepspeed)
        for name, recipe in (
            ("zero2", "ppo"),
            ("zero2", "reward"),
            ("zero2", "sft"),
            ("zero3", "reward"),
            ("zero3", "sft"),
        )
    ),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompt_rows()))
    return folder


def flags(recipe, inputs, folder):
    """Return the flags of a tiny run."""
    rows = {"ppo": "prompts", "reward": "pairs", "sft": "texts"}[recipe]
    of_ppo = (
        "--reward_funcs tiny:happy_reward --max_completion_length 8 --max_prompt_length 32 --num_ppo_epochs 1"
        " --num_mini_batches 2"
    )
    own = of_ppo if recipe == "ppo" else "--max_length 64 --bf16 false"
    return [
        "--model_name_or_path", str(inputs / "model"), "--dataset_name", str(inputs / f"{rows}.jsonl"), "--dtype", "float32",
        "--output_dir", str(folder), "--max_steps", "4", "--save_steps", "2", "--per_device_train_batch_size", "2",
        "--report_to", "none", *own.split(),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "recipe", "settings"), LAUNCHES)
def test_accelerate_launch_starts_two_ranks(tmp_path, inputs, name, recipe, settings):
    """Launch by `accelerate launch --config_file`, as the README says it, but for the number of ranks and the CPU."""
    if settings is DEEPSPEED and not sharding_on_cpu.HAS_DEEPSPEED:
        pytest.skip("needs deepspeed (make test-deepspeed)")
    config = REPOSITORY / "recipes" / "accelerate_configs" / f"{name}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    script = [str(REPOSITORY / "tests/recipes/on_cpu_ranks.py"), str(REPOSITORY / "recipes" / f"{recipe}.py")]
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    done = subprocess.run(
        [*launch, *script, *flags(recipe, inputs, tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | settings | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        timeout=240,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "nothing is sharded" not in said
    manifest = json.loads((tmp_path / "out" / "checkpoint-4" / "manifest.json").read_text())
    assert manifest["world_size"] == 2
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as adapter:
        shapes = {key: adapter.get_slice(key).get_shape() for key in adapter.keys()}  # noqa: SIM118 (no dict)
    assert len([key for key in shapes if "lora_A" in key]) == 14
    assert all(size > 0 for shape in shapes.values() for size in shape)
