"""Each form becomes the rows that the table of the how-to promises, and our own readers take them."""

import pytest
from feedback_stores import FIXED, PAIR, RANKED, RATED, prefer, read_as, reply, say, user
from tiny import make_tokenizer

from hf_rlhf.errors import InputError
from hf_rlhf.feedback import Event, FeedbackStore, Form, Task
from hf_rlhf.feedback.conversion import ConversionRules, convert
from hf_rlhf.feedback.forms import form_from_json
from hf_rlhf.feedback.store import FLAG, SKIP, new_uuid
from hf_rlhf.records import write_json_lines


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "feedback.db") as opened:
        yield opened


def pair(number: int = 1, **changed) -> Task:
    return Task(PAIR, user(f"is it {number} ?"), (reply("yes"), reply("no")), **changed)


def test_the_strength_of_a_preference_is_its_margin(store):
    for strength in (1, 2, 3):
        prefer(store, pair(strength, sources=("small", "big")), 1, strength=strength)
    rows = convert(store).preferences
    assert [row["margin"] for row in rows] == [0.333333, 0.666667, 1.0]
    assert rows[0]["prompt"] == user("is it 1 ?")
    assert (rows[0]["chosen"], rows[0]["rejected"]) == (reply("no"), reply("yes"))
    assert rows[0]["sources"] == ["big", "small"]
    assert [row["margin"] for row in convert(store, ConversionRules(margins=(1, 2, 3))).preferences] == [1, 2, 3]
    assert all("margin" not in row for row in convert(store, ConversionRules(margins=None)).preferences)


def test_a_form_without_strengths_has_no_margin_unless_another_form_has_one(store):
    plain = Task(Form("pairwise", strengths=1), user("which ?"), (reply("yes"), reply("no")))
    prefer(store, plain, 0)
    assert "margin" not in convert(store).preferences[0]
    prefer(store, pair(), 0, strength=3)
    assert [row["margin"] for row in convert(store).preferences] == [0.666667, 1.0]


def test_ties_give_no_pair_and_both_bad_gives_two_false_labels(store):
    prefer(store, pair(1), "tie")
    prefer(store, pair(2), "both_bad")
    made = convert(store)
    assert made.preferences == []
    assert made.report["omitted"]["preferences"] == {"a tie": 1, "both are bad": 1}
    assert [(row["completion"], row["label"]) for row in made.labels] == [(reply("yes"), False), (reply("no"), False)]
    assert made.labels[0]["prompt"] == user("is it 2 ?")


def test_a_ranking_is_all_pairs_of_different_ranks_and_a_rated_group(store):
    task = Task(RANKED, user("hello"), tuple(map(reply, ("good", "bad", "sad", "happy"))))
    say(store, task, {"ranks": [1, 3, 3, 2]})
    made = convert(store)
    found = {(row["chosen"][0]["content"], row["rejected"][0]["content"]): row["margin"] for row in made.preferences}
    assert found == {
        ("good", "bad"): 0.666667,
        ("good", "sad"): 0.666667,
        ("good", "happy"): 0.333333,
        ("happy", "bad"): 0.333333,
        ("happy", "sad"): 0.333333,
    }
    assert made.report["omitted"]["preferences"] == {"a tie": 1}
    assert made.rankings[0]["ratings"] == [-1.0, -3.0, -3.0, -2.0]


def test_ratings_of_one_prompt_are_pairs_only_by_the_same_annotator(store):
    one, other = (Task(RATED, user("hello"), (reply(text),)) for text in ("good", "bad"))
    say(store, one, {"ratings": {"quality": [5]}}, "ann")
    say(store, other, {"ratings": {"quality": [2]}}, "bob")
    assert convert(store).preferences == []
    say(store, other, {"ratings": {"quality": [3]}}, "ann")
    (row,) = convert(store).preferences
    assert (row["chosen"], row["rejected"], row["margin"]) == (reply("good"), reply("bad"), 0.5)
    assert row["annotators"] == ["ann"]
    assert len(row["event_ids"]) == 2
    (rated,) = convert(store).ratings
    assert rated["completions"] == [reply("good"), reply("bad")]
    assert rated["ratings"] == [5.0, 2.5]


