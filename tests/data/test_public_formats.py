"""Rows in the shape of the public sets become exactly these pairs, groups and prompts; bad ones are named."""

import json
import math

import datasets
import pytest
from tiny import make_tokenizer

from hf_rlhf.data import prepare_preferences, prepare_prompts
from hf_rlhf.data.files import read_rows
from hf_rlhf.data.groups import pairs_of_groups, prepare_rating_set
from hf_rlhf.data.layouts import layout_of
from hf_rlhf.data.preferences import prepare_preference_set
from hf_rlhf.data.prompts import prepare_prompt_set
from hf_rlhf.data.report import Limit
from hf_rlhf.data.rows import LoadedRows
from hf_rlhf.data.shapes import in_shape
from hf_rlhf.errors import InputError

LIMIT = Limit("max_length", 200, "are skipped")


def asks(*turns):
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 5, turns, strict=False)]


def says(text):
    return [{"role": "assistant", "content": text}]


SHP = {
    "post_id": "qt3nxl", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": "How to take raspberries apart?",
    "c_root_id_A": "hkh25sc", "score_A": 340, "score_B": 170, "human_ref_A": "Pectinex, perhaps?", "human_ref_B": "Freeze.",
    "labels": 1, "score_ratio": 2.0,
}  # fmt: skip
NECTAR = {
    "prompt": "\n\nHuman: the cat\n\nAssistant: sat\n\nHuman: where\n\nAssistant: ",
    "answers": [
        {"answer": "on the mat", "model": "gpt-4", "rank": 1.0},
        {"answer": "mat", "model": "llama", "rank": 2.0},
        {"answer": "dog", "model": "tiny", "rank": 3.0},
    ],
    "turns": 2, "num_responses": 3, "source": ["lmsys-chat-1m"], "good_natured": True,
}  # fmt: skip
SUMMARY = {
    "info": {"id": "t3_34xale", "post": "We are far apart.", "title": "Far", "subreddit": "relationships", "site": None, "article": None},
    "summaries": [{"text": " Mum is mad.", "policy": "sup2", "note": "ok"}, {"text": "Far apart.", "policy": "ref", "note": None}],
    "choice": 1, "worker": "w", "batch": "batch3", "split": "train", "extra": {"confidence": None},
}  # fmt: skip
NEWS = SUMMARY | {
    "info": {"id": "f3a", "post": None, "title": None, "subreddit": None, "site": "dailymail", "article": "It rains."},
    "choice": 0,
}
STRENGTH = {
    "split": "train", "prompt": "hello\n<extra_id_1>Assistant\nhello you\n<extra_id_1>User\nwhy",
    "response_1": "so", "response_2": "because", "preference_strength": -2, "preference_statement": "@Response 1 is better",
}  # fmt: skip


def attributes(prompt, response, helpfulness, verbosity=0):
    rated = {"helpfulness": helpfulness, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": verbosity}
    return {"prompt": prompt, "response": response} | rated


HELPSTEER = [attributes("c#", "a language", 3, 1), attributes("c#", "a note", 1, 3), attributes("d", "alone", 2)]
KTO = [{"prompt": "the", "completion": " cat", "label": True}, {"prompt": "the", "completion": " dog", "label": False}]
RATED = {"prompt": "the", "completions": [" cat", " dog", " mat"], "ratings": [1, 2.5, 1], "source": "mine"}
SCORED = {
    "prompt": "the cat", "prompt_id": "x", "chosen": asks("the cat", "good"), "rejected": asks("the cat", "bad"),
    "messages": asks("the cat", "good"), "score_chosen": 8.5, "score_rejected": 3.0,
}  # fmt: skip
RELATIONS = "SUBREDDIT: r/relationships\n\nTITLE: Far\n\nPOST: We are far apart.\n\nTL;DR:"


def compared(prompt, chosen, rejected, margin=None, source=None, **more):
    known = {"margin": margin, "source": source}
    found = {name: value for name, value in known.items() if value is not None}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **found, **more}


