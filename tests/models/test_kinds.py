"""Every kind of model trains with PPO: architectures, tied weights, adapters, checkpointed and quantized ones."""

import importlib.util
import re

import pytest
import torch
import transformers
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    MissConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from tiny import (
    make_lora,
    make_model,
    make_sequences,
    make_tokenizer,
    make_trainer,
    metrics_of,
    perturb,
    snapshot,
    trained,
)

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapter_kinds import SUPPORTED, require_trainable_adapter
from hf_rlhf.models.adapters import REFERENCE, base_of, use_adapter
from hf_rlhf.models.load import load_causal_lm
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy

SIZES = {
    "vocab_size": 29,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "bos_token_id": None,
}
HEADS_OF_8 = {**SIZES, "head_dim": 8}
OF_GPT2 = {
    "vocab_size": 29,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "bos_token_id": None,
}
OF_OPT = {
    "vocab_size": 29,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "init_std": 0.2,
    "word_embed_proj_dim": 32,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "bos_token_id": None,
}
OF_FALCON = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "intermediate_size")}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
ARCHITECTURES = {
    "Llama": SIZES,
    "Qwen2": SIZES,
    "Qwen3": HEADS_OF_8,
    "Gemma2": {**HEADS_OF_8, "sliding_window": 16, "final_logit_softcapping": 3.0, "attn_implementation": "eager"},
    "Gemma3": {**HEADS_OF_8, "sliding_window": 16},
    "GPTNeoX": {name: value for name, value in SIZES.items() if name != "num_key_value_heads"},
    "GPT2": OF_GPT2,  # with its dropout of 0.1
    "OPT": OF_OPT,
    "OPT with a narrow head": {**OF_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},  # as opt-350m
    "Phi": SIZES,
    "Mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": {**HEADS_OF_8, **EXPERTS},
    "Qwen3Next": {**HEADS_OF_8, **EXPERTS, **LINEAR_ATTENTION, "shared_expert_intermediate_size": 32},
    "Falcon with dropout": {**OF_FALCON, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "Starcoder2 with dropout": {**SIZES, "residual_dropout": 0.1, "embedding_dropout": 0.1},
    "Mixtral with jitter": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.1},
}


def make(architecture):
    """A model of two layers with random weights, the same at every call."""
    name = architecture.split()[0]
    sizes = dict(ARCHITECTURES[architecture])
    attention = sizes.pop("attn_implementation", None)
    config = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")(**sizes)
    config._attn_implementation = attention
    torch.manual_seed(0)
    return getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config)


