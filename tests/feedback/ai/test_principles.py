"""The file of principles."""

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.ai.principles import Principle, load_principles

WHOLE = "- {name: a, critique: b, revision: c, comparison: d}\n"


def test_the_package_has_principles_of_its_own():
    names = [principle.name for principle in load_principles()]
    assert len(names) >= 5
    assert {"harm", "honesty", "helpfulness"} <= set(names)


def test_a_file_of_ones_own_is_read(tmp_path):
    file = tmp_path / "principles.yaml"
    file.write_text(WHOLE, encoding="utf-8")
    assert load_principles(str(file)) == [Principle("a", "b", "c", "d")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it holds no list of principles"),
        ("name: a", "it holds no list of principles"),
        ("- a", "principle 1 has no keys"),
        (WHOLE + "- {name: b, critique: b, revision: c}", "principle 2 has no text as comparison"),
        (WHOLE + "- {name: b, critique: 3, revision: c, comparison: d}", "principle 2 has no text as critique"),
        (WHOLE.replace("critique", "critic"), "principle 1 has the unknown key critic"),
        (WHOLE * 2, "two principles are named a"),
        ("- {name: ", "it is no YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, said):
    file = tmp_path / "principles.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"principles=.*principles.yaml is invalid: {said}"):
        load_principles(str(file))


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"principles=no\.yaml is invalid: it cannot be read \(No such file"):
        load_principles("no.yaml")
