import pytest
import torch
from tiny import make_model, make_tokenizer, perturb

from hf_rlhf.errors import InputError
from hf_rlhf.models.load import load_sequence_classifier
from hf_rlhf.models.reward_model import SeparateRewardModel
from hf_rlhf.rewards.learned import LearnedReward

PROMPTS = [[{"role": "user", "content": text}] for text in ("no !", "you are sad .", "the cat sat on the mat", "hello")]
COMPLETIONS = [
    [{"role": "assistant", "content": text}] for text in ("the dog is good . yes !", "happy", "", "hello you")
]


def shuffled_tokenizer():
    """The words of the usual tokenizer under other ids."""
    import json

    from transformers import PreTrainedTokenizerFast

    plain = make_tokenizer()
    state = json.loads(plain.backend_tokenizer.to_str())
    words = sorted(state["model"]["vocab"], key=lambda word: word[::-1])
    state["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    for token in state["added_tokens"]:
        token["id"] = state["model"]["vocab"][token["content"]]
    from tokenizers import Tokenizer

    shuffled = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        chat_template=plain.chat_template,
    )
    assert len(shuffled) == len(plain)
    assert shuffled.get_vocab() != plain.get_vocab()
    return shuffled


@pytest.fixture
def classifier(tmp_path):
    make_model(make_tokenizer(), pad_token_id=None).save_pretrained(tmp_path)
    return perturb(load_sequence_classifier(str(tmp_path), dtype="float32")).eval()


def by_hand(classifier, tokenizer, prompt, completion):
    text = tokenizer.apply_chat_template(prompt + completion, tokenize=False)
    with torch.no_grad():
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        return classifier(input_ids=ids).logits.item()


@pytest.mark.parametrize("make", [make_tokenizer, shuffled_tokenizer])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_it_scores_the_text_by_the_reward_models_own_tokenizer_at_any_batch_size(classifier, make, batch_size):
    tokenizer = make()
    reward = LearnedReward(SeparateRewardModel(classifier), tokenizer, batch_size=batch_size)
    expected = [by_hand(classifier, tokenizer, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert reward(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1]] * 4) == pytest.approx(
        expected, abs=1e-5
    )
    assert max(expected) - min(expected) > 0.1


def test_a_twin_with_a_shuffled_vocabulary_gives_the_same_scores(classifier):
    """The same words under other ids, and the embedding rows moved along."""
    import copy

    plain, shuffled = make_tokenizer(), shuffled_tokenizer()
    twin = copy.deepcopy(classifier)
    old, new = plain.get_vocab(), shuffled.get_vocab()
    with torch.no_grad():
        for word in old:
            twin.model.embed_tokens.weight[new[word]] = classifier.model.embed_tokens.weight[old[word]]
    one = LearnedReward(SeparateRewardModel(classifier), plain)(PROMPTS, COMPLETIONS)
    other = LearnedReward(SeparateRewardModel(twin), shuffled)(PROMPTS, COMPLETIONS)
    assert one == pytest.approx(other, abs=1e-5)


def test_plain_text_gets_one_end_token(classifier):
    tokenizer = make_tokenizer()
    reward = LearnedReward(SeparateRewardModel(classifier), tokenizer)
    end = tokenizer.eos_token_id
    assert reward.tokenize("hello ", "you are") == [*tokenizer("hello you are")["input_ids"], end]
    assert reward.tokenize("hello ", "you <|im_end|>").count(end) == 1


def test_it_tokenises_as_the_reward_trainer_does():
    """`trl.RewardTrainer` runs the chat template over prompt + answer and asks for token ids."""
    tokenizer = make_tokenizer()
    reward = LearnedReward(lambda *_: None, tokenizer)
    ids = reward.tokenize(PROMPTS[3], COMPLETIONS[3])
    assert tokenizer.decode(ids).split() == (
        ["<|im_start|>", "user", "hello", "<|im_end|>", "<|im_start|>", "assistant", "hello", "you", "<|im_end|>"]
    )


def test_order_is_kept_and_no_prompts_give_no_scores():
    def length(input_ids, attention_mask):
        return attention_mask.sum(dim=1)

    reward = LearnedReward(length, make_tokenizer(), batch_size=2)
    lengths = [len(reward.tokenize(p, c)) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert lengths != sorted(lengths)
    assert reward(PROMPTS, COMPLETIONS) == lengths
    assert reward([], []) == []


def test_a_text_longer_than_the_model_takes_is_an_error_with_its_lengths():
    reward = LearnedReward(lambda ids, mask: mask.sum(dim=1), make_tokenizer(), name="helpful", max_length=10)
    lengths = [
        len(reward.tokenize(prompt, completion)) for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    assert lengths == [15, 11, 12, 9]
    with pytest.raises(InputError) as caught:
        reward(PROMPTS, COMPLETIONS)
    message = str(caught.value)
    for part in ("'helpful'", "10 tokens", "3 of 4 texts", "up to 15", "no !", "the dog is good . yes !"):
        assert part in message
    for part in ("max_prompt_length", "max_completion_length"):
        assert part in message
    reward.max_length = 15
    assert reward(PROMPTS, COMPLETIONS) == lengths