def of_many_kinds(prompts, completions, number, **columns):
    """A reward that tells apart almost any two completions, and rows of the dataset."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(map(len, text.split())) / 10 - n / 20 for text, n in zip(texts, number, strict=True)]


def assert_it_trains(folder, model, lora, *, rounding=1e-4, **config):
    """Two iterations from `model`: on policy, at the reference, and what has a gradient moves and nothing else.

    Returns the trainer.
    """
    trainer = make_trainer(folder, model=model, lora=lora, reward=of_many_kinds, **config)
    policy, sequences = trainer.policy, make_sequences().to(trainer.args.device)
    before, reference = snapshot(policy), policy(sequences, reference=True).reference_logprobs
    trainer.train()
    first, second = [row for row in metrics_of(folder) if "iteration" in row]
    assert first["objective/kl"] == 0
    assert second["objective/kl"] != 0
    for row in (first, second):
        assert row["val/first_ratio_error"] < rounding
        assert row["sampling/logp_gap"] < rounding
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    assert torch.equal(policy(sequences, reference=True).reference_logprobs, reference)
    return trainer


@torch.no_grad()
def logprobs_of(policy, sequences):
    training = policy.training
    logprobs = policy.eval()(sequences).logprobs
    policy.train(training)
    return logprobs


@torch.no_grad()
def logits_of(model):
    sequences = make_sequences().to(model.device)
    return model.eval()(input_ids=sequences.input_ids, attention_mask=sequences.attention_mask.long()).logits


def assert_saved_as_trained(trainer, folder, base=None):
    """The saved policy says the same under plain transformers (peft on `base`, if given), bit for bit.

    With the attention of the trainer: transformers 5.17 chooses another one for a Gemma 2 that it loads, which rounds
    differently.
    """
    trainer.save_model(str(folder))
    saved = (
        transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=trainer.policy.model.config._attn_implementation
        )
        if base is None
        else PeftModel.from_pretrained(base, folder)
    )
    assert torch.equal(logits_of(saved), logits_of(trainer.policy.model))
    return saved


# Architectures


@pytest.mark.parametrize("lora", [True, None], ids=["lora", "full"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_an_architecture_trains_and_is_saved(tmp_path, architecture, lora):
    trainer = assert_it_trains(tmp_path / "run", make(architecture), lora)
    assert_saved_as_trained(trainer, tmp_path / "saved", make(architecture) if lora else None)


@pytest.mark.parametrize("lora", [True, None], ids=["lora", "full"])
@pytest.mark.parametrize("architecture", ["Qwen3", "Gemma3", "GPT2", "OPT", "GPTNeoX", "Mixtral", "Qwen3Moe"])
def test_saved_weights_are_read_back_for_resuming(tmp_path, architecture, lora):
    def policy():
        return PolicyWithValue(wrap_policy(make(architecture), make_lora() if lora else None)).eval()

    moved, fresh = policy(), policy()
    perturb(moved.model, only="lora" if lora else "")
    moved.save_pretrained(tmp_path)
    fresh.load_weights(tmp_path)
    assert torch.equal(logits_of(fresh.model), logits_of(moved.model))


def test_a_model_whose_backbone_has_another_name_trains(tmp_path):
    sizes = {**HEADS_OF_8, "num_local_experts": 2, "intermediate_size_mlp": 64, "attention_chunk_size": 64}
    torch.manual_seed(0)
    model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**sizes))
    assert_it_trains(tmp_path, model, make_lora(target_modules=["q_proj", "v_proj"]))


# Tied and untied embeddings


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("lora", [True, None], ids=["lora", "full"])
def test_embeddings_stay_as_tied_as_they_were(tmp_path, tied, lora):
    def start():
        return make_model(make_tokenizer(), tie_word_embeddings=tied)

    trainer = assert_it_trains(tmp_path / "run", start(), lora)
    saved = assert_saved_as_trained(trainer, tmp_path / "saved", start() if lora else None)
    for model in (base_of(trainer.policy.model), base_of(saved)):
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


# Adapters

ON_LAYERS_ALONE = ("dora", "rslora", "gaussian", "with biases of its own")
LINEAR = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
KINDS_OF_LORA = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "with biases of its own": {"lora_bias": True},
    "on the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "on the head": {"target_modules": ["lm_head", "q_proj"]},
    "on both": {"target_modules": ["embed_tokens", "lm_head"]},
    "a new head": {"modules_to_save": ["lm_head"]},
    "a new embedding": {"modules_to_save": ["embed_tokens"]},
    "both new": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "new tokens": {"trainable_token_indices": {"embed_tokens": [5, 6, 7]}},
}
OTHERS = {
    "LOHA": LoHaConfig(r=4, **LINEAR),
    "LOKR": LoKrConfig(r=4, **LINEAR),
    "OFT": OFTConfig(r=0, oft_block_size=8, **LINEAR),
    "BOFT": BOFTConfig(boft_block_size=8, **LINEAR),
    "IA3": IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "VERA": VeraConfig(r=4, **LINEAR),
    "MISS": MissConfig(r=4, **LINEAR),
    "TRAINABLE_TOKENS": TrainableTokensConfig(
        token_indices=[5, 6, 7], target_modules=["embed_tokens"], task_type="CAUSAL_LM"
    ),
}


@pytest.mark.parametrize(
    ("kind", "tied"),
    [(kind, False) for kind in KINDS_OF_LORA] + [(kind, True) for kind in KINDS_OF_LORA if kind not in ON_LAYERS_ALONE],
)
def test_a_kind_of_lora_trains_and_is_saved(tmp_path, kind, tied):
    """A head of the adapter's own is the one that samples and scores, and the reference keeps the old one."""

    def start():
        return make_model(make_tokenizer(), tie_word_embeddings=tied)

    trainer = assert_it_trains(tmp_path / "run", start(), make_lora(**KINDS_OF_LORA[kind]))
    assert_saved_as_trained(trainer, tmp_path / "saved", start())


def test_lora_on_the_experts_of_a_mixture_trains(tmp_path):
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = make_lora(target_modules=["q_proj"], target_parameters=experts)
    trainer = assert_it_trains(tmp_path / "run", make("Mixtral"), config)
    assert_saved_as_trained(trainer, tmp_path / "saved", make("Mixtral"))


