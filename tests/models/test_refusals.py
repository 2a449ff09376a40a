"""A model other than a causal one on text is refused by path and by object, and the message says what to use."""

import pytest
import torch
import transformers
from peft import get_peft_model
from tiny import make_lora, make_model, make_tokenizer, make_trainer

from hf_rlhf.errors import InputError
from hf_rlhf.models.load import load_causal_lm, require_causal_lm

TEXT = {
    "vocab_size": 29,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def t5():
    config = transformers.T5Config(vocab_size=29, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    return transformers.T5ForConditionalGeneration(config)


def bart():
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIDE_OF_BART.items()}
    config = transformers.BartConfig(vocab_size=29, d_model=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sides)
    return transformers.BartForConditionalGeneration(config)


SIDE_OF_BART = {"layers": 1, "attention_heads": 4, "ffn_dim": 32}


def bert():
    return transformers.BertForMaskedLM(of_bert())


def of_bert(**overrides):
    sizes = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    return transformers.BertConfig(**sizes, **overrides)


def llava():
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_id=5,
    )
    return transformers.LlavaForConditionalGeneration(config)


def qwen2_vl():
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4},
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def gemma3():
    config = transformers.Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "sliding_window": 16}, vision_config=VISION, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config)


OTHER_KINDS = {
    t5: r"a sequence-to-sequence model \(t5\)",
    bart: r"a sequence-to-sequence model \(bart\)",
    bert: r"an encoder \(bert\)",
    llava: r"images or sound \(llava\)",
    qwen2_vl: r"images or sound \(qwen2_vl\)",
    gemma3: r"images or sound \(gemma3\)",
}
each = pytest.mark.parametrize(("make", "kind"), OTHER_KINDS.items(), ids=[make.__name__ for make in OTHER_KINDS])


@each
def test_another_kind_of_model_is_refused_by_path(make, kind, tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=kind) as refusal:
        load_causal_lm(str(tmp_path))
    assert str(tmp_path) in str(refusal.value)
    assert "decoder-only text model, such as" in str(refusal.value)


@each
def test_another_kind_of_model_is_refused_by_object_and_by_config(make, kind):
    model = make()
    for it in (model, model.config):
        with pytest.raises(InputError, match=f"the model is .*{kind}"):
            require_causal_lm(it, "the model")


def test_what_is_inside_of_an_adapter_is_looked_at():
    adapted = get_peft_model(t5(), make_lora(target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"))
    with pytest.raises(InputError, match="sequence-to-sequence"):
        require_causal_lm(adapted, "the model")
    require_causal_lm(get_peft_model(make_model(make_tokenizer()), make_lora()), "the model")


@pytest.mark.parametrize("lora", [True, None], ids=["lora", "full"])
@each
def test_the_trainer_refuses_it(make, kind, lora, tmp_path):
    with pytest.raises(InputError, match=kind):
        make_trainer(tmp_path, model=make(), lora=lora)


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_model_that_cannot_write_is_refused(name, tmp_path):
    """Refuse a model that transformers would give a random head by path, with only a warning."""
    model = getattr(transformers, name)(transformers.LlamaConfig(**TEXT))
    with pytest.raises(InputError, match="without a language-model head"):
        require_causal_lm(model, name)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"no trained language-model head.*lm_head\.weight.*{name}"):
        load_causal_lm(str(tmp_path))


def test_a_tied_head_is_a_trained_one(tmp_path):
    transformers.LlamaModel(transformers.LlamaConfig(**TEXT, tie_word_embeddings=True)).save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path), dtype="float32")
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_an_encoder_trained_as_a_decoder_is_a_causal_model(tmp_path):
    decoder = transformers.BertLMHeadModel(of_bert(is_decoder=True))
    require_causal_lm(decoder, "the model")
    decoder.save_pretrained(tmp_path)
    assert load_causal_lm(str(tmp_path)).config.is_decoder


@pytest.mark.parametrize(
    "name", ["Gemma3Text", "Qwen2", "GPT2", "OPT", "GPTNeoX", "Mixtral", "Falcon", "Mamba", "Llama4Text"]
)
def test_a_text_model_is_not_refused(name):
    require_causal_lm(getattr(transformers, f"{name}Config")(), name)


def test_a_model_of_the_hubs_own_code_is_not_refused():
    config = transformers.PreTrainedConfig(auto_map={"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"})
    require_causal_lm(config, "mine")
