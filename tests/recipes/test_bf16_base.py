"""LoRA on a bf16 base learns: each forward pass is by the weights of the last update."""

import pytest
from checkpoint.runs import OF_TRL, reward_recipe, sft_recipe, write_inputs
from tiny import metrics_of


@pytest.mark.parametrize("bf16", ["true", "false"])
@pytest.mark.parametrize("recipe", [reward_recipe, sft_recipe])
def test_the_loss_falls(tmp_path, recipe, bf16):
    write_inputs(tmp_path)
    flags = ["--dtype", "bfloat16", "--bf16", bf16, "--max_steps", "8", "--logging_steps", "1", "--save_strategy", "no"]
    assert OF_TRL["bf16"] is False, "the flags here come last"
    recipe(*flags)(tmp_path / "run", "never", use_cpu=True)
    losses = [row["loss"] for row in metrics_of(tmp_path / "run") if "loss" in row]
    assert losses[-1] < 0.7 * losses[0], losses
