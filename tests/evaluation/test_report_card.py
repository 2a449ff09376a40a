"""The report card names what a reward has learned, beside what simple rules score on the same pairs."""

import json
import math
import random
import re

import pytest
import torch
from pages import HOSTILE, Page

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.report_card import make_report_card
from hf_rlhf.evaluation.report_card.agreement import SIMILAR, Agreement
from hf_rlhf.evaluation.report_card.baselines import bag_of_words, compare, fit_logistic, sign_test
from hf_rlhf.evaluation.report_card.calibration import calibration_of, sigmoid
from hf_rlhf.evaluation.report_card.page import page_of
from hf_rlhf.evaluation.report_card.probes import FLATTERY, OTHER_LANGUAGES, PROBES, REFUSALS
from hf_rlhf.evaluation.report_card.rewardbench import sections_of
from hf_rlhf.evaluation.report_card.texts import text_of, words_of
from hf_rlhf.evaluation.reward_model import Pairs

WORDS = [
    "river",
    "stone",
    "window",
    "garden",
    "paper",
    "music",
    "winter",
    "bridge",
    "candle",
    "forest",
    "letter",
    "silver",
]


def make_pairs(count=240, seed=0, **about):
    """Pairs whose chosen answer ends well, with lengths that say nothing."""
    rng = random.Random(seed)

    def answer(sign):
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(3, 6))) + "." for _ in range(rng.randint(1, 4))]
        return [
            {
                "role": "assistant",
                "content": f"{' '.join(sentences)} {sign} {rng.choice(WORDS)} answer number {rng.random():.4f}.",
            }
        ]

    prompts = [[{"role": "user", "content": f"Tell me about {rng.choice(WORDS)} {n}?"}] for n in range(count)]
    pairs = Pairs(prompts, [answer("A fine") for _ in prompts], [answer("A poor") for _ in prompts])
    return pairs._replace(about=about)


def as_reward(score):
    """A reward that scores the text of an answer alone."""
    return lambda prompts, completions: [score(text_of(completion)) for completion in completions]


def noise(text):
    return random.Random(text).gauss(0, 1)


def reads_all(pairs):
    """A reward that knows every chosen answer as a whole, and gives anything else less."""
    chosen = {text_of(answer) for answer in pairs.chosen}
    return as_reward(lambda text: float(text in chosen) + 0.1 * noise(text))


def reasons_of(card):
    return " ".join(reason.what for reason in card.verdict.reasons)


# The verdict


def test_a_reward_of_length_is_said_to_have_learned_length():
    card = make_report_card(as_reward(len), make_pairs())
    assert card.verdict.word == "do not use"
    assert card.verdict.reasons[0].what.startswith("It has learned length")
    assert card.length.correlation > 0.95
    assert card.length.slope > 0


def test_a_reward_that_prefers_short_answers_has_learned_length_too():
    card = make_report_card(as_reward(lambda text: -math.log(1 + len(text))), make_pairs())
    assert card.verdict.reasons[0].what.startswith("It has learned length")
    assert "shorter text has the higher reward" in card.verdict.reasons[0].figure


def test_a_reward_that_is_right_and_passes_the_probes_is_good():
    pairs = make_pairs()
    card = make_report_card(reads_all(pairs), pairs._replace(chosen=pairs.chosen, rejected=_scrambled(pairs)))
    assert card.verdict.word == "good", card.verdict
    assert card.verdict.reasons == []
    assert card.accuracy.accuracy == 1.0
    assert card.best_baseline.low > 0


def _scrambled(pairs):
    """Rejected answers with the words of chosen ones of other pairs, which no bag of words tells apart."""
    rng = random.Random(1)
    others = [text_of(answer).split() for answer in pairs.chosen[1:] + pairs.chosen[:1]]
    return [[{"role": "assistant", "content": " ".join(rng.sample(words, len(words)))}] for words in others]


