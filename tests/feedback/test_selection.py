"""Which completions to ask about."""

import pytest
import torch

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import Form
from hf_rlhf.feedback.selection import Question, choose_questions, possible_questions

TEXTS = [["a", "b", "a", " "], ["c"], ["d", "e"]]


def test_a_form_asks_about_pairs_all_or_each_once_and_never_about_no_text():
    assert possible_questions(TEXTS, Form("pairwise")) == [Question(0, (0, 1)), Question(2, (5, 6))]
    assert possible_questions(TEXTS, Form("ranking")) == [Question(0, (0, 1)), Question(2, (5, 6))]
    single = possible_questions(TEXTS, Form("correction"))
    assert [each.candidates for each in single] == [(0,), (1,), (4,), (5,), (6,)]
    assert len(possible_questions([["a", "b", "c"]], Form("pairwise"))) == 3
    assert possible_questions([["a", "b", "c"]], Form("rating")) == [Question(0, (0, 1, 2))]


QUESTIONS = [Question(number, (2 * number, 2 * number + 1)) for number in range(4)]
# Two members each; the pairs differ by (2, 2), (3, -3), (0, 0) and (1, 0).
REWARDS = torch.tensor([[2.0, 7.0], [0.0, 5.0], [3.0, 0.0], [0.0, 3.0], [9.0, 1.0], [9.0, 1.0], [1.0, 0.0], [0.0, 0.0]])


def test_disagreement_is_about_the_difference_and_not_about_the_level():
    chosen = choose_questions(QUESTIONS, 4, "disagreement", seed=0, rewards=REWARDS)
    assert [each.prompt for each in chosen[:2]] == [1, 3]  # members agree on the others, at whatever level


def test_uncertainty_asks_where_the_mean_reward_decides_least():
    chosen = choose_questions(QUESTIONS, 4, "uncertainty", seed=0, rewards=REWARDS)
    assert {each.prompt for each in chosen[:2]} == {1, 2}
    assert [each.prompt for each in chosen[2:]] == [3, 0]


@pytest.mark.parametrize("how", ["random", "disagreement", "uncertainty"])
def test_a_choice_is_that_of_its_seed(how):
    many = [Question(number, (0, 1)) for number in range(50)]
    chosen = [choose_questions(many, 10, how, seed=seed, rewards=REWARDS) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 10


def test_a_choice_that_cannot_be_made_is_an_error():
    with pytest.raises(InputError, match="choose=disagreement is invalid with 1 reward models"):
        choose_questions(QUESTIONS, 1, "disagreement", seed=0, rewards=REWARDS[:, :1])
    with pytest.raises(InputError, match="choose=best is invalid"):
        choose_questions(QUESTIONS, 1, "best", seed=0)
