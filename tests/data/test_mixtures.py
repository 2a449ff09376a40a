"""Several datasets as one: each has exactly its share, no row is there twice, and every row says where it is from."""

import datasets
import pytest
from tiny import make_tokenizer

from hf_rlhf.data.mixtures import Member, mix, shares
from hf_rlhf.data.preferences import prepare_preference_set
from hf_rlhf.data.prompts import prepare_prompt_set
from hf_rlhf.data.report import Limit
from hf_rlhf.data.rows import BadRows, LoadedRows
from hf_rlhf.data.texts import prepare_text_set
from hf_rlhf.errors import InputError

LIMIT = Limit("max_length", 99, "are skipped")


def member(name, rows, fraction=None, prepare=prepare_preference_set):
    loaded = LoadedRows(datasets.Dataset.from_list(rows), f"{name}.jsonl", BadRows())
    return Member(name, fraction, prepare(loaded, make_tokenizer(), role="training", limit=LIMIT))


def pairs(letter, count, **more):
    return [{"prompt": f"{letter} {n}", "chosen": " good", "rejected": " bad", **more} for n in range(count)]


def talks(letter, count, **more):
    asked = [[{"role": "user", "content": f"{letter} {n}"}] for n in range(count)]
    return [{"prompt": each, **more} for each in asked]


@pytest.mark.parametrize(
    ("rows", "fractions", "expected"),
    [
        ([10, 30], [None, None], [10, 30]),
        ([100, 100], [0.7, 0.3], [100, 43]),
        ([40, 90], [0.3, 0.7], [39, 90]),
        ([10, 1000], [1.0, 1.0], [10, 10]),
        ([10, 1000, 50], [2, 4, 1], [10, 20, 5]),
        ([3, 3], [0.5, 0.5], [3, 3]),
    ],
)
def test_shares_are_exact_and_as_large_as_the_datasets_allow(rows, fractions, expected):
    assert shares(rows, fractions) == expected


def test_shares_are_those_of_trl(tmp_path):
    import trl
    from trl.scripts.utils import DatasetConfig

    if "fraction" not in DatasetConfig.__dataclass_fields__:
        pytest.skip("this trl has no fractions")
    rows, fractions = [17, 60, 41], [0.2, 0.5, 0.3]
    configs = []
    for number, (count, fraction) in enumerate(zip(rows, fractions, strict=True)):
        file = tmp_path / f"{number}.jsonl"
        file.write_text('{"text": "%d"}\n' % number * count)  # noqa: UP031
        configs.append(DatasetConfig("json", data_files=str(file), fraction=fraction))
    mixed = trl.get_dataset(trl.DatasetMixtureConfig(datasets=configs))["train"]
    assert shares(rows, fractions) == [sum(int(text) == number for text in mixed["text"]) for number in range(3)]


def test_rows_are_drawn_once_by_the_seed_and_say_where_they_are_from():
    members = [member("a", pairs("a", 20), 0.75), member("b", pairs("b", 20, source="own"), 0.25)]
    mixed = mix(members, seed=0)
    found = mixed.dataset.to_list()
    assert (len(found), len({row["prompt"] for row in found})) == (27, 27)
    assert [row["source"] for row in found] == ["a"] * 20 + ["own"] * 7
    drawn = [row["prompt"] for row in found]
    assert drawn == [row["prompt"] for row in mix(members, seed=0).dataset]
    assert drawn != [row["prompt"] for row in mix(members, seed=1).dataset]
    assert drawn[20:] != [f"b {n}" for n in range(7)]
    places = [mixed.place(row) for row in range(27)]
    assert places[20:] == [f"b: row {row['prompt'].split()[1]} (from 0)" for row in found[20:]]
    assert mixed.report.left_out == {"of a, beyond its fraction 0.75": 0, "of b, beyond its fraction 0.25": 13}
    assert mixed.report.rows_read == mixed.report.rows + sum(mixed.report.left_out.values()) == 40
    assert "a: 20 rows, 74.1%" in str(mixed.report)


def test_a_margin_that_a_dataset_lacks_is_unknown_and_whole_datasets_come_without_fractions():
    mixed = mix([member("a", pairs("a", 2, margin=0.5)), member("b", pairs("b", 1))], seed=0)
    assert mixed.dataset["margin"][:] == [0.5, 0.5, None]
    assert "margin" in mixed.report.columns
    assert mixed.report.left_out == {}


def test_rows_of_two_datasets_that_are_equal_are_counted():
    report = mix([member("a", pairs("a", 3)), member("b", [*pairs("a", 1), *pairs("b", 1)])], seed=0).report
    assert report.noticed == {"that are there already, in this dataset or another": 1}


def test_prompts_and_demonstrations_are_mixed_too():
    members = [
        member("a", talks("a", 3, answer=7), prepare=prepare_prompt_set),
        member("b", talks("b", 2, level="x"), prepare=prepare_prompt_set),
    ]
    mixed = mix(members, seed=0)
    assert mixed.dataset["answer"][:] == [7, 7, 7, None, None]
    assert mixed.dataset["level"][:] == [None, None, None, "x", "x"]
    assert mixed.dataset["prompt_ids"][:] == [ids for each in members for ids in each.prepared.dataset["prompt_ids"]]
    assert len(mixed.fingerprints) == 5
    texts = [member(name, [{"text": f"the {name}"}], prepare=prepare_text_set) for name in ("cat", "dog")]
    assert mix(texts, seed=0).dataset["text"][:] == ["the cat", "the dog"]
    assert mix(texts, seed=0).fingerprints == texts[0].prepared.fingerprints | texts[1].prepared.fingerprints


def test_what_cannot_be_one_set_is_an_error_that_names_the_datasets():
    answers = {"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}
    messages = member("talk", talks("a", 1, **answers))
    with pytest.raises(InputError, match=r"text has prompt \(text\).*; talk has prompt \(messages\)"):
        mix([member("text", pairs("a", 1)), messages], seed=0)
    with pytest.raises(InputError, match="the fraction of b leaves none of its 5 rows"):
        mix([member("a", pairs("a", 2), 0.999), member("b", pairs("b", 5), 0.001)], seed=0)
    members = [member(name, talks(name, 1, k=k), prepare=prepare_prompt_set) for name, k in (("a", 1), ("b", ["x"]))]
    with pytest.raises(InputError, match='column "k" holds another kind of values'):
        mix(members, seed=0)