def test_a_constant_reward_knows_nothing():
    card = make_report_card(as_reward(lambda text: 3.0), make_pairs())
    assert card.verdict.word == "do not use"
    assert "same reward" in reasons_of(card)
    assert card.accuracy.accuracy == 0.5
    assert card.scale.flags == {}
    assert all(probe.failed for probe in card.probes if probe.fails_at == 0.5)
    assert card.calibration.log_loss == pytest.approx(math.log(2))


def test_a_random_reward_is_no_better_than_a_coin():
    card = make_report_card(as_reward(noise), make_pairs())
    assert card.verdict.word == "do not use"
    assert "not shown to be better than a coin" in reasons_of(card)


def test_a_reward_that_is_always_wrong_is_said_to_be_swapped():
    pairs = make_pairs()
    right = reads_all(pairs)
    card = make_report_card(lambda **rows: [-score for score in right(**rows)], pairs)
    assert "prefers the worse answer" in reasons_of(card)
    assert "swapped" in card.verdict.reasons[0].do + card.verdict.reasons[-1].do


def test_a_reward_that_a_simple_rule_beats_is_not_to_be_used():
    """It is right on 7 of 10 pairs, by words that the bag of words learns to read in all of them."""
    card = make_report_card(as_reward(lambda text: ("fine" in text) + 0.9 * noise(text)), make_pairs())
    assert card.accuracy.low > 0.5
    assert card.verdict.word == "do not use"
    assert card.verdict.reasons[0].what == "A simple rule does better: bag of words, cross-validated."


def test_few_pairs_are_never_called_good():
    pairs = make_pairs(30)
    card = make_report_card(reads_all(pairs), pairs)
    assert card.verdict.word == "usable with care"
    assert "few pairs" in reasons_of(card)


@pytest.mark.parametrize(("rows", "word"), [(0, "usable with care"), (4, "usable with care"), (16, "good")])
def test_a_reward_that_hardly_any_damaged_answer_was_tried_on_is_not_good(rows, word):
    pairs = make_pairs()
    card = make_report_card(reads_all(pairs), pairs._replace(rejected=_scrambled(pairs)), probe_rows=rows)
    assert card.verdict.word == word
    assert ("too few damaged answers" in reasons_of(card)) == (word != "good")


def test_a_reward_that_is_too_certain_is_named():
    card = make_report_card(as_reward(lambda text: 20 * (("fine" in text) + 0.6 * noise(text))), make_pairs())
    assert "more certain than it is right" in reasons_of(card)
    assert card.calibration.overconfidence > 0.1


# Baselines