@pytest.mark.parametrize("kind", [*KINDS_OF_LORA, "LOHA", "LOKR", "OFT", "IA3"])
def test_an_adapter_of_any_kind_is_a_start_and_its_own_reference(tmp_path, kind):
    config = OTHERS[kind] if kind in OTHERS else make_lora(**KINDS_OF_LORA[kind])
    start = get_peft_model(make_model(make_tokenizer()), config)
    for part in ("lora", "ia3", "hada", "lokr", "oft", "modules_to_save", "trainable_tokens"):
        perturb(start, only=part)
    wanted = logits_of(start)
    trainer = assert_it_trains(tmp_path, start, None)
    with use_adapter(trainer.policy.model, REFERENCE):
        assert torch.equal(logits_of(trainer.policy.model), wanted)


def numbers_by_adapter(model, *names):
    """Count the numbers that a PEFT model holds for each adapter, in parameters and buffers."""
    held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: sum(tensor.numel() for key, tensor in held if name in key.split(".")) for name in names}


@pytest.mark.parametrize("kind", [*KINDS_OF_LORA, *OTHERS])
def test_a_start_is_held_once_for_each_role_and_no_more(kind):
    config = OTHERS[kind] if kind in OTHERS else make_lora(**KINDS_OF_LORA[kind])
    start = get_peft_model(make_model(make_tokenizer()), config)
    for part in ("lora", "ia3", "hada", "lokr", "oft", "vera_lambda", "miss", "modules_to_save", "trainable_tokens"):
        perturb(start, only=part)
    wanted, size = logits_of(start), numbers_by_adapter(start, "default")["default"]
    policy = wrap_policy(start)
    assert set(policy.peft_config) == {"policy", "reference"}
    assert policy.active_adapter == "policy"
    roles = numbers_by_adapter(policy, "default", "policy", "reference")
    assert roles == {"default": 0, "policy": size, "reference": size}
    assert torch.equal(logits_of(policy), wanted)


@pytest.mark.parametrize("peft_type", OTHERS)
def test_the_other_supported_adapters_train_and_are_saved(tmp_path, peft_type):
    trainer = assert_it_trains(tmp_path / "run", make_model(make_tokenizer()), OTHERS[peft_type])
    assert_saved_as_trained(trainer, tmp_path / "saved", make_model(make_tokenizer()))


def test_every_supported_adapter_is_tried_here():
    assert set(SUPPORTED) == {"LORA", *OTHERS}
    for config in (*OTHERS.values(), *[make_lora(**kind) for kind in KINDS_OF_LORA.values()]):
        require_trainable_adapter(config)


REFUSED = {
    "PROMPT_TUNING": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    "update_and_allocate": AdaLoraConfig(init_r=4, target_r=2, total_step=8, **LINEAR),
    "FOURIERFT": FourierFTConfig(n_frequency=16, **LINEAR),
    "bias='all'": make_lora(bias="all"),
    "bias='lora_only'": make_lora(bias="lora_only"),
    "init_lora_weights='pissa'": make_lora(init_lora_weights="pissa"),
    "init_lora_weights='pissa_niter_4'": make_lora(init_lora_weights="pissa_niter_4"),
    "init_lora_weights='olora'": make_lora(init_lora_weights="olora"),
}


@pytest.mark.parametrize("named", REFUSED)
def test_an_adapter_that_ppo_cannot_train_is_refused(named):
    with pytest.raises(InputError, match=re.escape(named)) as refusal:
        require_trainable_adapter(REFUSED[named])
    assert re.search(r"use |Set it to ", str(refusal.value), re.IGNORECASE)
    if "=" not in named:
        assert all(name in str(refusal.value).upper() for name in SUPPORTED)


@pytest.mark.parametrize("named", [name for name in REFUSED if name != "PROMPT_TUNING"])
def test_a_fresh_adapter_that_ppo_cannot_train_is_refused(named):
    with pytest.raises(InputError, match=re.escape(named)):
        wrap_policy(make("Qwen2"), REFUSED[named])


