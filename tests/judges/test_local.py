"""A judge that is loaded here, against probabilities by the model's own forward pass."""

import pytest
import torch
from tiny import make_judge_tokenizer, make_model, make_tokenizer

from hf_rlhf.errors import InputError
from hf_rlhf.judges import ModelJudge
from hf_rlhf.judges.questions import Question, comparison_messages, rating_messages

PROMPTS = [[{"role": "user", "content": "the cat sat"}], "a dog", "you are good", "is it happy ?"]
FIRST, SECOND = ["good cat", "yes", "the mat is good", "no"], ["bad", "sad dog sat on the mat .", "hello", "a !"]


@pytest.fixture(scope="module")
def judge():
    tokenizer = make_judge_tokenizer()
    return ModelJudge(make_model(tokenizer, max_position_embeddings=512), tokenizer, name="tiny")


def logits_of(judge, messages):
    encoded = judge.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return judge.model(**encoded).logits[0, -1]


def test_a_preference_is_the_probability_of_a_among_the_letters(judge):
    found = judge.compare(PROMPTS, FIRST, SECOND)
    letters = judge.tokenizer.convert_tokens_to_ids(["A", "B"])
    for row, comparison in enumerate(found):
        question = Question(judge.question, PROMPTS[row], (FIRST[row], SECOND[row]))
        expected = logits_of(judge, comparison_messages(question, ties=False))[letters].softmax(0)[0].item()
        assert comparison.shown_first == pytest.approx(expected, abs=1e-5)
        question = Question(judge.question, PROMPTS[row], (SECOND[row], FIRST[row]))
        expected = logits_of(judge, comparison_messages(question, ties=False))[letters].softmax(0)[1].item()
        assert comparison.shown_second == pytest.approx(expected, abs=1e-5)


def test_a_rating_is_the_mean_of_1_to_5_by_their_probabilities(judge):
    ids = judge.tokenizer.convert_tokens_to_ids([*"12345"])
    for row, rating in enumerate(judge.rate(PROMPTS, FIRST)):
        messages = rating_messages(Question(judge.rubric, PROMPTS[row], (FIRST[row],)))
        weights = logits_of(judge, messages)[ids].softmax(0)
        assert rating == pytest.approx((weights @ torch.arange(1.0, 6.0)).item(), abs=1e-4)


def test_an_answer_does_not_depend_on_its_batch(judge):
    alone = ModelJudge(judge.model, judge.tokenizer, name="tiny", batch_size=1).compare(PROMPTS, FIRST, SECOND)
    together = judge.compare(PROMPTS, FIRST, SECOND)
    for one, other in zip(alone, together, strict=True):
        assert one.shown_first == pytest.approx(other.shown_first, abs=1e-5)


def test_swapped_rows_give_swapped_answers(judge):
    found, swapped = judge.compare(PROMPTS, FIRST, SECOND), judge.compare(PROMPTS, SECOND, FIRST)
    for one, other in zip(found, swapped, strict=True):
        assert one.probability == pytest.approx(1 - other.probability, abs=1e-5)


def test_each_pair_may_have_a_question_of_its_own(judge):
    done = []
    own = judge.compare(PROMPTS, FIRST, SECOND, questions=["good ?", *[judge.question] * 3], on_done=done.append)
    same = judge.compare(PROMPTS, FIRST, SECOND)
    assert own[0] != same[0]
    assert own[1].shown_first == pytest.approx(same[1].shown_first, abs=1e-5)
    assert sum(done) == 2 * len(PROMPTS)


def test_a_model_without_a_chat_template_is_asked_in_plain_text():
    tokenizer = make_judge_tokenizer(chat_template=False)
    judge = ModelJudge(make_model(tokenizer, max_position_embeddings=512), tokenizer)
    assert 1 < judge.rate(["the cat"], ["good"])[0] < 5


def test_a_tokenizer_without_the_letters_is_refused():
    tokenizer = make_tokenizer()
    with pytest.raises(InputError, match="no token for the answer 'A'"):
        ModelJudge(make_model(tokenizer), tokenizer, name="tiny")


def test_a_question_beyond_the_positions_is_refused():
    tokenizer = make_judge_tokenizer()
    judge = ModelJudge(make_model(tokenizer, max_position_embeddings=40), tokenizer, name="tiny")
    with pytest.raises(InputError, match=r"takes 40 tokens, and a question to it has \d+"):
        judge.rate(["the cat"], ["good " * 20])


def test_the_cache_key_changes_with_the_weights_and_the_wording(judge):
    tokenizer = judge.tokenizer
    same, other = (make_model(tokenizer, seed=seed, max_position_embeddings=512) for seed in (0, 1))
    keys = [ModelJudge(other, tokenizer).cache_key, ModelJudge(same, tokenizer, rubric="good ?").cache_key]
    assert ModelJudge(same, tokenizer).cache_key == judge.cache_key
    assert len({judge.cache_key, *keys}) == 3
