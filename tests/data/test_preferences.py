from pathlib import Path

import datasets
import pytest
import trl
from tiny import make_tokenizer

from hf_rlhf.data import check_no_leak, load_rows, preferences, prepare_preferences
from hf_rlhf.data import rows as rows_module
from hf_rlhf.data.preferences import prepare_preference_set
from hf_rlhf.data.report import Limit
from hf_rlhf.data.rows import LoadedRows
from hf_rlhf.errors import InputError

DATA = Path(__file__).parents[3] / "shared" / "data"
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


CALLS = {"role": "assistant", "tool_calls": [{"x": 1}]}


def prepare(*rows):
    return prepare_preferences(datasets.Dataset.from_list(list(rows)), source="pairs.jsonl")


def error_of(*rows):
    with pytest.raises(InputError) as caught:
        prepare(*rows)
    return str(caught.value)


def hh(*turns):
    return "".join(f"\n\n{speaker}: {text}" for speaker, text in zip(["Human", "Assistant"] * 9, turns, strict=False))


# --- layouts -----------------------------------------------------------------------------------------------------


def test_hh_dialogues_become_messages():
    dataset, report = prepare({"chosen": hh("a", "b", "c", "yes"), "rejected": hh("a", "b", "c", "no")})
    assert dataset.column_names == ["prompt", "chosen", "rejected"]
    assert dataset[0] == {
        "prompt": [user("a"), assistant("b"), user("c")],
        "chosen": [assistant("yes")],
        "rejected": [assistant("no")],
    }
    assert report.layout == "HH dialogues"
    assert trl.is_conversational(dataset[0])


def test_hh_turns_of_one_speaker_in_a_row_are_joined():
    chosen, rejected = hh("a", "b") + "\n\nAssistant: more", hh("a", "c")
    assert prepare({"chosen": chosen, "rejected": rejected}).dataset[0]["chosen"] == [assistant("b\n\nmore")]


def test_hh_speaker_names_inside_a_turn_do_not_split_it():
    text = "says\nHuman: hi and Assistant: there"
    assert prepare({"chosen": hh(text, "b"), "rejected": hh(text, "c")}).dataset[0]["prompt"] == [user(text)]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        (hh("a", "b", "c"), "does not end in an assistant turn"),
        (hh("a") + "\n\nAssistant:", "empty last answer"),
        (hh("a", "b", "c", "d"), "the dialogues part before the last answer"),
        (hh("other", "b"), "no common prompt"),
        ("\n\nAssistant: hello" + hh("a", "b"), "does not start with a Human turn"),
        ("once upon a time" + hh("a", "b"), "does not start with a Human turn"),
    ],
)
def test_malformed_hh_rows_are_dropped_and_counted(chosen, reason):
    good = [{"chosen": hh(q, "b"), "rejected": hh(q, "c")} for q in "ax"]
    dataset, report = prepare({"chosen": chosen, "rejected": hh("a", "c")}, *good)
    assert (report.rows_in, report.rows_out, report.malformed) == (3, 2, 1)
    assert report.malformed_reasons == {reason: 1}
    assert dataset["prompt"][:] == [[user("a")], [user("x")]]
    assert f"1 malformed ({reason}: 1)" in str(report)


def test_only_malformed_rows_are_an_error():
    message = error_of({"chosen": hh("a"), "rejected": hh("a", "b")})
    assert "pairs.jsonl: 0 of 1 pairs kept" in message
    assert "does not end in an assistant turn" in message
    assert "No pair is left" in message


def test_text_with_an_explicit_prompt_stays_as_it_is():
    row = {"id": 7, "prompt": "The sky is", "chosen": " blue", "rejected": " green", "margin": 0.5}
    dataset, report = prepare(row)
    assert dataset[0] == row
    assert dataset.column_names == ["prompt", "chosen", "rejected", "id", "margin"]
    assert report.layout == "text, explicit prompt"


def test_messages_with_an_explicit_prompt_stay_as_they_are():
    row = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}
    dataset, report = prepare(row)
    assert dataset[0] == row
    assert report.layout == "conversational, explicit prompt"


def test_implicit_conversational_agrees_with_trl():
    row = {
        "chosen": [user("a"), assistant("b"), user("c"), assistant("yes")],
        "rejected": [user("a"), assistant("b"), user("c"), assistant("no")],
    }
    dataset, report = prepare(row)
    assert dataset[0] == trl.extract_prompt(row)
    assert report.layout == "conversational, implicit prompt"


def test_answers_of_several_turns_are_kept_whole():
    chosen = [user("a"), assistant("b"), user("c"), assistant("d")]
    dataset, _ = prepare({"chosen": chosen, "rejected": [user("a"), assistant("e")]})
    assert dataset[0]["chosen"] == chosen[1:]


def test_a_text_prompt_beside_dialogues_is_the_prompt_once():
    whole = {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    answers = {"prompt": "a", "chosen": [assistant("b")], "rejected": [assistant("c")]}
    expected = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}
    assert prepare(whole).dataset[0] == expected
    assert prepare(answers).dataset[0] == expected