def test_high_ratings_are_good_labels_low_ones_bad_and_the_middle_none(store):
    for points, expected in ((5, [False, False, None, True, True]), (3, [False, None, True]), (10, [False] * 3 + [None] * 4 + [True] * 3)):  # fmt: skip
        for rating in range(1, points + 1):
            task = Task(Form("rating", points=points), user(f"{points} ?"), (reply(f"it is {rating}"),))
            say(store, task, {"ratings": {"quality": [rating]}})
        made = [row for row in convert(store).labels if row["prompt"] == user(f"{points} ?")]
        assert [row["label"] for row in made] == [label for label in expected if label is not None]
    assert convert(store).report["omitted"]["labels"] == {"neither good nor bad": 6}


def test_ratings_on_different_scales_are_put_on_one(store):
    for points in (5, 3):
        say(store, Task(Form("rating", points=points), user(f"{points} ?"), (reply("good"),)), {"ratings": {"quality": [3]}})  # fmt: skip
    made = convert(store)
    assert [row["ratings"] for row in made.ratings] == [[0.5], [1.0]]
    assert made.report["rating_scale"] == "0 to 1"


def test_standardized_ratings_are_distances_from_the_annotators_own_mean(store):
    for number, (mild, severe) in enumerate([(3, 1), (4, 2), (5, 3)]):
        task = Task(RATED, user(f"{number} ?"), (reply("good"),))
        say(store, task, {"ratings": {"quality": [mild]}}, "mild")
        say(store, task, {"ratings": {"quality": [severe]}}, "severe")
    made = convert(store, ConversionRules(standardize_ratings=True))
    assert [row["ratings"][0] for row in made.ratings] == [-1.224745, 0.0, 1.224745]


def test_criteria_are_averaged_and_stay_beside_the_mean(store):
    form = Form("rating", criteria=("true", "kind"))
    say(store, Task(form, user("hello"), (reply("good"), reply("bad"))), {"ratings": {"true": [5, 1], "kind": [4, 2]}})
    (row,) = convert(store).ratings
    assert (row["ratings"], row["rating_true"], row["rating_kind"]) == ([4.5, 1.5], [5, 1], [4, 2])


def test_a_correction_is_a_preference_and_a_demonstration(store):
    task = Task(FIXED, user("hello"), (reply("you are bad"),), sources=("small",))
    say(store, task, {"text": "you are good"})
    made = convert(store)
    (row,) = made.preferences
    assert (row["chosen"], row["rejected"]) == (reply("you are good"), reply("you are bad"))
    assert row["sources"] == ["ann", "small"]
    assert 0 < row["margin"] < 0.5
    (shown,) = made.demonstrations
    assert (shown["prompt"], shown["completion"], shown["original"]) == (user("hello"), reply("you are good"), "you are bad")  # fmt: skip


@pytest.mark.parametrize(("text", "pairs"), [("it is", 0), ("it is ", 0), ("it\nis", 0), ("it  is  ", 1), ("It is", 1)])
def test_an_edit_of_one_space_is_no_preference(store, text, pairs):
    say(store, Task(FIXED, user("hello"), (reply("it is"),)), {"text": text})
    made = convert(store)
    assert (len(made.preferences), len(made.demonstrations)) == (pairs, 1)


def test_spans_keep_their_offsets_in_the_completion(store):
    task = Task(Form("span", labels=("false",)), user("hello"), (reply("the 🙂 cat sat"),))
    say(store, task, {"spans": [{"start": 4, "end": 9, "label": "false"}]})
    (row,) = convert(store).spans
    assert row["completion"][row["spans"][0]["start"] : row["spans"][0]["end"]] == "🙂 cat"
    assert row["spans"][0]["text"] == "🙂 cat"


def test_a_custom_form_reads_as_the_weighted_mean_of_its_scales(store):
    form = form_from_json(
        {
            "kind": "custom",
            "fields": [
                {"name": "help", "type": "scale"},
                {"name": "harm", "type": "scale", "low": 0, "high": 10},
                {"name": "why", "type": "text"},
            ],
            "reads_as": {"help": 3, "harm": -1},
        }
    )
    say(store, Task(form, user("hello"), (reply("good"),)), {"fields": {"help": 5, "harm": 5, "why": "so"}})
    made = convert(store)
    assert made.ratings[0]["ratings"] == [1 + 4 * (3 * 1 + 1 * 0.5) / 4]
    assert made.custom[0]["fields"] == {"help": 5, "harm": 5, "why": "so"}
    plain = form_from_json({"kind": "custom", "fields": [{"name": "help", "type": "scale"}]})
    say(store, Task(plain, user("hello"), (reply("bad"),)), {"fields": {"help": 1}})
    assert len(convert(store).ratings[0]["ratings"]) == 1
    assert len(convert(store).custom) == 2


