"""Names of layers in a LoRA config are there in the model, or an error says which are."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import make_lora, make_model, make_tokenizer, perturb
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import POLICY, save_adapter
from hf_rlhf.models.lora_targets import in_last_blocks, last_blocks, require_known_layers
from hf_rlhf.models.policy import wrap_policy
from hf_rlhf.models.vocabulary import resize_vocabulary
from hf_rlhf.training.trl_setup import make_reward_trainer


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


# The last blocks alone


@pytest.mark.parametrize(
    ("layers", "blocks", "count"),
    [("all", 30, 30), ("8", 30, 8), (8, 30, 8), ("0.25", 30, 8), (0.5, 30, 15), ("0.001", 30, 1), (2, 2, 2)],
)
def test_blocks_that_a_flag_means(layers, blocks, count):
    assert last_blocks(layers, blocks) == count


@pytest.mark.parametrize("layers", ["0", "-1", "1.0", "1.5", "half", "nan", "", "31"])
def test_other_values_are_errors(layers):
    with pytest.raises(InputError, match=f"lora_layers={layers} is invalid.*all"):
        last_blocks(layers, 30)


def adapted_layers(model, config, layers):
    """Names of the layers of `model` that PEFT adapts."""
    adapted = get_peft_model(model, in_last_blocks(config, model, layers)).base_model.model
    return adapted, {name for name, module in adapted.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize(
    ("targets", "inner"),
    [
        ("all-linear", 7),
        (["q_proj", "mlp.down_proj"], 2),
        (r".*\.(q|v)_proj", 2),
    ],
)
def test_only_the_last_blocks_are_adapted(targets, inner):
    model = make_model(make_tokenizer(), num_hidden_layers=4)
    _, names = adapted_layers(model, make_lora(target_modules=targets), 2)
    assert len(names) == 2 * inner
    assert {name.split(".")[2] for name in names} == {"2", "3"}


def test_parameters_of_the_last_blocks():
    model = make_model(make_tokenizer(), num_hidden_layers=3)
    config = in_last_blocks(LoraConfig(target_modules=[], target_parameters=["k_proj.weight"]), model, 1)
    assert config.target_parameters == ["layers.2.self_attn.k_proj.weight"]
    require_known_layers(model, config)


MIXTURES = {
    "mixtral": {"num_local_experts": 2},
    "qwen3_moe": {"num_experts": 2, "moe_intermediate_size": 16, "head_dim": 8},
}


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q_proj|v_proj)", "by name"])
def test_experts_of_the_last_blocks(kind, targets):
    """PEFT makes one parameter of the experts' layers, under other names."""
    if targets == "by name":
        targets = ["q_proj", *(("w1", "w2", "w3") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj"))]
    sizes = {"vocab_size": 29, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}

    def adapted(layers):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads, **MIXTURES[kind]))
        config = make_lora(target_modules=targets)
        wrapped = wrap_policy(model, config if layers == "all" else in_last_blocks(config, model, layers))
        names = [name for name, weight in wrapped.named_parameters() if weight.requires_grad]
        return {number: {name for name in names if f".layers.{number}." in name} for number in range(3)}

    everywhere, last = adapted("all"), adapted(2)
    assert everywhere[0]
    assert last == everywhere | {0: set()}


@pytest.mark.parametrize("outside", ["embed_tokens", "lm_head"])
def test_a_layer_that_is_in_no_block_is_not_left_out_silently(model, outside):
    with pytest.raises(InputError, match=f"lora_layers=1 is invalid with lora_target_modules={outside}"):
        in_last_blocks(make_lora(target_modules=["q_proj", outside]), model, 1)


def test_other_names_of_blocks():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=29, n_positions=16, n_embd=16, n_layer=3, n_head=2))
    _, names = adapted_layers(model, make_lora(fan_in_fan_out=True), "0.3")
    assert names == {f"transformer.h.2.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(q|v)_proj"])
def test_plain_peft_loads_what_was_saved(tmp_path, targets):
    base = make_model(make_tokenizer(), num_hidden_layers=3)
    base.save_pretrained(tmp_path / "base")
    policy = wrap_policy(base, in_last_blocks(make_lora(target_modules=targets), base, 2))
    perturb(policy, only="lora")
    save_adapter(policy, POLICY, tmp_path / "adapter")
    ids = torch.arange(1, 7)[None]
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 2 * (7 if targets == "all-linear" else 2)
    torch.testing.assert_close(loaded.eval()(ids).logits, policy.eval()(ids).logits, rtol=0, atol=0)
