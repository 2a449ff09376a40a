"""The plots of the report on rounds."""

from pages import Page

from hf_rlhf.rounds.plots import Point, _ticks, plot_rounds


def test_ticks_are_round_numbers_around_all_intervals():
    assert _ticks([Point(0, 0.23, 0.17, 0.29), Point(1, 0.29, 0.23, 0.34)])[-1] == 0.4
    assert _ticks([Point(1, 2.0, 1.3, 2.7)]) == [0, 1, 2, 3]
    assert _ticks([Point(1, 0.0, -0.01, 0.02)])[0] == -0.01


def test_what_was_never_measured_gets_no_plot():
    rounds = [{"round": 0, "rating": None}, {"round": 1, "rating": None, "kl": {"mean": 1.0, "low": 0.5, "high": 1.5}}]
    [plot] = plot_rounds(rounds, "pairwise")
    assert plot.title == "KL to the start"
    page = Page(plot.svg)
    assert "1.00" in page.text
    assert ("aria-label", plot.caption) in page.attributes
