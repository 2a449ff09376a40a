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


TOOLS = [{"type": "function", "function": {"name": "mat"}}]
WITH_OPTIONS = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{{ mood is defined and mood or '' }} "
    "{% for m in messages %}{% if 'sad' in m.content %}{{ raise_exception('no sadness') }}{% endif %}{{ m.content }}"
    " {% endfor %}"
)


def options_reward(**settings):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = WITH_OPTIONS
    return LearnedReward(lambda ids, mask: mask.sum(dim=1), tokenizer, name="helpful", **settings)


def test_a_rows_tools_and_template_arguments_are_scored():
    reward = options_reward()
    talk, answer = PROMPTS[3], COMPLETIONS[1]  # one word each
    assert reward([talk] * 2, [answer] * 2) == [2, 2]
    assert reward([talk] * 2, [answer] * 2, tools=[TOOLS, None], chat_template_kwargs=[None, {"mood": "yes no"}]) == [
        3,
        4,
    ]
    ids = reward.tokenize(talk, answer, tools=TOOLS, chat_template_kwargs={"mood": "yes"})
    assert reward.tokenizer.decode(ids).split() == ["mat", "yes", "hello", "happy"]


def test_rewards_pass_the_columns_of_the_set_on():
    from hf_rlhf.rewards.contract import Rewards
    from hf_rlhf.types import Completion, Trajectory

    rows = [{"prompt": PROMPTS[3], "tools": tools, "id": 1} for tools in (TOOLS, None)]
    trajectories = [Trajectory(row, [1], Completion([1], [], True), "happy") for row in rows]
    rewards = Rewards([options_reward()]).compute(trajectories).rewards
    assert [reward.total for reward in rewards] == [3, 2]


def test_a_completion_that_the_template_refuses_is_one_message():
    with pytest.raises(
        InputError, match=r"(?s)reward model 'helpful': the chat template refuses it \(no sadness\).*sad yes"
    ):
        options_reward()([PROMPTS[3]], [[{"role": "assistant", "content": "sad yes"}]])


BEFORE = {"source": "train_dataset", "max_completion_length": 5, "same_tokens": True}


def test_prompts_are_tried_before_anything_is_sampled():
    reward = options_reward()
    reward.require_prompts([PROMPTS[0], PROMPTS[2]], {}, **BEFORE)
    with pytest.raises(InputError, match=r"train_dataset: reward model 'helpful': .*no sadness.* in 1 row \(1\)"):
        reward.require_prompts(PROMPTS, {}, **BEFORE)
    with pytest.raises(InputError, match="refuses it"):
        reward.require_prompts(PROMPTS[2:], {"tools": ["[", None]}, **BEFORE)
    reward.tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"train_dataset: reward model 'helpful': .* has no chat template"):
        reward.require_prompts(PROMPTS[:1], {}, **BEFORE)
    reward.require_prompts(["no template is needed"], {}, **BEFORE)


@pytest.mark.parametrize(("prompts", "tokens"), [(PROMPTS[2:3], 6), (["the cat sat on the mat"], 7)])
def test_prompt_and_completion_are_compared_with_the_positions(prompts, tokens, caplog):
    """Six words; text has its end token besides."""
    options_reward(max_length=tokens + 5).require_prompts(prompts, {}, **BEFORE)
    short = options_reward(max_length=tokens + 4)
    with pytest.raises(InputError, match=f"takes {tokens + 4} tokens, and prompt 0 .* has {tokens} by its tokenizer"):
        short.require_prompts(prompts, {}, **BEFORE)
    assert not caplog.text
    short.require_prompts(prompts, {}, **BEFORE | {"same_tokens": False})  # whose completions may be shorter
    assert "a text that is too long ends the run" in caplog.text
    with pytest.raises(InputError, match="Make max_prompt_length or"):
        options_reward(max_length=tokens).require_prompts(prompts, {}, **BEFORE | {"same_tokens": False})
    options_reward().require_prompts(prompts, {}, **BEFORE)
