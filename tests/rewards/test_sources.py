import pytest
import torch
from tiny import make_model, make_tokenizer, make_trainer, perturb
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    FeatureExtractionPipeline,
    TextClassificationPipeline,
)

from hf_rlhf.errors import InputError
from hf_rlhf.models.load import load_sequence_classifier
from hf_rlhf.rewards.sources import resolve_rewards, reward_tokenizers

PROMPTS = ["you are ", "the cat ", "no "]
COMPLETIONS = ["happy", "sat on the mat .", ""]


def bert(**overrides):
    config = BertConfig(
        **{"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"intermediate_size": 64, "max_position_embeddings": 16, "num_labels": 1, "initializer_range": 0.5}
        | overrides
    )
    torch.manual_seed(0)
    return BertForSequenceClassification(config).eval()


def distilbert():
    config = DistilBertConfig(vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=64, num_labels=1)
    config.max_position_embeddings = 16
    config.initializer_range = 0.5
    torch.manual_seed(0)
    return DistilBertForSequenceClassification(config).eval()


def resolve(sources, tokenizers=None, policy=None):
    return resolve_rewards(sources, tokenizers, policy=policy, device=torch.device("cpu"), weights=None)


def scores(source, tokenizer=None):
    return resolve(source, tokenizer).functions[0](PROMPTS, COMPLETIONS)


def by_hand(classifier, tokenizer):
    """One text at a time, each with its end token."""
    texts = [prompt + completion + "<|im_end|>" for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    with torch.no_grad():
        return [classifier(input_ids=tokenizer(text, return_tensors="pt").input_ids).logits.item() for text in texts]


@pytest.mark.parametrize("make", [bert, distilbert])
def test_an_encoder_with_a_classifier_head_is_a_reward_as_object_by_path_and_in_a_pipeline(make, tmp_path):
    tokenizer, classifier = make_tokenizer(), make()
    expected = by_hand(classifier, tokenizer)
    assert max(expected) - min(expected) > 0.1
    assert scores(classifier, tokenizer) == pytest.approx(expected, abs=1e-5)
    assert scores(TextClassificationPipeline(model=classifier, tokenizer=tokenizer)) == pytest.approx(
        expected, abs=1e-5
    )
    folder = tmp_path / "happy"
    classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rewards = resolve([str(folder), folder])
    assert rewards.names == ["happy", "happy_2"]
    for function in rewards.functions:
        assert function(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=0.1)  # loaded in the device's dtype
    loaded = BertForSequenceClassification if make is bert else DistilBertForSequenceClassification
    assert scores(loaded.from_pretrained(folder)) == pytest.approx(expected, abs=1e-5)


def test_a_pipelines_tokenizer_can_be_replaced():
    pipeline = TextClassificationPipeline(model=bert(), tokenizer=make_tokenizer(chat_template=False))
    other = make_tokenizer()
    assert resolve(pipeline, [other]).functions[0].tokenizer is other


def test_texts_may_be_as_long_as_the_models_positions():
    reward = resolve(bert(), make_tokenizer()).functions[0]
    assert len(reward(["cat " * 15], [""])) == 1
    with pytest.raises(InputError, match="takes 16 tokens"):
        reward(["cat " * 16], [""])


def test_a_model_without_a_number_of_positions_takes_texts_of_any_length():
    classifier = BloomForSequenceClassification(
        BloomConfig(vocab_size=40, hidden_size=32, n_layer=1, n_head=4, num_labels=1)
    )
    assert resolve(classifier, make_tokenizer()).functions[0].max_length is None


@pytest.mark.parametrize(
    "source",
    [3, None, FeatureExtractionPipeline(model=bert(), tokenizer=make_tokenizer())],
    ids=["number", "None", "pipeline"],
)
def test_what_is_no_reward_is_an_error_that_says_what_is(source):
    with pytest.raises(InputError) as caught:
        resolve(source)
    message = str(caught.value)
    for part in (type(source).__name__, "function", "num_labels=1", "text-classification pipeline", "folder"):
        assert part in message


def test_a_pipeline_with_several_labels_is_an_error():
    with pytest.raises(InputError, match="2 labels"):
        resolve(TextClassificationPipeline(model=bert(num_labels=2), tokenizer=make_tokenizer()))


def test_a_model_from_no_folder_needs_a_tokenizer():
    with pytest.raises(InputError, match=r"BertForSequenceClassification .* reward_processing_classes"):
        resolve(bert())


def test_a_module_by_the_contract_is_a_function():
    class Length(torch.nn.Module):
        def forward(self, prompts, completions, **columns):
            return [float(len(completion)) for completion in completions]

    assert scores(Length()) == [5.0, 16.0, 0.0]


def test_a_reward_model_gets_no_gradients(tmp_path):
    make_model(make_tokenizer(), pad_token_id=None).save_pretrained(tmp_path / "base")
    classifier = perturb(load_sequence_classifier(str(tmp_path / "base"), dtype="float32"))
    tokenizer = make_tokenizer()
    trainer = make_trainer(
        tmp_path / "run", reward=classifier, trainer_kwargs={"reward_processing_classes": tokenizer}, max_steps=4
    )
    trainer.train()
    assert trainer.rewards.functions[0].model.model is classifier
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in classifier.parameters())


def encoder(kind):
    """A classifier whose tokenizer puts <s> and </s> around every text, as RoBERTa's and DeBERTa's do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, RobertaConfig
    from transformers import RobertaForSequenceClassification as Roberta

    tokenizer = make_tokenizer()
    added = [(word, tokenizer.convert_tokens_to_ids(word)) for word in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=added
    )
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_labels": 1,
    }
    shape |= {"vocab_size": 40, "max_position_embeddings": 16, "initializer_range": 0.5, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "roberta":
        return Roberta(RobertaConfig(**shape)).eval(), tokenizer
    relative = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
    return DebertaV2ForSequenceClassification(DebertaV2Config(**shape, **relative)).eval(), tokenizer


@pytest.mark.parametrize(("kind", "words"), [("roberta", 13), ("deberta", 40)])
def test_an_encoder_scores_as_its_own_pipeline_up_to_its_last_position(kind, words):
    """Count RoBERTa's 16 rows of positions, of which the padding row is none: 15 tokens, two of them special."""
    classifier, tokenizer = encoder(kind)
    pipeline = TextClassificationPipeline(model=classifier, tokenizer=tokenizer, function_to_apply="none")
    reward = resolve(pipeline).functions[0]
    texts = ["the cat sat", "no", "the " * (words - 1) + "cat"]
    expected = [pipeline(text)[0]["score"] for text in texts]
    assert reward(["the", "no", "the"], [" cat sat", "", texts[2][3:]]) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1
    if kind == "roberta":
        with pytest.raises(InputError, match="takes 15 tokens"):
            reward(["the " * words], ["cat"])
    else:
        assert reward.max_length is None


def test_the_tokenizers_of_models_are_known_before_the_models(tmp_path):
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "good")
    tokenizer.save_pretrained(tmp_path / "good")
    found = reward_tokenizers([str(tmp_path / "good"), tmp_path / "good", "math:fsum", len, bert()])
    assert [each.get_vocab() for each in found.values()] == [tokenizer.get_vocab()]
    with pytest.raises(InputError, match="there is no such folder; did you mean"):
        reward_tokenizers([str(tmp_path / "goood")])


@pytest.mark.parametrize("native", [torch.float32, torch.bfloat16])
def test_a_reward_model_is_loaded_in_the_dtype_of_the_runs_device(monkeypatch, tmp_path, native):
    asked = []
    monkeypatch.setattr("hf_rlhf.rewards.sources.native_dtype", lambda device: asked.append(device) or native)
    bert().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert next(resolve(str(tmp_path)).functions[0].model.model.parameters()).dtype == native
    assert asked == [torch.device("cpu")]


@pytest.mark.parametrize("flags", [{"ensemble_reward": "min"}, {"ensemble_std_coef": 0.5}], ids=str)
def test_a_flag_of_ensembles_without_one_is_refused(flags):
    def length(prompts, completions):
        return [float(len(completion)) for completion in completions]

    with pytest.raises(InputError, match=rf"{next(iter(flags))}=.* is invalid: no reward is an ensemble"):
        resolve_rewards(
            [length, "regex:pattern=a"], None, policy=None, device=torch.device("cpu"), weights=None, **flags
        )