@pytest.mark.parametrize("named", [name for name in REFUSED if "niter" not in name])
def test_a_start_from_an_adapter_that_ppo_cannot_train_is_refused(named):
    """PEFT would take the principal components from a base that has lost them already, and nothing would say so."""
    with pytest.raises(InputError, match=re.escape(named)):
        wrap_policy(get_peft_model(make("Qwen2"), REFUSED[named]))


# 16-bit bases


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", ["lora", "dora", "a new head", "IA3", "LOHA", "OFT"])
def test_adapters_train_on_a_bfloat16_base(tmp_path, kind, checkpointing):
    config = OTHERS[kind] if kind in OTHERS else make_lora(**KINDS_OF_LORA.get(kind, {}))
    model = make_model(make_tokenizer()).bfloat16()
    trainer = assert_it_trains(tmp_path, model, config, rounding=0.02, gradient_checkpointing=checkpointing)
    assert {parameter.dtype for parameter in trained(trainer.policy).values()} == {torch.float32}


# Gradient checkpointing


def one_update(folder, architecture, lora, **flags):
    """Trained weights before and after one SGD update, and how often the first attention layer ran with training on."""
    trainer = make_trainer(
        folder,
        model=make(architecture),
        lora=lora,
        reward=of_many_kinds,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8,
        num_mini_batches=1,
        num_ppo_epochs=1,
        max_steps=1,
        **flags,
    )
    perturb(trainer.policy, only="lora")
    attention = next(module for name, module in trainer.policy.named_modules() if name.endswith("0.self_attn"))
    runs = []
    attention.register_forward_pre_hook(lambda module, _: runs.append(module.training))
    start = trained(trainer.policy)
    trainer.train()
    return start, trained(trainer.policy), sum(runs)


@pytest.mark.parametrize("lora", [True, None], ids=["lora", "full"])
@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "Qwen3Moe"])
def test_gradient_checkpointing_changes_no_update(tmp_path, architecture, lora):
    start, plain, runs = one_update(tmp_path / "plain", architecture, lora)
    assert runs == 1
    for kwargs in (None, {"use_reentrant": False}):
        _, recomputed, runs = one_update(
            tmp_path / str(kwargs),
            architecture,
            lora,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs=kwargs,
        )
        assert runs == 2
        for name, weight in plain.items():
            assert (weight - start[name]).norm() > 1e-5 * start[name].norm(), name
            assert (recomputed[name] - weight).norm() <= 1e-6 * weight.norm(), name


# Quantized bases


def quantized(folder, **bits):
    """The tiny model with linear layers of 4 or 8 bits, on the first GPU where there is one."""
    config = transformers.BitsAndBytesConfig(**bits)
    dtype = bits.get("bnb_4bit_compute_dtype", torch.bfloat16)
    place = 0 if torch.cuda.is_available() else "cpu"
    return load_causal_lm(str(folder), dtype=dtype, quantization_config=config, device_map={"": place})


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    ("bits", "rounding"),
    [
        ({**NF4, "bnb_4bit_compute_dtype": torch.float32}, 1e-3),
        ({**NF4, "bnb_4bit_compute_dtype": torch.bfloat16}, 0.1),
        ({**NF4, "bnb_4bit_compute_dtype": torch.bfloat16, "bnb_4bit_use_double_quant": True}, 0.1),
        ({"load_in_8bit": True}, 0.3),  # activations are quantized too, by what else is in the batch
    ],
    ids=["4 bits in fp32", "4 bits in bf16", "4 bits twice", "8 bits"],
)
def test_lora_trains_on_a_quantized_base_and_leaves_its_bits(tmp_path, bits, rounding, checkpointing):
    make_model(make_tokenizer(), hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    model = quantized(tmp_path / "base", **bits)
    assert {torch.uint8, torch.int8} & {parameter.dtype for parameter in model.parameters()}
    trainer = assert_it_trains(
        tmp_path / "run",
        model,
        True,
        rounding=rounding,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=checkpointing,
    )
    assert {parameter.dtype for parameter in trained(trainer.policy).values()} == {torch.float32}
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(quantized(tmp_path / "base", **bits), tmp_path / "saved")
    torch.testing.assert_close(logits_of(loaded), logits_of(trainer.policy.model), rtol=0.02, atol=0.02)


def test_full_fine_tuning_of_a_quantized_model_is_refused():
    model = make_model(make_tokenizer())
    model.is_quantized = True  # as transformers marks it
    with pytest.raises(InputError, match="quantized"):
        wrap_policy(model)
