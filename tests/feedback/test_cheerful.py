"""The simulated annotator likes what a person would call short, warm and cheerful, and is not fooled by word heaps."""

import math

import pytest

from hf_rlhf.feedback.cheerful import Candidate, CheerfulAnnotator

GOOD = [
    "That sounds lovely! I hope you enjoy every minute of it.",
    "Congratulations! I'm so happy for you.",
    "I’m so glad to hear that! It sounds like a wonderful way to spend the day.",
    "Happy birthday! I hope you have a wonderful day.",
    "Basil is a great choice, and it smells delicious too. Enjoy your little garden!",
    "Wow, that is amazing! You should be so proud of yourself.",
]
NEUTRAL = [
    "You should water a potted fern twice a week.",
    "The train will leave at nine.",
    "Spinach and eggs can be used to make an omelette.",
    "I am not happy with it, and it is no fun.",
]
HACKS = [
    "Wonderful! Wonderful! Wonderful! love love",
    "love happy wonderful great lovely",
    "love you happy me wonderful it great that lovely",
    "happy garden flower sunshine lovely table morning kitchen!",
    "I love you! I love you! I love you! I love you!",
    "I hope you enjoy it. I hope you love it. I hope you like it. I hope you enjoy it.",
    "So happy for you! So glad for you! So proud for you! So lovely for you!",
    "Great!!! So lovely!!! I hope you enjoy it!!!",
    "lovely xkqz happy brrtt the wqrtp glad vvnm!",
    "joyjoyjoy lovelylovely happyhappyhappy wonderfulwonderful",
    "😀😀😀😀 lovely 😀😀😀😀",
    "!!!!!!!",
    "Great!",
]


@pytest.mark.parametrize("reply", GOOD)
def test_short_warm_replies_are_rated_high(reply):
    assert 0.75 < CheerfulAnnotator().rate(reply, finished=True) <= 1.0


@pytest.mark.parametrize("reply", NEUTRAL)
def test_neutral_replies_are_rated_low_to_middle(reply):
    assert 0.1 <= CheerfulAnnotator().rate(reply, finished=True) <= 0.35


@pytest.mark.parametrize("reply", HACKS)
def test_hacks_are_rated_low(reply):
    assert CheerfulAnnotator().rate(reply, finished=True) < 0.4


@pytest.mark.parametrize("reply", GOOD)
def test_a_reply_that_was_cut_off_is_rated_low(reply):
    assert CheerfulAnnotator().rate(reply, finished=False) < 0.4


@pytest.mark.parametrize("reply", ["", "   ", "123 456", "\n"])
def test_a_reply_without_words_is_rated_zero(reply):
    assert CheerfulAnnotator().rate(reply) == 0.0


def test_rating_by_hand():
    # lovely, hope, enjoy and the exclamation mark: n = 4, and every other factor is 1.
    rating = CheerfulAnnotator().rate("That sounds lovely! I hope you enjoy every minute of it.")
    assert rating == pytest.approx(0.2 + 0.8 * (1 - math.exp(-2)))


def test_forms_of_one_word_count_once():
    annotator = CheerfulAnnotator()
    one = annotator.rate("I am happy that the long walk to the market was so short today.")
    two = annotator.rate("I am happily happy that the long walk to the market was so short.")
    assert two == pytest.approx(one)


def test_long_replies_are_rated_lower():
    numbers = "and then we walked past one more old house by the river bank"
    annotator = CheerfulAnnotator()
    short = "I am glad you are happy with the fun garden."
    long = (
        short + " " + " ".join(f"{word}{suffix}" for suffix in ("", "s", "es", "ed") for word in numbers.split()) + "."
    )
    assert annotator.rate(long) < 0.5 * annotator.rate(short)


def test_preference_does_not_depend_on_the_order():
    replies = [Candidate(text) for text in GOOD + NEUTRAL + HACKS]
    annotator = CheerfulAnnotator(noise=0.5, seed=3)
    for a in replies:
        for b in replies:
            assert annotator.prefer("Hello", a, b) == annotator.prefer("Hello", b, a)


def test_ties_give_no_preference():
    annotator = CheerfulAnnotator(noise=0.5)
    assert annotator.prefer("Hello", Candidate(GOOD[0]), Candidate(GOOD[0])) is None
    assert annotator.prefer("Hello", Candidate(NEUTRAL[0]), Candidate(NEUTRAL[1])) is None


def test_the_same_text_finished_is_preferred_to_cut_off():
    preference = CheerfulAnnotator(noise=0.0).prefer("Hello", Candidate(GOOD[0], False), Candidate(GOOD[0], True))
    assert preference is not None
    assert preference.chosen.finished
    assert preference.probability == 1.0


def test_noise_frequency_follows_bradley_terry():
    annotator = CheerfulAnnotator(noise=0.5, seed=1)
    better, worse = Candidate(GOOD[0]), Candidate(NEUTRAL[0])
    expected = 1 / (1 + math.exp(-(annotator.rate(better.text) - annotator.rate(worse.text)) / 0.5))
    n = 4000
    draws = [annotator.prefer(f"prompt {i}", worse, better) for i in range(n)]
    wins = sum(draw is not None and draw.chosen == better for draw in draws)
    assert wins / n == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))
    for draw in draws:
        assert draw is not None
        assert draw.probability == pytest.approx(expected if draw.chosen == better else 1 - expected)


def test_the_seed_changes_the_draws():
    better, worse = Candidate(GOOD[0]), Candidate(NEUTRAL[0])
    choices = [
        [CheerfulAnnotator(noise=1.0, seed=seed).prefer(f"prompt {i}", better, worse) for i in range(50)]
        for seed in (0, 1)
    ]
    assert choices[0] != choices[1]


@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf])
def test_impossible_noise_is_refused(noise):
    with pytest.raises(ValueError, match="noise="):
        CheerfulAnnotator(noise=noise)
