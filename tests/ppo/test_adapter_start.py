"""PPO that continues from a `PeftModel`: its adapter is the policy's start and the frozen reference."""

import pytest
import tiny
from peft import get_peft_model
from safetensors.torch import load_file
from tiny import make_lora, make_model, make_tokenizer, make_trainer


@pytest.mark.parametrize("config", [{}, {"modules_to_save": ["lm_head"]}], ids=["LoRA", "with a head of its own"])
def test_a_start_by_any_name_is_trained_to_the_same_bits(tmp_path, config):
    """Check both cases: as `policy` nothing is copied or removed; as `default` the adapter moves to another name."""
    saved = {}
    for name in ("default", "policy"):
        start = get_peft_model(make_model(make_tokenizer()), make_lora(**config), adapter_name=name)
        tiny.perturb(start, only=f".{name}.")
        trainer = make_trainer(tmp_path / name, model=start, lora=None, max_steps=4)
        trainer.train()
        trainer.save_model(str(tmp_path / name / "saved"))
        assert start.active_adapter == "policy"
        assert set(start.peft_config) == {"policy", "reference"}
        saved[name] = load_file(tmp_path / name / "saved" / "adapter_model.safetensors")
    assert saved["default"].keys() == saved["policy"].keys()
    assert all((saved["default"][key] == saved["policy"][key]).all() for key in saved["policy"])
