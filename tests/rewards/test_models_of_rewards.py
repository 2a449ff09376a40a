"""The named rewards that bring a model: similarity and classifier."""

import importlib.util
import json

import pytest
import torch
from rewards.test_sources import bert
from tiny import make_model, make_tokenizer
from transformers import BertConfig, BertModel, LlamaForSequenceClassification, TextClassificationPipeline

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.cache import RewardCache
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rewards.named import make_reward
from hf_rlhf.rewards.similarity import PACKAGE
from hf_rlhf.types import Completion, Trajectory

LABELS = {0: "toxic", 1: "insult", 2: "kind"}
TEXTS = ["the cat sat on the mat .", "no", "you are happy", ""]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """A tiny encoder without sentence-transformers' files, and its tokenizer."""
    folder = tmp_path_factory.mktemp("embedder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    bert(num_labels=3, id2label=LABELS, label2id={name: i for i, name in LABELS.items()}).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def messages(texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def embedding(folder, text):
    """The mean of the last hidden states over the tokens of one text, of length 1."""
    ids = make_tokenizer()(text, return_tensors="pt").input_ids
    with torch.no_grad():
        mean = BertModel.from_pretrained(folder)(input_ids=ids).last_hidden_state[0].mean(dim=0)
    return mean / mean.norm()


def test_similarity_is_the_cosine_of_mean_pooled_states_whatever_the_batch(embedder):
    reward = make_reward(f"similarity:column=gold,model={embedder}")
    gold = ["a happy dog", ["no no", "you are sad"], None, []]
    found = reward(["?"] * 4, ["the cat", "you are happy .", "no", "no"], gold=gold)
    by_hand = [
        float(embedding(embedder, "the cat") @ embedding(embedder, "a happy dog")),
        max(float(embedding(embedder, "you are happy .") @ embedding(embedder, each)) for each in gold[1]),
    ]
    assert found == [pytest.approx(by_hand[0], abs=1e-5), pytest.approx(by_hand[1], abs=1e-5), None, None]
    assert reward([[]], messages(["a happy dog"]), gold=["a happy dog"]) == [pytest.approx(1.0, abs=1e-6)]


def test_similarity_pools_as_the_models_files_say_or_refuses(embedder, tmp_path):
    import shutil

    folder = shutil.copytree(embedder, tmp_path / "cls")
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    with torch.no_grad():
        ids = make_tokenizer()("no cat", return_tensors="pt").input_ids
        first = BertModel.from_pretrained(folder)(input_ids=ids).last_hidden_state[0, 0]
    found = make_reward(f"similarity:model={folder}").embed(["no cat", "a"])[0]
    assert torch.allclose(found, first / first.norm(), atol=1e-5)
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InputError, match=r"model=.*max_tokens, which is not supported"):
        make_reward(f"similarity:model={folder}")
    with pytest.raises(InputError, match=r"model=.*cannot be loaded"):
        make_reward(f"similarity:model={tmp_path / 'nowhere'}")


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} is not installed")
def test_the_embedded_model_finds_what_means_the_same():
    reward = make_reward("similarity")
    reference = ["A cat is sitting on a mat."] * 3
    same, related, other = reward(
        ["?"] * 3, ["The cat sits on the mat.", "A dog plays.", "Taxes."], reference=reference
    )
    assert same == pytest.approx(0.9718, abs=1e-3)  # of sentence-transformers 6.2, encode() and similarity()
    assert same > related > other


def test_a_classifier_says_what_its_pipeline_says(classifier):
    pipeline = TextClassificationPipeline(
        model=bert(num_labels=3, id2label=LABELS), tokenizer=make_tokenizer(), top_k=None
    )
    expected = [next(each["score"] for each in pipeline(text)[0] if each["label"] == "insult") for text in TEXTS[:3]]
    reward = make_reward(f"classifier:model={classifier},label=Insult,weight=-1")
    assert reward(["ignored"] * 3, TEXTS[:3]) == pytest.approx(expected, abs=1e-5)
    assert reward([[]] * 3, messages(TEXTS[:3])) == pytest.approx(expected, abs=1e-5)
    assert reward.shaping.weight == -1


