"""Names of layers in a LoRA config are there in the model, or an error says which are."""

import pytest
from peft import LoraConfig, get_peft_model
from tiny import make_lora, make_model, make_tokenizer

from hf_rlhf.errors import InputError
from hf_rlhf.models.lora_targets import require_known_layers
from hf_rlhf.models.policy import wrap_policy
from hf_rlhf.models.vocabulary import resize_vocabulary
from hf_rlhf.reward_modeling.training import make_reward_trainer


def refusal(model, **config):
    with pytest.raises(InputError) as caught:
        require_known_layers(model, LoraConfig(**config))
    return str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": None},
        {"target_modules": ["q_proj", "mlp.down_proj", "model.layers.1.self_attn.v_proj"]},
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "layers_to_transform": [0, 1]},
        {"target_modules": ["q_proj"], "target_parameters": ["k_proj.weight"], "layers_to_transform": 1},
    ],
)
def test_what_is_there_is_taken(model, config):
    """And PEFT takes it too."""
    require_known_layers(model, LoraConfig(**config))
    get_peft_model(model, LoraConfig(**config))


def test_one_unknown_name_among_others_is_an_error(model):
    """PEFT would adapt q_proj alone, and say nothing."""
    message = refusal(model, target_modules=["q_proj", "v_prj"])
    assert message.startswith("lora_target_modules=v_prj is invalid")
    assert "Did you mean v_proj?" in message
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head" in message


def test_every_other_name(model):
    assert "c_attn" in refusal(model, target_modules=["c_attn"])
    assert "roj is invalid" in refusal(model, target_modules=["roj"])  # the end of a name is none
    for name in ("self_attn", "input_layernorm", "layers.0"):  # a block of layers, a norm
        assert f"{name} is invalid" in refusal(model, target_modules=["q_proj", name])
    assert "Did you mean lm_head?" in refusal(model, target_modules=["q_proj"], modules_to_save=["lm_haed"])
    assert "k_proj.wight" in refusal(model, target_modules=["q_proj"], target_parameters=["k_proj.wight"])
    assert "regular expression" in refusal(model, target_modules=r".*\.c_(attn|proj)")
    assert "regular expression" in refusal(model, target_modules="(q_proj")
    assert "blocks 0 to 1" in refusal(model, target_modules=["q_proj"], layers_to_transform=[1, 2])


def test_ppo_and_reward_models_look(model, tmp_path):
    from transformers import AutoModelForSequenceClassification

    with pytest.raises(InputError, match="v_prj"):
        wrap_policy(model, make_lora(target_modules=["q_proj", "v_prj"]))
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    with pytest.raises(InputError, match="modules_to_save=lm_head"):
        make_reward_trainer(classifier, tokenizer, None, None, None, make_lora(modules_to_save=["lm_head"]))


def test_weights_that_zero_3_holds_elsewhere_are_still_matrices(model):
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = parameter.data.new_empty(0)
    require_known_layers(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match="ZeRO-3 has split"):
        resize_vocabulary(model, 100)
