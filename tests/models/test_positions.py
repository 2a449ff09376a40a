"""The longest sequence allowed, against what the model computes: one token more ends in an error of torch."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_rlhf.models.positions import positions, table_positions

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 20, "num_labels": 1, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0,
}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
OWN = {
    "longformer": {"attention_window": 4},
    "esm": {"position_embedding_type": "absolute", "mask_token_id": 4},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "opt": {"ffn_dim": 16, "word_embed_proj_dim": 16},
    "gpt2": {"n_positions": 20, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "deberta": {**RELATIVE, "position_biased_input": False},
    "deberta-v2": {**RELATIVE, "position_biased_input": True},
    "llama": {"num_key_value_heads": 2},
    "falcon": {"alibi": True},
}
LIMITS = {
    "bert": (20, 20), "gpt2": (20, 20), "opt": (20, 20), "nystromformer": (20, 20),
    "roberta": (18, 18), "xlm-roberta": (18, 18), "camembert": (18, 18), "mpnet": (18, 18), "longformer": (18, 18),
    "esm": (18, 18), "luke": (18, 18), "ibert": (18, 18), "deberta-v2": (20, 20),
    "deberta": (None, None), "falcon": (None, None), "llama": (20, None),
}  # fmt: skip


def classifier(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **OWN.get(kind, {})})
    return AutoModelForSequenceClassification.from_config(config).eval()


@torch.no_grad()
def runs(model, tokens):
    try:
        model(input_ids=torch.tensor([[5] * (tokens - 1) + [2]]))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("kind", LIMITS)
def test_the_positions_are_those_that_the_model_computes(kind):
    model = classifier(kind)
    limit, of_table = LIMITS[kind]
    assert (positions(model), table_positions(model)) == (limit, of_table)
    if of_table is not None:
        assert runs(model, of_table)
        assert not runs(model, of_table + 1)
    else:
        assert runs(model, 40)


def test_a_config_that_says_there_is_no_limit_is_believed():
    model = classifier("llama")
    model.config.max_position_embeddings = -1
    assert positions(model) is None


def test_positions_are_found_inside_an_adapter():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(classifier("roberta"), LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    assert positions(model) == 18