def test_a_classifier_may_read_the_prompt_and_give_logits_and_probabilities_of_several_labels(classifier):
    model = bert(num_labels=3, id2label=LABELS)
    ids = make_tokenizer()("you are no", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    text = f"classifier:model={classifier},label=toxic,with_prompt=true"
    assert make_reward(f"{text},logit=true")(["you are "], ["no"]) == [pytest.approx(logits[0].item(), abs=1e-5)]
    several = make_reward(text)
    several.encoder.model.config.problem_type = "multi_label_classification"
    assert several(["you are "], ["no"]) == [pytest.approx(logits[0].sigmoid().item(), abs=1e-5)]


def test_a_classifier_reads_the_end_of_a_text_that_is_too_long_with_its_prompt(classifier):
    reward = make_reward(f"classifier:model={classifier},label=kind,with_prompt=true")
    assert reward(["the " * 30], ["you are happy"]) == pytest.approx(reward(["the " * 13], ["you are happy"]), abs=1e-6)


@pytest.mark.parametrize("pad", ["<pad>", "<|im_end|>", None])
def test_a_decoder_reads_each_text_as_alone_whatever_its_padding_id_and_an_empty_one_as_its_end(tmp_path, pad):
    tokenizer = make_tokenizer()
    config = make_model(tokenizer).config
    config.num_labels, config.pad_token_id = 2, None if pad is None else tokenizer.convert_tokens_to_ids(pad)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["the cat", "", "the cat sat on the mat ."]
    expected = []
    for text in ("the cat", "<|im_end|>", "the cat sat on the mat ."):
        with torch.no_grad():
            logits = model(input_ids=tokenizer(text, return_tensors="pt").input_ids).logits
        expected.append(logits.softmax(dim=1)[0, 1].item())
    reward = make_reward(f"classifier:model={tmp_path},label=LABEL_1")
    assert reward(["?"] * 3, texts) == pytest.approx(expected, abs=1e-5)
    assert [reward(["?"], [text])[0] for text in texts] == pytest.approx(expected, abs=1e-5)


def test_a_wrong_label_and_a_model_without_a_trained_head_are_refused(classifier, embedder):
    with pytest.raises(InputError, match=r"label=toxc is not among its labels. Did you mean 'toxic'\?"):
        make_reward(f"classifier:model={classifier},label=toxc")
    with pytest.raises(InputError, match="label is missing"):
        make_reward(f"classifier:model={classifier}")
    with pytest.raises(InputError, match=r"no trained classifier\.bias"):
        make_reward(f"classifier:model={embedder},label=LABEL_0")


def test_other_weights_tokenizers_and_settings_are_other_identities(classifier, tmp_path):
    one = make_reward(f"classifier:model={classifier},label=toxic").cache_key
    assert make_reward(f"classifier:model={classifier},label=toxic,weight=3").cache_key == one  # not of its value
    others = [make_reward(f"classifier:model={classifier},label={text}") for text in ("kind", "toxic,logit=true")]
    changed = make_reward(f"classifier:model={classifier},label=toxic")
    with torch.no_grad():
        next(iter(changed.encoder.model.parameters())).view(-1)[0] += 1e-3
    tokenizer = make_reward(f"classifier:model={classifier},label=toxic")
    tokenizer.encoder.tokenizer.chat_template = "another"
    assert len({one, *(each.cache_key for each in (*others, changed, tokenizer))}) == 5


def test_what_a_classifier_said_is_found_again_beside_other_columns(classifier, tmp_path):
    rewards = Rewards([make_reward(f"classifier:model={classifier},label=toxic")])
    rewards.use_cache(RewardCache(tmp_path))
    held = []
    for row in ({"prompt": "the", "topic": "cats"}, {"prompt": "the"}):
        trajectory = Trajectory(row, [1], Completion([1], [0.0], True), "cat")
        held.append(rewards.compute([trajectory]).cached["classifier"])
    assert held == [[0.0], [1.0]]
