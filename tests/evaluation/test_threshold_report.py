import json
import logging
import random

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.threshold_report import find_threshold


def rows(count, seed=0):
    """Rewards that say the label with noise, labels, and one prompt for every two rows."""
    drawn = random.Random(seed)
    labels = [drawn.random() < 0.4 for _ in range(count)]
    rewards = [drawn.gauss(1.0 if label else -1.0, 1.0) for label in labels]
    return rewards, labels, [bytes([row // 2 % 251]) for row in range(count)]


def test_the_threshold_is_measured_on_prompts_that_it_was_not_chosen_on():
    rewards, labels, prompts = rows(400)
    report = find_threshold(rewards, labels, prompts, min_precision=0.8)
    chosen = [row for row, prompt in enumerate(prompts) if prompt[0] % 2 == 0]
    measured = [row for row, prompt in enumerate(prompts) if prompt[0] % 2 == 1]
    assert report.separate
    assert (report.chosen_on.rows, report.measured_on.rows) == (len(chosen), len(measured))
    assert report.chosen_on.precision >= 0.8
    assert report.measured_on.flagged == sum(rewards[row] >= report.threshold for row in measured)
    assert report.measured_on.hits == sum(rewards[row] >= report.threshold and labels[row] for row in measured)
    other = [value if row in set(chosen) else -value for row, value in enumerate(rewards)]
    assert find_threshold(other, labels, prompts, min_precision=0.8).threshold == report.threshold


def test_too_few_rows_are_used_twice_and_the_report_says_so(caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        report = find_threshold([1.0, -1.0, 0.5], [True, False, True], [b"\0", b"\1", b"\0"])
    assert not report.separate
    assert "too good" in caplog.text
    assert "so these figures are too good" in report.write(tmp_path).read_text()


def test_a_precision_that_no_threshold_has_is_no_silent_promise(caplog):
    rewards, labels, prompts = [-value for value in rows(200)[0]], *rows(200)[1:]
    with caplog.at_level(logging.WARNING):
        report = find_threshold(rewards, labels, prompts, min_precision=0.99)
    assert "min_precision=0.99 is invalid: the highest precision" in caplog.text
    assert report.rule == "highest F1, since no threshold has a precision of 0.99"


def test_two_limits_are_refused_and_not_taken_for_one_that_cannot_be_kept():
    with pytest.raises(InputError, match="together with min_recall"):
        find_threshold(*rows(200), min_precision=0.8, min_recall=0.8)


def test_rows_of_one_label_have_no_threshold():
    with pytest.raises(InputError, match="both labels"):
        find_threshold([1.0, 2.0], [True, True], [b"\0", b"\1"])


def test_the_files_hold_the_report_and_the_page_needs_no_network(tmp_path):
    report = find_threshold(*rows(200))
    page = report.write(tmp_path).read_text()
    content = json.loads((tmp_path / "threshold.json").read_text())
    assert content["threshold"] == report.threshold
    assert content["measured_on"]["recall"] == report.measured_on.recall
    assert content["probability"] == pytest.approx(1 / (1 + 2.718281828459045**-report.threshold))
    assert report.headline in page
    assert "://" not in page
    assert "<script" not in page
