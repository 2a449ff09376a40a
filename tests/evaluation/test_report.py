"""The report page: everything in one file, and everything escaped."""

import base64
import re

import pytest
from pages import HOSTILE, Page

from hf_rlhf.evaluation.metrics import BeforeAfter
from hf_rlhf.evaluation.report import ReportFigure, SamplePair, write_report

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def report(tmp_path):
    (tmp_path / "curve.png").write_bytes(PIXEL)

    def write(**changes):
        fields = {
            "title": "A run",
            "headline": "It got better.",
            "summary_rows": [BeforeAfter("annotator rating", 0.25, 0.8)],
            "figures": [ReportFigure(tmp_path / "curve.png", "Reward over iterations")],
            "samples": [SamplePair("Hello", "no", "yes", 0.1, 0.9)],
            "settings": {"lr": 5e-4},
            "load_code": "model = load()",
        }
        return write_report(tmp_path / "out" / "report.html", **fields | changes).read_text(encoding="utf-8")

    return write


def test_the_page_says_what_changed(report):
    page = Page(report())
    for words in (
        "A run",
        "It got better.",
        "annotator rating",
        "0.25",
        "0.80",
        "+0.55",
        "Hello",
        "yes",
        "rating 0.90",
        "lr",
    ):
        assert words in page.text
    assert "model = load()" in page.text
    assert "Reward over iterations" in page.text


def test_hostile_text_is_shown_and_not_run(report):
    html = report(
        title=HOSTILE,
        headline=HOSTILE,
        summary_rows=[BeforeAfter(HOSTILE, 0, 1)],
        samples=[SamplePair(HOSTILE, HOSTILE, HOSTILE)],
        settings={HOSTILE: HOSTILE},
        load_code=HOSTILE,
        notes=[HOSTILE],
    )
    page = Page(html)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.text.count(HOSTILE) == 11  # the title twice, and once in each of nine other places
    assert "49" not in re.sub(r"<style>.*?</style>|base64,[^\"]*", "", html, flags=re.DOTALL)


def test_a_caption_stays_inside_its_attribute(report, tmp_path):
    caption = '"><script>alert(1)</script><img onerror="x'
    page = Page(report(figures=[ReportFigure(tmp_path / "curve.png", caption)]))
    assert "script" not in page.tags
    assert "onerror" not in dict(page.attributes)
    assert dict(page.attributes)["alt"] == caption


def test_the_page_needs_nothing_from_outside(report):
    html = report()
    assert base64.b64encode(PIXEL).decode() in html
    assert not re.search(r"https?://|<link|<script|@import|url\(", html)


def test_line_breaks_and_empty_replies(report):
    html = report(samples=[SamplePair("Hi", "one\n\ntwo", " ")])
    assert "one\n\ntwo" in html
    assert "(empty reply)" in html


def test_empty_parts_leave_no_headings(report):
    html = report(summary_rows=[], figures=[], samples=[], settings={}, load_code="")
    assert "<h2>" not in html


def test_the_page_is_for_phones_and_dark_rooms(report):
    html = report()
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert not re.search(r"img \{[^}]*width: \d+px", html)  # pictures scale, and are never cut off
