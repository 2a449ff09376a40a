"""Preferences and the win rates that follow from them, by hand."""

import pytest

from hf_rlhf.evaluation.metrics import preference_rate, preferences_of, wilson_interval
from hf_rlhf.evaluation.opinions import JUDGE, PEOPLE, REWARD, Opinions, in_words, opinions_of_rewards, result_of
from hf_rlhf.evaluation.policy_tables import comparison_rows


def test_a_prompt_without_a_reward_on_one_side_counts_nowhere():
    found = opinions_of_rewards("r", "start", [1.0, None, 0.5, 0.0, 2.0], [0.0, 9.0, 0.5, 1.0, None])
    assert found.preferences == [1.0, None, 0.5, 0.0, None]
    assert found.details["difference"]["mean"] == 0.0
    assert found.details["policy_reward"]["mean"] == 0.5
    result = result_of(found, ["a"] * 5, ["b"] * 5)
    assert (result["n"], result["unanswered"]) == (3, 2)
    assert result["win_rate"] | {"low": 0, "high": 0} == {
        "rate": 0.5, "low": 0, "high": 0, "wins": 1, "ties": 1, "losses": 1,
    }  # fmt: skip
    low, high = wilson_interval(0.5, 3)
    assert (result["win_rate"]["low"], result["win_rate"]["high"]) == (low, high)
    assert low == pytest.approx(0.5 - 0.3747, abs=1e-3)  # 0.5 +- 1.96 sqrt(1/12 + 1.96^2/36) / (1 + 1.96^2/3)


def test_without_any_answer_there_is_no_win_rate():
    for found in (
        opinions_of_rewards("r", "start", [None], [1.0]),
        Opinions(JUDGE, "j", "start", [None, None]),
    ):
        result = result_of(found, ["a", "b"], ["c", "d"])
        assert result["win_rate"] is None
        assert result["length_controlled"] is None
        assert result["unanswered"] == len(found.preferences)


def test_a_share_of_votes_is_a_win_above_one_half():
    wins = preference_rate([2 / 3, 1 / 3, 0.5, 1.0])
    assert (wins.wins, wins.ties, wins.losses, wins.rate) == (2, 1, 1, 0.625)
    assert preferences_of([1.0, 1.0, 1.0], [1.0 + 1e-12, 2.0, 0.0]) == [0.5, 1.0, 0.0]
    with pytest.raises(ValueError, match="empty"):
        preference_rate([])


@pytest.mark.parametrize(
    ("by", "words"), [(REWARD, "the reward x prefers"), (JUDGE, "the judge x prefers"), (PEOPLE, "people prefer")]
)
def test_the_sentence_says_who_compared(by, words):
    result = result_of(Opinions(by, "x", "start", [1.0, 1.0, 0.0, 0.5]), ["a"] * 4, ["b"] * 4)
    sentence = in_words(result)
    assert sentence.startswith(
        f"On 4 held-out prompts, {words} the policy's completion to that of start 62% of the time"
    )
    (row,) = comparison_rows({"comparisons": [result | {"agreement": None}]})
    assert (row.rate, row.counts) == ("62%", "2 / 1 / 1")