def test_the_majority_decides_and_a_tied_contradiction_is_counted(store):
    for name, preferred, strength in (("ann", 0, 3), ("bob", 0, 1), ("cat", 1, 3)):
        prefer(store, pair(1, sources=("small", "big")), preferred, name, strength)
    prefer(store, pair(2), 0, "ann")
    prefer(store, pair(2), 1, "bob")
    made = convert(store)
    (row,) = made.preferences
    assert row["chosen"] == reply("yes")
    assert row["margin"] == 0.666667  # the mean of those who prefer it
    assert (row["annotators"], row["n"], row["agreement"]) == (["ann", "bob", "cat"], 3, 0.666667)
    assert made.report["omitted"]["preferences"] == {"annotators contradict each other": 1}
    assert convert(store, ConversionRules(min_agreement=0.7)).preferences == []


def test_the_same_pair_in_two_forms_is_one_row(store):
    prefer(store, pair(1), 0, "ann")
    turned = Task(RANKED, user("is it 1 ?"), (reply("no"), reply("yes")))
    say(store, turned, {"ranks": [1, 2]}, "bob")
    assert convert(store).preferences == []
    say(store, turned, {"ranks": [2, 1]}, "cat")
    (row,) = convert(store).preferences
    assert (row["chosen"], row["n"]) == (reply("yes"), 3)


def test_identical_and_empty_completions_give_no_pair(store):
    prefer(store, Task(PAIR, user("hello"), (reply("yes"), "yes")), 0)
    prefer(store, Task(PAIR, user("hello"), (reply("yes"), reply(" "))), 0)
    prefer(store, Task(PAIR, user("hello"), (reply("yes"), reply("half \ud800"))), 0)
    made = convert(store)
    assert made.preferences == []
    assert made.report["omitted"]["preferences"] == {
        "an empty completion": 1,
        "half of a character, which UTF-8 lacks": 1,
        "identical completions": 1,
    }


def test_gold_flagged_skipped_and_replaced_answers_stay_in_the_store_alone(store):
    prefer(store, pair(1, gold={"preferred": 0}), 0)
    prefer(store, pair(2), 0)
    say(store, pair(2), {"reason": "harmful"}, "bob", kind=FLAG)
    say(store, pair(3), None, kind=SKIP)
    prefer(store, pair(4), 0)
    prefer(store, pair(4), 1)
    prefer(store, pair(5), 1)
    store.undo("ann", new_uuid())
    made = convert(store)
    assert [(row["prompt"], row["chosen"]) for row in made.preferences] == [(user("is it 4 ?"), reply("no"))]
    assert [made.report[name] for name in ("answers", "answers_to_gold", "answers_to_flagged_tasks", "skips", "flags")] == [1, 1, 1, 1, 1]  # fmt: skip
    assert len(convert(store, ConversionRules(include_flagged=True)).preferences) == 2


def test_only_the_annotators_that_are_asked_for_are_used(store):
    prefer(store, pair(1), 0, "ann")
    say(store, pair(1), {"preferred": 1}, "judge", annotator_kind="model")
    assert convert(store).preferences == []
    assert convert(store, ConversionRules(annotator_kinds=("person",))).preferences[0]["chosen"] == reply("yes")
    assert convert(store, ConversionRules(excluded_annotators=("ann",))).preferences[0]["chosen"] == reply("no")


@pytest.mark.parametrize("rules", [{"annotator_kinds": ("model",)}, {"excluded_annotators": ("bob",)}])
def test_a_flag_counts_whoever_gave_it_and_whoever_is_asked_for(store, rules):
    say(store, pair(1), {"preferred": 1}, "judge", annotator_kind="model")
    say(store, pair(1), {"reason": "private"}, "bob", kind=FLAG)
    made = convert(store, ConversionRules(**rules))
    assert made.preferences == []
    assert made.report["answers_to_flagged_tasks"] == 1