TWICE = asks("the cat", "sat", "where")
PAIRS = {
    "SHP": ([SHP, SHP | {"labels": 0, "score_A": 1, "score_B": 8, "score_ratio": 8.0}], [
        compared(asks("How to take raspberries apart?"), says("Pectinex, perhaps?"), says("Freeze."), math.log(2), "askculinary", score_ratio=2.0),
        compared(asks("How to take raspberries apart?"), says("Freeze."), says("Pectinex, perhaps?"), math.log(8), "askculinary", score_ratio=8.0),
    ]),
    "Nectar rankings": ([NECTAR], [
        compared(TWICE, says("on the mat"), says("mat"), 1.0, "lmsys-chat-1m"),
        compared(TWICE, says("on the mat"), says("dog"), 2.0, "lmsys-chat-1m"),
        compared(TWICE, says("mat"), says("dog"), 1.0, "lmsys-chat-1m"),
    ]),
    "summarize-from-feedback comparisons": ([SUMMARY, NEWS], [
        compared(RELATIONS, " Far apart.", " Mum is mad.", source="r/relationships"),
        compared("Article:\nIt rains.\n\nTL;DR:", " Mum is mad.", " Far apart.", source="article"),
    ]),
    "HelpSteer2 preferences": ([STRENGTH, STRENGTH | {"preference_strength": 0}, STRENGTH | {"prompt": "d", "preference_strength": 3}], [
        compared(asks("hello", "hello you", "why"), says("so"), says("because"), 2.0),
        compared(asks("d"), says("because"), says("so"), 3.0),
    ]),
    "HelpSteer ratings": (HELPSTEER, [compared(asks("c#"), says("a language"), says("a note"), 2.0)]),
    "binary labels (KTO)": (KTO, [compared("the", " cat", " dog", 1.0)]),
    "rated completions": ([RATED], [
        compared("the", " dog", " cat", 1.5, "mine"), compared("the", " dog", " mat", 1.5, "mine")
    ]),
}  # fmt: skip
each_format = pytest.mark.parametrize("name", PAIRS)


@pytest.fixture
def load(tmp_path):
    def load(rows, skip_bad_rows=0):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_rows(str(file), skip_bad_rows=skip_bad_rows)

    return load


@each_format
def test_rows_of_a_public_set_become_exactly_these_pairs(load, name):
    rows, pairs = PAIRS[name]
    dataset, report, *_ = prepare_preference_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    assert dataset.to_list() == pairs
    assert report.layout == name
    assert report.rows_read == report.rows + sum(report.left_out.values())
    given = prepare_preferences(datasets.Dataset.from_list(rows), source="rows").dataset
    assert given.select_columns(dataset.column_names).to_list() == pairs


GROUPS = {
    "Nectar rankings": [(TWICE, [says("on the mat"), says("mat"), says("dog")], [-1.0, -2.0, -3.0])],
    "HelpSteer2 preferences": [
        (asks("hello", "hello you", "why"), [says("so"), says("because")], [0.0, -2.0]),
        (asks("hello", "hello you", "why"), [says("so"), says("because")], [0.0, 0.0]),
        (asks("d"), [says("so"), says("because")], [0.0, 3.0]),
    ],
    "HelpSteer ratings": [
        (asks("c#"), [says("a language"), says("a note")], [3.0, 1.0]),
        (asks("d"), [says("alone")], [2.0]),
    ],
    "binary labels (KTO)": [("the", [" cat", " dog"], [1.0, 0.0])],
    "rated completions": [("the", [" cat", " dog", " mat"], [1.0, 2.5, 1.0])],
}


@pytest.mark.parametrize("name", GROUPS)
def test_ratings_and_rankings_become_exactly_these_groups(load, name):
    rows = PAIRS[name][0]
    dataset, report, place, *_ = prepare_rating_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    found = [(row["prompt"], row["completions"], row["ratings"]) for row in dataset]
    assert found == GROUPS[name]
    assert set(dataset.column_names) - {"source"} == {"prompt", "completions", "ratings"}
    assert (report.layout, report.counted) == (name, "groups")
    assert place(len(found) - 1).endswith("3" if name.startswith("HelpSteer") else "1")
    assert f"groups: {len(found)}, of" in str(report)
    assert f"from {len(rows)} rows" in str(report)


@pytest.mark.parametrize("kind", [int, float])
def test_labels_of_one_and_zero_are_those_of_true_and_false(load, kind):
    rows = [row | {"label": kind(row["label"])} for row in KTO]
    dataset, report, *_ = prepare_rating_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    assert (dataset["ratings"][:], report.layout) == ([[1.0, 0.0]], "binary labels (KTO)")


def test_a_set_of_pairs_has_no_rated_groups(load):
    with pytest.raises(InputError, match=r"hold no ratings of completions\. The set holds SHP"):
        prepare_rating_set(load([SHP]), make_tokenizer(), role="training", limit=LIMIT)


def test_a_group_is_there_once_and_every_other_one_is_counted(load):
    dataset, report, *_ = prepare_rating_set(
        load([RATED, RATED, RATED | {"ratings": [1, 2, 3]}]), make_tokenizer(), role="training", limit=LIMIT
    )
    assert dataset["ratings"][:] == [[1, 2.5, 1], [1, 2, 3]]
    assert (report.rows_read, report.left_out) == (3, {"that are there already": 1})


def test_ties_make_no_pair_and_are_counted():
    rows = in_shape(LoadedRows.given(datasets.Dataset.from_list([RATED, RATED | {"prompt": "a"}]), source="rows")).rows
    pairs, ties = pairs_of_groups(rows)
    assert (len(pairs.dataset), ties) == (4, 2)
    assert [pairs.place(number) for number in range(4)] == ["0", "0", "1", "1"]