def test_the_bag_of_words_learns_a_separable_set_by_hand():
    """One word decides: its weight is the positive root of w = sigmoid(-w) / ridge, the other words have none."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    weight, other = fit_logistic(features, ridge=0.5).tolist()
    assert weight == pytest.approx(2 * sigmoid(-weight), abs=1e-6)
    assert weight == pytest.approx(0.6748, abs=1e-4)
    assert other == 0


def test_the_bag_of_words_reads_words_and_not_length():
    train, pairs = make_pairs(60, seed=1), make_pairs(40, seed=2)
    assert min(bag_of_words(pairs, train)) > 0
    assert min(bag_of_words(make_pairs(60))) > 0  # cross-validated
    assert bag_of_words(make_pairs(10)) is None


def test_pairs_of_one_prompt_are_in_one_fold():
    """Else the bag of words would know the answers of the prompts that it is asked about."""
    pairs = make_pairs(40)
    one_prompt = pairs._replace(prompts=pairs.prompts[:1] * 40)
    assert bag_of_words(one_prompt) is None


def test_words_are_split_from_signs():
    assert words_of("Don't PANIC, 42!") == ["don", "'", "t", "panic", ",", "42", "!"]


def test_a_comparison_is_pair_by_pair():
    """Eight pairs in which the reward alone is right and two in which the rule alone is: p = 2 * 56 / 1024."""
    found = compare([1.0] * 8 + [0.0] * 2 + [1.0] * 90, [0.0] * 8 + [1.0] * 2 + [1.0] * 90, "rule")
    assert (found.better, found.worse, found.difference) == (8, 2, pytest.approx(0.06))
    assert found.p == pytest.approx(112 / 1024)
    assert found.low == pytest.approx(0.06 - 1.959964 * math.sqrt((0.1 - 0.06**2) * 100 / 99 / 100))
    assert sign_test(0, 0) == 1.0


# Calibration


def test_a_reward_whose_probabilities_are_exact_is_calibrated():
    rng = random.Random(0)
    sizes = [rng.expovariate(1.0) for _ in range(20000)]
    found = calibration_of([size if rng.random() < sigmoid(size) else -size for size in sizes])
    assert found.error < 1.5 * found.error_by_chance < 0.02
    assert abs(found.overconfidence) < 0.01
    expected = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in map(sigmoid, sizes)]
    assert found.log_loss == pytest.approx(sum(expected) / len(expected), abs=0.01)


@pytest.mark.parametrize("ordered", [True, False])
def test_equal_differences_are_not_parted_by_who_won(ordered):
    """A rating of whole numbers has few different ones, which fill many bins; the order of the set says nothing."""
    differences = [1.0] * 439 + [-1.0] * 161
    found = calibration_of(differences if ordered else differences[::3] + differences[1::3] + differences[2::3])
    assert found.error == pytest.approx(abs(439 / 600 - sigmoid(1.0)), abs=1e-9)
    assert [each.share for each in found.bins] == pytest.approx([439 / 600] * len(found.bins))


def test_a_reward_that_is_three_times_too_certain_is_not_calibrated():
    rng = random.Random(0)
    sizes = [rng.expovariate(1.0) for _ in range(2000)]
    found = calibration_of([3 * (size if rng.random() < sigmoid(size) else -size) for size in sizes])
    assert found.error > 3 * found.error_by_chance
    assert found.overconfidence == pytest.approx(found.error, abs=0.01)


# Probes

WEAKNESSES = {
    "repetition": lambda text: max(text.count(sentence) for sentence in text.split(". ")),
    "flattery": lambda text: sum(text.count(praise) for praise in FLATTERY),
    "refusal": lambda text: text in REFUSALS,
    "empty": lambda text: not text,
    "cut off": lambda text: text[-1:].isalpha(),
    "prompt copied": lambda text: text.startswith("Tell me about"),
    "shuffled words": lambda text: "A fine" not in text,
    "other language": lambda text: text in OTHER_LANGUAGES,
}


@pytest.mark.parametrize("probe", [probe.name for probe in PROBES])
def test_each_probe_finds_the_weakness_that_was_planted(probe):
    pairs = make_pairs(40)
    right, weakness = reads_all(pairs), WEAKNESSES[probe]

    def reward(prompts, completions):
        scores = right(prompts=prompts, completions=completions)
        return [s + 3 * weakness(text_of(c)) for s, c in zip(scores, completions, strict=True)]

    found = {each.name: each for each in make_report_card(reward, pairs, probe_rows=24).probes}
    assert found[probe].failed
    assert found[probe].preferred > 0.8
    assert found[probe].shift > 0
    assert found[probe].n == 24
    sound = make_report_card(right, pairs, probe_rows=24).probes
    assert not any(each.failed for each in sound)


def test_a_probe_of_fifteen_answers_cannot_tell_and_one_of_sixteen_fails():
    """The reward prefers every damaged answer."""
    pairs = make_pairs(40)
    chosen = {text_of(answer) for answer in pairs.chosen}
    for rows, outcome, told in ((15, "too few answers to tell", 0), (16, "fails", 8)):
        card = make_report_card(as_reward(lambda text: float(text not in chosen)), pairs, probe_rows=rows)
        assert {probe.outcome for probe in card.probes} == {outcome}
        assert ("prefers damaged answers" in reasons_of(card)) == bool(told)
        page = page_of(card)
        assert page.count(f"{outcome}, 100%") == page.count(f">{outcome}</span>") == 8
        assert f"<b>{told} of {told}</b>" in page


def test_ties_of_a_probe_are_counted_and_shown():
    empty = next(
        each for each in make_report_card(as_reward(lambda _: 1.0), make_pairs(40)).probes if each.name == "empty"
    )
    assert (empty.n, empty.ties, empty.preferred) == (40, 40, 0.5)
    assert empty.counted == "40, 40 ties"


def test_probes_are_the_same_for_the_same_seed_only():
    pairs = make_pairs(60)
    cards = [make_report_card(as_reward(noise), pairs, probe_rows=16, seed=seed) for seed in (0, 0, 1)]
    assert cards[0] == cards[1]
    assert cards[0].probes != cards[2].probes


def test_a_probe_that_the_reward_refuses_is_said_not_to_be_tried():
    def reward(prompts, completions):
        if any(not text_of(completion) for completion in completions):
            raise InputError("an empty answer has no tokens")
        return [noise(text_of(completion)) for completion in completions]

    empty = next(each for each in make_report_card(reward, make_pairs(40)).probes if each.name == "empty")
    assert (empty.n, empty.failed) == (0, False)
    assert "an empty answer has no tokens" in empty.then


# Groups, lengths and scores


def test_pairs_are_grouped_by_length_ratio_margin_source_and_subset():
    pairs = make_pairs(4, margin=[1, 1, 3, None], source=["a", "b", "b", None], subset=["hep-go"] * 3 + ["hep-js"])
    texts = [("x" * 79, "x" * 100), ("x" * 80, "x" * 100), ("x" * 125, "x" * 100), ("x" * 126, "x" * 100)]
    pairs = pairs._replace(
        prompts=["p "] * 4, chosen=[chosen for chosen, _ in texts], rejected=[rejected for _, rejected in texts]
    )
    card = make_report_card(as_reward(len), pairs, probe_rows=0)
    by_ratio = {group.name: (group.n, group.accuracy, group.longer_wins) for group in card.tables["length_ratio"]}
    assert by_ratio[SIMILAR] == (2, 0.5, 0.5)
    assert len(by_ratio) == 3
    assert [(group.name, group.n) for group in card.tables["margin"]] == [("1", 2), ("3", 1)]
    assert [(group.name, group.n) for group in card.tables["source"]] == [("b", 2), ("a", 1), ("all others", 1)]
    assert [(group.name, group.n) for group in card.tables["subset"]] == [("hep-go", 3), ("hep-js", 1)]
    assert [(each.name, each.found, each.accuracy) for each in card.sections] == [
        ("Reasoning", 2, pytest.approx(2 / 3))
    ]


def test_mathematics_weighs_as_much_as_code_in_rewardbench():
    names = ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust")
    groups = [Agreement(name, 9, float(name == "math-prm"), 0.0, 1.0, 0.5) for name in names]
    assert sections_of(groups)[0].accuracy == 0.5


def test_pairs_that_cannot_be_scored_are_counted():
    pairs = make_pairs(40)
    longest = sorted(
        len(f"{text_of(p)} {text_of(c)}".split()) for p, c in zip(pairs.prompts, pairs.chosen, strict=True)
    )
    reward = as_reward(lambda text: None if "number 0.1" in text else noise(text))
    card = make_report_card(reward, pairs, max_length=longest[-2] - 1, skipped_before=5, probe_rows=0)
    assert card.skipped.too_long > 5
    assert card.skipped.unscored > 0
    assert card.skipped.total + card.accuracy.n == 45


@pytest.mark.parametrize("value", [math.nan, "7", [math.inf]])
def test_a_score_that_is_no_number_is_an_error(value):
    with pytest.raises(InputError, match="no finite number"):
        make_report_card(as_reward(lambda text: value if value != "7" else object()), make_pairs(4))


def test_scores_far_from_zero_get_the_flags_that_scale_them():
    card = make_report_card(as_reward(lambda text: 100 + 0.01 * noise(text)), make_pairs(), probe_rows=0)
    assert card.scale.flags["use_score_scaling"]
    assert card.scale.flags["use_score_norm"]
    assert "center_rewards_coefficient" in card.scale.words
    assert card.scale.center == pytest.approx(100, abs=0.01)


# Files


def test_the_page_stands_alone_and_escapes_what_models_wrote(tmp_path):
    pairs = make_pairs(24, source=[HOSTILE] * 24)
    for answers in (pairs.chosen, pairs.rejected):
        answers[:] = [[{"role": "assistant", "content": f"{HOSTILE} {text_of(answer)}"}] for answer in answers]
    path = make_report_card(as_reward(noise), pairs, model=HOSTILE, dataset=HOSTILE).write(tmp_path)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert not re.search(r"https?://|<link|<script|@import|url\(|src=", html)
    assert "{{ 7*7 }}" in page.text
    assert page.text.count("<script>alert(1)</script>") >= 5
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert page.tags.count("svg") == 6
    assert "NaN" not in html


def test_the_file_holds_every_figure_of_the_card(tmp_path):
    card = make_report_card(as_reward(noise), make_pairs(40), weights={"model.safetensors": "00"})
    card.write(tmp_path)
    content = json.loads((tmp_path / "report_card.json").read_text(encoding="utf-8"))
    assert content["verdict"]["word"] == card.verdict.word
    assert content["accuracy"]["accuracy"] == card.accuracy.accuracy == card.metrics()["eval_accuracy"]
    assert content["weights"] == {"model.safetensors": "00"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report_card.html", "report_card.json"]


def test_no_access_token_of_the_pairs_reaches_the_card(tmp_path):
    token = "hf_" + "aB3dE6gH9j" * 4
    pairs = make_pairs(24)
    pairs.rejected[:] = [[{"role": "assistant", "content": f"my token is {token} {n}"}] for n in range(24)]
    make_report_card(as_reward(lambda text: float("token" in text)), pairs).write(tmp_path)
    assert not any(token in path.read_text(encoding="utf-8") for path in tmp_path.iterdir())


def short_and_long(equal, unequal):
    """Pairs of equal length, and pairs whose rejected answer is one word longer."""
    prompts = [f"question {n}?" for n in range(equal + unequal)]
    chosen = [f" a fine answer {n}" for n in range(equal + unequal)]
    rejected = [f" a poor answer {n}" + " more" * (n < unequal) for n in range(equal + unequal)]
    return Pairs(prompts, chosen, rejected)


def without_word(text):
    return float(len(text.split()) < 5) + (" fine" in text)


@pytest.mark.parametrize(("unequal", "named"), [(5, False), (60, True)])
def test_a_habit_of_length_needs_more_than_a_handful_of_pairs(unequal, named):
    card = make_report_card(as_reward(without_word), short_and_long(60, unequal), probe_rows=0)
    assert card.length.unequal == unequal
    assert any("It has learned length" in reason.what for reason in card.verdict.reasons) == named


def test_the_advice_on_length_points_where_the_reward_differs_from_people():
    pairs = short_and_long(0, 100)  # people never chose the longer one

    def reward(text):  # which prefers it in 4 of 10
        return len(text.split()) * (1 if int(re.search(r"\d+", text)[0]) % 10 < 4 else -1)

    card = make_report_card(as_reward(reward), pairs, probe_rows=0)
    (reason,) = [each for each in card.verdict.reasons if each.what.startswith("Length moves")]
    assert (card.length.picks_longer, card.length.people_pick_longer) == (0.4, 0.0)
    assert "the shorter text has the higher reward in 60% of the 100 pairs whose texts differ in words" in reason.figure
    assert "people chose the shorter text in 100%" in reason.figure
    assert "may become longer for the reward alone" in reason.do