def test_text_is_joined_with_a_space_where_there_is_none(store):
    cases = {"the cat": " sat", "the cat ": "sat", "the cat\n": "sat"}
    for prompt, expected in cases.items():
        prefer(store, Task(PAIR, prompt, ("sat", "ran")), 0)
        assert convert(store).preferences[-1]["chosen"] == expected
    prefer(store, Task(PAIR, "the dog", (" sat", "ran")), 0)
    row = convert(store).preferences[-1]
    assert (row["chosen"], row["rejected"]) == (" sat", " ran")
    assert convert(store, ConversionRules(separator="")).preferences[0]["chosen"] == "sat"


def test_text_beside_messages_becomes_messages(store):
    prefer(store, Task(PAIR, "hello", ("yes", "no")), 0)
    prefer(store, pair(1), 0)
    assert [row["prompt"] for row in convert(store).preferences] == [user("hello"), user("is it 1 ?")]


def test_columns_travel_but_none_that_a_reader_would_take_for_another_format(store):
    columns = {"topic": "cats", "messages": user("hello"), "label": True, "tools": [{"type": "function"}]}
    prefer(store, pair(1, columns=columns), 0)
    made = convert(store)
    assert made.preferences[0]["topic"] == "cats"
    assert made.preferences[0]["tools"] == [{"type": "function"}]
    assert not {"messages", "label"} & set(made.preferences[0])
    assert made.report["columns_omitted"] == ["label", "messages"]


def test_the_same_log_is_exported_byte_for_byte(store, tmp_path):
    for number in range(30):
        for name in ("ann", "bob", "cat"):
            prefer(store, pair(number), (number * len(name) + len(name)) % 2, name, number % 3 + 1)
        say(store, Task(RATED, user(f"is it {number} ?"), (reply("happy"), reply("sad"))), {"ratings": {"quality": [number % 5 + 1, 3]}})  # fmt: skip
    with FeedbackStore(store.file) as again:
        for name, opened in (("one", store), ("two", again)):
            made = convert(opened)
            write_json_lines(tmp_path / name, [*made.preferences, *made.labels, *made.ratings])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_readers_of_reward_and_sft_take_every_export(store, tmp_path):
    tokenizer = make_tokenizer()
    for number in range(4):
        prefer(store, pair(number, columns={"topic": "cats"}), number % 2, strength=3)
        say(store, Task(FIXED, user(f"hello {number}"), (reply("bad"),)), {"text": "good"})
        say(store, Task(RATED, user(f"{number} ?"), (reply("happy"), reply("sad"))), {"ratings": {"quality": [5, 1]}})
        say(store, Task(RANKED, user(f"why {number} ?"), (reply("happy"), reply("sad"))), {"ranks": [1, 2]})
    made = convert(store)
    pairs = read_as("reward", made.preferences, tmp_path, tokenizer)
    assert len(pairs.dataset) == len(made.preferences) == 16
    assert pairs.dataset["margin"] == [row["margin"] for row in made.preferences]
    assert len(read_as("sft", made.demonstrations, tmp_path, tokenizer).dataset) == 4
    assert len(read_as("sft", made.labels, tmp_path, tokenizer).dataset) == 4  # those labeled true
    for rows in (made.ratings, made.rankings, made.labels):
        assert len(read_as("ratings", rows, tmp_path, tokenizer).dataset) == 4


def test_text_exports_are_read_as_they_are_joined(store, tmp_path):
    prefer(store, Task(PAIR, "the cat", ("sat", "ran")), 0)
    read = read_as("reward", convert(store).preferences, tmp_path, make_tokenizer())
    assert read.dataset["prompt"][0] + read.dataset["chosen"][0] == "the cat sat"


def test_wrong_rules_are_refused():
    for wrong in ({"margins": (1, 2)}, {"margins": (3, 2, 1)}, {"min_agreement": 2}, {"min_rating_difference": 0}, {"annotator_kinds": ("cat",)}):  # fmt: skip
        with pytest.raises(InputError, match="is invalid"):
            ConversionRules(**wrong)


def test_a_skip_of_one_and_an_answer_of_another_is_an_answer(store):
    say(store, pair(1), None, "ann", kind=SKIP)
    store.append(Event(new_uuid(), pair(1).id, "bob", value={"preferred": 1}))
    assert len(convert(store).preferences) == 1