@pytest.mark.parametrize("rows", [[RATED | {"ratings": [1, 1, 1]}], [HELPSTEER[0], HELPSTEER[2]]])
def test_groups_without_two_different_ratings_are_an_error_where_completions_are_compared(load, rows):
    for prepare in (prepare_preference_set, prepare_rating_set):
        with pytest.raises(InputError, match="no two completions of one prompt differ in their ratings"):
            prepare(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    settings = {"role": "training", "limit": LIMIT, "compared": False}
    assert len(prepare_rating_set(load(rows), make_tokenizer(), **settings).dataset) == len(rows)


def test_the_rating_is_the_weighted_sum_that_the_flag_asks_for(load):
    settings = {"role": "training", "limit": LIMIT, "rating_weights": {"helpfulness": 0.5, "verbosity": -1.0}}
    dataset, report, *_ = prepare_rating_set(load(HELPSTEER), make_tokenizer(), **settings)
    assert dataset["ratings"][:] == [[0.5, -2.5], [1.0]]
    assert report.columns == ["prompt", "response", "helpfulness", "verbosity"]
    assert report.other_columns == ["correctness", "coherence", "complexity"]
    with pytest.raises(InputError, match=r'no column "verboseness".*Did you mean "verbosity"'):
        prepare_rating_set(load(HELPSTEER), make_tokenizer(), **settings | {"rating_weights": {"verboseness": 1.0}})
    for rows in ([RATED], [SHP], [SCORED]):
        with pytest.raises(InputError, match=r"rating_weights=helpfulness:0\.5,verbosity:-1 is invalid"):
            prepare_preference_set(load(rows), make_tokenizer(), **settings)


def test_completions_of_messages_and_of_text_are_read_as_the_first_is(load):
    talk = {"prompt": "the cat", "completions": [says("good"), says("bad")], "ratings": [1, 0]}
    dataset, *_ = prepare_rating_set(load([talk]), make_tokenizer(), role="training", limit=LIMIT)
    assert dataset[0] == talk | {"prompt": asks("the cat")}
    mixed = talk | {"prompt": asks("the cat"), "completions": ["good", "bad"]}
    assert prepare_rating_set(load([mixed]), make_tokenizer(), role="training", limit=LIMIT).dataset[0] == dataset[0]


# --- margins and sources ------------------------------------------------------------------------------------------


def test_the_difference_of_scores_is_the_margin_unless_there_is_one(load):
    rows = [SCORED, SCORED | {"chosen": asks("the cat", "sad"), "score_chosen": 2.0}]
    dataset, report, *_ = prepare_preference_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    assert dataset["margin"][:] == [5.5, -1.0]
    assert "margin: score_chosen - score_rejected; -1 to 5.5" in str(report)
    assert "kept: 1 whose margin is below 0: it contradicts the choice" in str(report)
    own = prepare_preference_set(load([SCORED | {"margin": 2.0}]), make_tokenizer(), role="training", limit=LIMIT)
    assert own.dataset["margin"][:] == [2.0]
    assert "margin: as given; 2 to 2" in str(own.report)
    with pytest.raises(InputError, match=r'column "score_rejected": None in 1 row \(.*rows.jsonl:2'):
        prepare_preference_set(
            load([SCORED, SCORED | {"score_rejected": None}]), make_tokenizer(), role="training", limit=LIMIT
        )


@pytest.mark.parametrize(
    ("sources", "expected"),
    [(["a", None], ["a", "unknown"]), ([["a", "b"], ["c"]], ["a, b", "c"]), ([3, 4], None), ([None, None], None)],
)
def test_a_source_is_kept_as_text(load, sources, expected):
    rows = [{"prompt": "p", "chosen": "a", "rejected": f"b {n}", "source": each} for n, each in enumerate(sources)]
    dataset, report, *_ = prepare_preference_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    assert (dataset["source"][:] if "source" in dataset.column_names else None) == expected
    assert (("source" in report.columns), ("source" in report.other_columns)) == (expected is not None, expected is None)  # fmt: skip


# --- other stages -------------------------------------------------------------------------------------------------


@each_format
def test_ppo_asks_each_prompt_once_and_never_sees_the_answers(load, name):
    rows, pairs = PAIRS[name]
    dataset, report, *_ = prepare_prompt_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    if name == "binary labels (KTO)":  # where the rewards may read the label
        assert dataset["prompt"][:] == ["the", "the"]
        return
    assert {str(row["prompt"]) for row in pairs} <= set(map(str, dataset["prompt"]))
    assert len(set(map(str, dataset["prompt"]))) == len(dataset) == report.rows_read - sum(report.left_out.values())
    assert not {"chosen", "rejected", "margin", "completions", "ratings"} & set(dataset.column_names)
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    with pytest.raises(InputError, match=f"a stream of {name}"):
        prepare_prompts(stream, make_tokenizer(), max_prompt_length=99, source="rows")


def test_answers_without_ranks_are_no_ranking():
    row = {"prompt": "the cat", "answers": [{"text": "sat"}]}
    assert str(layout_of(datasets.Dataset.from_list([row]))) == "prompts (text)"
    row = {"prompt": "the cat", "completion": " sat", "label": "animals"}
    assert str(layout_of(datasets.Dataset.from_list([row]))) == "prompt and completion, text"


# --- bad input ----------------------------------------------------------------------------------------------------


def ranked(*answers):
    return NECTAR | {"answers": [dict(zip(("answer", "rank"), answer, strict=True)) for answer in answers]}


BAD = {
    "a comment is None": (SHP, SHP | {"human_ref_B": None}, 'column "human_ref_B": None'),
    "a label out of range": (SHP, SHP | {"labels": 2}, 'column "labels": 2 is neither 1 (A is preferred) nor 0'),
    "votes against the label": (SHP, SHP | {"labels": 0}, 'column "labels": 0, but score_A is 340 and score_B 170'),
    "a ratio below 1": (SHP, SHP | {"score_ratio": 0.5}, 'column "score_ratio": 0.5 is below 1'),
    "one answer": (NECTAR, ranked(("a", 1.0)), 'column "answers": 1 answers, and a ranking needs two'),
    "no answers": (NECTAR, NECTAR | {"answers": None}, 'column "answers": no answers'),
    "contradictory ranks": (NECTAR, ranked(("a", 1.0), ("b", 2.0), ("a", 3.0)), "the same answer has two ranks"),
    "a rank that is none": (NECTAR, ranked(("a", 1.0), ("b", None)), 'column "answers": no "rank" in number 2'),
    "an empty answer": (NECTAR, ranked(("a", 1.0), (" ", 2.0)), 'column "answers": empty text'),
    "a prompt of the assistant": (NECTAR, NECTAR | {"prompt": "\n\nHuman: a\n\nAssistant: b"}, "a last message from the assistant"),
    "a choice out of range": (SUMMARY, SUMMARY | {"choice": 2}, 'column "choice": 2 is neither 0'),
    "one summary": (SUMMARY, SUMMARY | {"summaries": SUMMARY["summaries"][:1]}, "not a list of two summaries"),
    "no post": (SUMMARY, SUMMARY | {"info": SUMMARY["info"] | {"post": None}}, 'column "info": "post": None'),
    "a strength out of range": (STRENGTH, STRENGTH | {"preference_strength": 4}, "4 is not from -3 to 3"),
    "an attribute out of range": (HELPSTEER[0], attributes("c#", "x", 7), 'column "helpfulness": 7 is not from 0 to 4'),
    "no label": (KTO[0], KTO[1] | {"label": None}, 'column "label": None instead of true or false'),
    "an empty completion": (KTO[0], KTO[1] | {"completion": ""}, 'column "completion": empty text'),
    "fewer ratings": (RATED, RATED | {"ratings": [1.0, 2.0]}, 'column "ratings": 2 ratings of 3 completions'),
    "a rating that is none": (RATED, RATED | {"ratings": [1.0, 2.0, None]}, 'column "ratings": None'),
    "no completions": (RATED, RATED | {"completions": []}, 'column "completions": empty'),
}  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "problem"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_with_its_line_and_column_and_may_be_left_out(load, good, bad, problem):
    rows = [*KTO, bad] if good is KTO[0] else [*HELPSTEER, bad] if good is HELPSTEER[0] else [good, good, bad]
    with pytest.raises(InputError) as caught:
        prepare_preference_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
    assert problem in str(caught.value)
    assert "rows.jsonl:" + str(len(rows)) in str(caught.value)
    assert "set skip_bad_rows to 1 or more" in str(caught.value)
    report = prepare_preference_set(load(rows, 1), make_tokenizer(), role="training", limit=LIMIT).report
    assert [problem in row.problem for row in report.bad_rows] == [True]
    assert report.rows_read == report.rows + 1 + sum(report.left_out.values())


@pytest.mark.parametrize(
    ("row", "missing"),
    [(SHP, "human_ref_B"), (SUMMARY, "choice"), (STRENGTH, "response_2"), (HELPSTEER[0], "response"), (RATED, "ratings")],
)  # fmt: skip
def test_a_missing_column_is_named_with_the_format_that_the_others_belong_to(load, row, missing):
    rows = [{name: value for name, value in row.items() if name != missing}]
    with pytest.raises(InputError, match=f'no column "{missing}"; columns found: .* The other columns are those of '):
        prepare_preference_set(load(rows), make_tokenizer(), role="training", limit=LIMIT)