def test_a_text_prompt_is_asked_after_a_system_message_that_only_the_answers_follow():
    system = {"role": "system", "content": "you"}
    row = {"prompt": "cat sat", "chosen": [system, assistant("b")], "rejected": [system, assistant("c")]}
    assert prepare(row).dataset[0]["prompt"] == [system, user("cat sat")]
    inside = {
        "prompt": "a",
        "chosen": [system, user("a"), assistant("b")],
        "rejected": [system, user("a"), assistant("c")],
    }
    assert prepare(inside).dataset[0]["prompt"] == [system, user("a")]


@pytest.mark.parametrize("other", [[user("cat")], [user("cat"), assistant("x"), user("dog")]])
def test_a_text_prompt_that_the_dialogues_do_not_ask_is_malformed_and_not_dropped(other):
    good = {"prompt": "a", "chosen": [user("a "), assistant("b")], "rejected": [user("a "), assistant("c")]}
    bad = {"prompt": "sat", "chosen": [*other, assistant("b")], "rejected": [*other, assistant("c")]}
    assert prepare(good, bad).report.malformed_reasons == {
        'the text of "prompt" is no message of the user before the answers': 1
    }


def test_implicit_conversations_that_part_in_a_user_turn_are_malformed():
    good = {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    bad = {
        "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
        "rejected": [user("a"), assistant("b"), user("x"), assistant("d")],
    }
    reason = "the dialogues part in a turn that is not the assistant's"
    assert prepare(good, bad).report.malformed_reasons == {reason: 1}


def test_implicit_text_has_no_prompt_column():
    dataset, report = prepare({"chosen": "The sky is blue", "rejected": "The sky is green", "id": 1})
    assert dataset.column_names == ["chosen", "rejected", "id"]
    assert report.layout == "text, implicit prompt"


# --- rows that are dropped ---------------------------------------------------------------------------------------


def test_identical_duplicate_and_contradictory_pairs_are_counted():
    answers = [("p", "a", "b"), ("p", "c", "c"), ("p", "a", "b"), ("p", "b", "a"), ("q", "b", "a")]
    rows = [{"prompt": p, "chosen": c, "rejected": r, "id": id} for id, (p, c, r) in enumerate(answers)]
    dataset, report = prepare(*rows)
    assert (report.identical, report.duplicates, report.contradictions, report.malformed) == (1, 1, 1, 0)
    assert dataset["id"][:] == [0, 3, 4]
    assert str(report) == (
        "pairs.jsonl: 3 of 5 pairs kept [text, explicit prompt]; "
        "dropped 1 with chosen equal to rejected, 1 duplicates; 1 contradictions kept"
    )


def test_identical_dialogues_are_identical_not_malformed():
    good = {"chosen": hh("a", "b"), "rejected": hh("a", "c")}
    report = prepare(good, {"chosen": hh("a", "b"), "rejected": hh("a", "b")}).report
    assert (report.identical, report.malformed) == (1, 0)


def test_only_identical_pairs_are_an_error():
    message = error_of({"prompt": "p", "chosen": "a", "rejected": "a"})
    assert "1 with chosen equal to rejected" in message
    assert "No pair is left" in message


def test_reports_add_up():
    report = prepare(*[{"prompt": "p", "chosen": c, "rejected": r} for c in "abc" for r in "abc"] * 2).report
    assert (report.rows_in, report.rows_out) == (18, 6)
    assert (report.identical, report.duplicates, report.contradictions) == (6, 6, 3)


# --- errors ------------------------------------------------------------------------------------------------------


def test_a_missing_column_names_those_found():
    message = error_of({"prompt": "p", "chosen": "a", "rejects": "b"})
    assert 'pairs.jsonl: no column "rejected"' in message
    assert "columns found: prompt, chosen, rejects" in message
    assert 'Did you mean "rejects"?' in message
    assert 'rename_column("rejects", "rejected")' in message


def test_every_bad_value_is_listed_before_anything_is_used():
    none, blank, unasked = PAIR | {"chosen": None}, PAIR | {"rejected": " "}, PAIR | {"prompt": ""}
    message = error_of(PAIR, none, blank, none, unasked)
    assert message.startswith("pairs.jsonl: ")
    assert "a set of 5 rows" in message
    assert "rows count from 0" in message
    assert 'column "chosen": None in 2 rows (1, 3)' in message
    assert 'column "rejected": empty text in 1 row (2)' in message
    assert 'column "prompt": empty text in 1 row (4)' in message
    assert "dataset.filter" in message


def test_many_bad_rows_are_shortened():
    assert "None in 8 rows (1, 2, 3, 4, 5, ...)" in error_of(PAIR, *[PAIR | {"chosen": None}] * 8)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "p", "chosen": 1, "rejected": 2}, "int instead of text"),
        ({"prompt": "p", "chosen": "a", "rejected": [assistant("b")]}, 'column "rejected": list instead of text'),
        ({"prompt": [user("p")], "chosen": "a", "rejected": "b"}, 'column "prompt": list instead of text'),
        ({"chosen": [user("p"), assistant("a")], "rejected": "b"}, "str instead of a list of messages"),
        ({"chosen": [{"text": "a"}], "rejected": [{"text": "b"}]}, 'a message without "role" and "content"'),
        ({"chosen": [{"role": "user", "content": 3}], "rejected": [{"role": "user", "content": 4}]}, "not text"),
        (
            {"chosen": [CALLS | {"content": ["a"]}], "rejected": [CALLS | {"content": ["b"]}]},
            'a message whose "content" is not text',
        ),
        ({"prompt": [user("p")], "chosen": [], "rejected": [assistant("b")]}, 'column "chosen": no messages'),
        ({"prompt": [user("p")], "chosen": [assistant("")], "rejected": [assistant("b")]}, "empty last message"),
        (PAIR | {"margin": float("nan")}, 'column "margin": nan in 1 row (0)'),
        (PAIR | {"margin": None}, 'column "margin": None'),
        (PAIR | {"margin": "big"}, "str instead of a number"),
        (PAIR | {"chosen": None, "rejected": None}, 'column "rejected": None'),
    ],
)
def test_wrong_kinds_of_values(row, part):
    assert part in error_of(row)


