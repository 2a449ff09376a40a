"""Rows held out by their prompts: no prompt on both sides, whatever the order, the other rows and the format."""

import random
from collections import Counter

import datasets
import pytest

from hf_rlhf.data.held_out import hold_out
from hf_rlhf.data.rows import BadRows, LoadedRows
from hf_rlhf.errors import InputError


def rows_of(rows, limit=None):
    return LoadedRows(datasets.Dataset.from_list(rows), "rows.jsonl", BadRows(limit))


def asks(text):
    return [{"role": "user", "content": text}]


def says(text):
    return [{"role": "assistant", "content": text}]


FORMATS = {  # a row of prompt number n and answer number k
    "text": lambda n, k: {"prompt": f"q {n}", "chosen": f" a {k}", "rejected": f" b {k}"},
    "messages": lambda n, k: {"prompt": asks(f"q {n}"), "chosen": says(f"a {k}"), "rejected": says(f"b {k}")},
    "dialogues": lambda n, k: {"chosen": asks(f"q {n}") + says(f"a {k}"), "rejected": asks(f"q {n}") + says(f"b {k}")},
    "hh": lambda n, k: {"chosen": f"\n\nHuman: q {n}\n\nAssistant: a {k}", "rejected": f"\n\nHuman: q {n}\n\nAssistant: b"},
    "shp": lambda n, k: {"history": f"q {n}", "human_ref_A": f"a {k}", "human_ref_B": "b", "labels": 1},
    "helpsteer": lambda n, k: {"prompt": f"q {n}", "response": f"a {k}", "helpfulness": k},
    "demonstrations": lambda n, k: {"messages": asks(f"q {n}") + says(f"a {k}")},
    "labels": lambda n, k: {"prompt": f"q {n}", "completion": says(f"a {k}"), "label": k > 0},
    "prompts": lambda n, k: {"prompt": asks(f"q {n}"), "k": k},
    "texts": lambda n, k: {"text": f"q {n}"},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_no_prompt_is_on_both_sides_in_any_order_and_among_any_rows(name):
    rng = random.Random(0)
    rows = [FORMATS[name](n, k) | {"n": n} for n in range(200) for k in range(rng.randrange(1, 4))]
    train, held = hold_out(rows_of(rows), 0.25)
    assert sorted(map(str, [*train.dataset, *held.dataset])) == sorted(map(str, datasets.Dataset.from_list(rows)))
    prompts = [set(each.dataset["n"]) for each in (train, held)]
    assert not prompts[0] & prompts[1]
    assert len(prompts[1]) / 200 == pytest.approx(0.25, abs=0.1)
    for _ in range(3):
        some = rng.sample(rows, 150)
        again = hold_out(rows_of(some), 0.25)
        for each, known in zip(again, prompts, strict=True):
            assert Counter(each.dataset["n"]) == Counter(row["n"] for row in some if row["n"] in known)


def test_one_prompt_is_on_the_same_side_for_every_stage_and_dataset():
    names = [name for name in FORMATS if name != "texts"]  # a text without a prompt is its own
    rows = {name: [FORMATS[name](n, 0) | {"n": n} for n in range(60)] for name in names}
    held = {name: hold_out(rows_of(rows[name]), 0.3)[1].dataset["n"][:] for name in names}
    assert all(each == held["messages"] for each in held.values())


def test_a_rating_that_is_missing_does_not_part_the_rows_of_a_prompt():
    rows = [FORMATS["helpsteer"](n, k) | {"correctness": k} for n in range(40) for k in (1, 2)]
    rows = [row | {"helpfulness": None} if row["correctness"] == 2 else row for row in rows]
    train, held = hold_out(rows_of(rows), 0.3)
    assert not set(train.dataset["prompt"]) & set(held.dataset["prompt"])


def test_a_larger_fraction_holds_out_the_same_prompts_and_more():
    rows = [FORMATS["text"](n, 0) | {"n": n} for n in range(60)]
    small, large = (set(hold_out(rows_of(rows), fraction)[1].dataset["n"]) for fraction in (0.1, 0.4))
    assert small < large


def test_rows_without_a_prompt_stay_in_training_where_they_are_found():
    rows = [FORMATS["dialogues"](n, 0) for n in range(40)]
    bad = [{"chosen": None, "rejected": None}, {"chosen": asks("x"), "rejected": says("y")}]
    train, held = hold_out(rows_of([*bad, *rows], 3), 0.5)
    assert train.dataset.to_list()[:2] == bad
    assert len(train.dataset) + len(held.dataset) == 42
    assert (train.place(0), held.bad_rows.limit, held.bad_rows is train.bad_rows) == ("row 0 (from 0)", 3, False)


@pytest.mark.parametrize(
    ("rows", "fraction", "part"),
    [
        ([FORMATS["text"](0, 0)], 0.0001, "holds out none of the 1 prompts of rows.jsonl. Raise it"),
        ([FORMATS["text"](0, 0)], 0.9999, "holds out all of the 1 prompts of rows.jsonl. Lower it"),
        ([{"chosen": "a b", "rejected": "a c"}], 0.5, "prompts cannot be told. Add a column prompt"),
    ],
)
def test_a_side_without_rows_and_pairs_without_prompts_are_an_error(rows, fraction, part):
    with pytest.raises(InputError) as caught:
        hold_out(rows_of(rows), fraction)
    assert part in str(caught.value)