def test_each_pair_is_read_once_and_split_once(monkeypatch):
    read, split = [], []
    for module, name, seen in ((rows_module, "read_columns", read), (preferences, "split_row", split)):
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda given, *more, f=function, s=seen, **k: s.append(given) or f(given, *more, **k)
        )
    talks = [[user(f"q {n}"), assistant("a")] for n in range(5)]
    loaded = [{"chosen": talk, "rejected": [talk[0], assistant("b")], "tools": None} for talk in talks]
    rows = LoadedRows.given(datasets.Dataset.from_list(loaded), source="pairs.jsonl")
    limit = Limit("max_length", 50, "are skipped")
    assert len(prepare_preference_set(rows, make_tokenizer(), role="training", limit=limit).dataset) == 5
    assert (len(read), len(split)) == (1, 5)


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (lambda rows: datasets.DatasetDict(train=rows), "Pass dataset[split]"),
        (lambda rows: rows.to_iterable_dataset(), "streaming=False"),
        (lambda rows: rows.to_list(), "got a list"),
        (lambda rows: rows.select([]), "the set is empty"),
    ],
    ids=["splits", "streamed", "list", "empty"],
)
def test_what_is_not_one_loaded_set_is_refused(wrong, part):
    with pytest.raises(InputError) as caught:
        prepare_preferences(wrong(datasets.Dataset.from_list([PAIR])), source="here")
    assert "here: " in str(caught.value)
    assert part in str(caught.value)


def test_a_pair_in_both_sets_is_a_leak_in_either_order():
    train = prepare(PAIR, PAIR | {"prompt": "q"}).dataset
    test = prepare(PAIR | {"rejected": "c"}, {"prompt": "q", "chosen": "b", "rejected": "a"}).dataset
    with pytest.raises(InputError, match=r"1 row \(1\) of 2 pairs of the test set are in the training set"):
        check_no_leak(train, test)
    assert check_no_leak(train, test.select([0])) == 1
    with pytest.raises(InputError, match=r"1 row \(test.jsonl:6\) of 2 pairs of test.jsonl are"):
        check_no_leak(train, test, source="test.jsonl", place=lambda row: f"test.jsonl:{5 + row}")


def test_a_call_without_content_is_an_answer():
    row = {"prompt": [user("p")], "chosen": [CALLS | {"content": None}], "rejected": [CALLS | {"content": "b"}]}
    assert len(prepare(row).dataset) == 1


def test_keys_filled_with_none_do_not_hide_a_leak():
    plain = {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    named = plain | {"prompt": [user("p") | {"name": None}]}
    with pytest.raises(InputError, match="training set"):
        check_no_leak(prepare(plain).dataset, prepare(named).dataset)


# --- real data ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the checkout")
def test_real_hh_dialogues():
    prepared = {}
    for split, rows, dropped in (("train", 1370, {"empty last answer": 3}), ("dev", 363, {})):
        path = DATA / f"hh_harmless_{split}.jsonl.gz"
        dataset, report = prepared[split] = prepare_preferences(load_rows(str(path)), source=path.name)
        print(report)
        assert (report.rows_in, report.layout) == (rows, "HH dialogues")
        assert report.malformed_reasons == dropped
        assert len(dataset) == report.rows_out == rows - sum(dropped.values())
        for row in dataset:
            roles = [message["role"] for message in row["prompt"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
            for answer in (row["chosen"], row["rejected"]):
                assert [message["role"] for message in answer] == ["assistant"]
                assert answer[0]["content"].strip()
    print(f"{check_no_leak(prepared['train'].dataset, prepared['dev'].dataset)} prompts shared by the two sets")
