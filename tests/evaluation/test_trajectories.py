"""Trajectories for people: facts in words, colors that are numbers, and nothing that a text could do."""

import io
import json
import re

import pytest
from pages import HOSTILE, Page
from rich.console import Console
from trajectories import completion_row

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation import read_trajectories, trajectory_page
from hf_rlhf.evaluation.trajectories.characters import PART, in_one_line, visible
from hf_rlhf.evaluation.trajectories.facts import facts_of
from hf_rlhf.evaluation.trajectories.quantities import QUANTITIES, Scale
from hf_rlhf.evaluation.trajectories.terminal import print_trajectories
from hf_rlhf.ppo.trajectories import write_trajectories

TURNS = [("policy", 0, 1), ("environment", 1, 2), ("policy", 2, 3)]


def episode():
    """Two completions of a token each, with a token of the environment between them."""
    turns = [{"role": role, "start": start, "end": end, "text": "abc"[start:end]} for role, start, end in TURNS]
    numbers = {name: [0.5, None, -0.5] for name in ("advantages", "per_token_rewards", "values", "kl")}
    return completion_row(["a", "b", "c"], turns=turns, completion_mask=[True, False, True], **numbers)


def page_of(folder, rows, quantity="advantage"):
    write_trajectories(folder, rows, iteration=7, step=24)
    return trajectory_page(read_trajectories(folder), QUANTITIES[quantity])


def printed(folder, rows, *, numbers=False, **terminal):
    write_trajectories(folder, rows, iteration=7, step=24)
    console = Console(file=io.StringIO(), width=100, highlight=False, **terminal)
    print_trajectories(console, read_trajectories(folder), QUANTITIES["advantage"], numbers=numbers)
    return console.file.getvalue()


# Reading


def test_the_last_iteration_and_all_rows_are_read_unless_others_are_named(tmp_path):
    for iteration in (1, 5):
        rows = [completion_row([f"{iteration}.{row}"]) for row in range(6)]
        write_trajectories(tmp_path, rows, iteration=iteration, step=0)
    assert read_trajectories(tmp_path).iteration == 5
    assert len(read_trajectories(tmp_path).rows) == 6
    assert [row["row"] for row in read_trajectories(tmp_path, most=4).rows] == [0, 1, 2, 3]
    assert [row["tokens"] for row in read_trajectories(tmp_path, 1, [5, 0]).rows] == [["1.5"], ["1.0"]]


@pytest.mark.parametrize(
    ("iteration", "rows", "message"),
    [(2, None, "iteration=2 is invalid: .* iterations 1, 5. Name one"), (1, [6], "rows=6 .* has 6 rows"), (1, [-1], "rows=-1")],
)  # fmt: skip
def test_what_is_not_there_is_an_error_that_says_what_is(tmp_path, iteration, rows, message):
    for each in (1, 5):
        write_trajectories(tmp_path, [completion_row(["a"])] * 6, iteration=each, step=0)
    with pytest.raises(InputError, match=message):
        read_trajectories(tmp_path, iteration, rows)


def test_a_damaged_file_and_one_of_another_version_are_errors(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    file = write_trajectories(tmp_path, [completion_row(["a"] * 500)], iteration=1, step=0)
    content = file.read_bytes()
    for damaged in (b"", content[:-9], b"x" * 200):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"iteration-000001\.parquet cannot be read"):
            read_trajectories(tmp_path)
    parquet.write_table(pa.table({"iteration": [1]}), file)
    with pytest.raises(InputError, match="no column step: another version wrote it"):
        read_trajectories(tmp_path)


# Scales


def test_a_diverging_scale_has_0_in_its_middle_and_no_outlier_at_its_end():
    scale = Scale.of(QUANTITIES["kl"], [{"kl": [0.1 * t for t in range(-10, 90)] + [1e6, None]}])
    assert scale.low == -scale.high
    assert 8 < scale.high < 9
    assert scale.strength(0.0) == 0
    assert scale.strength(1e6) == 1
    assert scale.strength(-scale.high / 2) == pytest.approx(-0.5)
    assert scale.strength(None) is None


def test_the_other_scale_goes_from_the_lowest_to_the_highest():
    scale = Scale.of(QUANTITIES["value"], [{"values": [4.0, 4.5]}, {"values": [5.0, None]}])
    assert (scale.low, scale.high) == (4, 5)
    assert [scale.strength(value) for value in (3.0, 4.0, 4.5, 5.0)] == [0, 0, 0.5, 1]


@pytest.mark.parametrize("numbers", [[], [None], [0.0, 0.0], [3.0]])
@pytest.mark.parametrize("name", QUANTITIES)
def test_every_scale_bears_nothing_to_show(name, numbers):
    scale = Scale.of(QUANTITIES[name], [{QUANTITIES[name].column: numbers}])
    assert all(-1 <= scale.strength(number) <= 1 for number in numbers if number is not None)


# Words


def test_the_facts_say_how_a_completion_ended_and_what_it_was_paid():
    row = completion_row(["a", "b"], kl=[0.25, 0.5])
    assert facts_of(row) == ["reward 1", "KL 0.75", "2 tokens", "ended by itself"]
    parts = row | {"rewards": {"x": 2.0, "y": -1.0}, "score": 0.5, "stopped": False}
    assert facts_of(parts) == [
        "reward 1 (x 2, y -1)",
        "score 0.5",
        "KL 0.75",
        "2 tokens",
        "cut off by the length limit",
    ]
    unscored = row | {"reward": None, "score": None, "kl": [None, None], "failure": "RuntimeError: \x1b[31m"}
    assert facts_of(unscored)[0] == "no reward, so not learned from"
    assert facts_of(unscored)[-1] == "the environment failed: RuntimeError: ⟨U+001B⟩[31m"
    assert "truncated by a limit, value beyond it 0.25" in facts_of(row | {"truncated": True, "bootstrap": 0.25})
    assert "3 tokens in 2 turns" in facts_of(episode())


def test_characters_that_hide_are_seen_and_others_stay():
    assert visible("a\u202eb\u2066\u200b\x00\ufeff") == "a⟨U+202E⟩b⟨U+2066⟩⟨U+200B⟩⟨U+0000⟩⟨U+FEFF⟩"
    for text in ("שלום", "👩\u200d👩\u200d👧", "نمی\u200cخواهم", "日本語", "e\u0301", "a\u00a0b"):
        assert visible(text) == text
    assert visible("a\nb\tc\r") == "a↵\nb⇥\tc␍"
    assert in_one_line("ab\ncd", 3) == "ab↵ … (2 more characters)"


# The page


def test_hostile_text_is_shown_and_not_run(tmp_path):
    texts = [HOSTILE, "</script><script>alert(2)</script>", "\"'`--><!--", "\u202e", "x" * 100_000, ""]
    row = completion_row(texts, prompt=HOSTILE + "y" * 100_000) | {"rewards": {HOSTILE: 1.0, "other": 0.0}}
    html = page_of(tmp_path, [row])
    page = Page(html)
    assert page.tags.count("script") == 2  # the numbers, and the page's own
    assert page.text.count("<script>alert(1)</script>") >= 3
    assert "<script>alert(1)" not in html
    assert "x" * 100_000 in page.text
    assert "⟨U+202E⟩" in page.text
    assert "\u202e" not in html
    assert PART in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert not re.search(r"https?://|<link|@import|url\(", html)
    assert "{{ 7*7 }}" in page.text


def test_the_numbers_of_the_page_are_those_of_the_rows_and_hold_no_text(tmp_path):
    html = page_of(tmp_path, [episode(), completion_row(["</script>"], advantages=[0.123456])])
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    data = json.loads(block)
    place = data["quantities"]["advantage"]["place"]
    assert data["names"][place] == "Advantage"
    assert data["rows"][0]["numbers"][place] == [0.5, None, -0.5]
    assert data["rows"][1]["numbers"][place] == [0.1235]
    assert data["rows"][0]["ids"] == [0, 1, 2]
    assert {name for each in data["rows"] for name in each} == {"ids", "numbers"}


def test_a_token_has_the_color_of_its_number_without_any_script(tmp_path):
    html = page_of(tmp_path, [episode()])
    tokens = re.findall(r'<span class="(token[^"]*)"( style="[^"]*")?>(.)</span>', html)
    assert tokens == [
        ("token", ' style="--x:1.00"', "a"),
        ("token out", "", "b"),
        ("token minus", ' style="--x:1.00"', "c"),
    ]
    assert [name for name, value in Page(html).attributes if value == "turn environment"] == ["class"]
    assert "Iteration 7: 1 completion, mean reward 1" in Page(html).text


def test_a_page_of_nothing_counted_is_a_page(tmp_path):
    empty = {name: [] for name in ("advantages", "per_token_rewards", "values", "kl")}
    html = page_of(tmp_path, [completion_row([], reward=None, turns=[], **empty)])
    assert "(no tokens)" in html
    assert "none with a reward" in html


# The terminal


def test_without_a_terminal_every_token_is_a_line_with_its_numbers(tmp_path):
    lines = printed(tmp_path, [episode()]).splitlines()
    assert lines[1] == "iteration 7, row 0: reward 1, KL 0, 3 tokens in 2 turns, ended by itself"
    assert lines[2] == "prompt: hello"
    assert lines[3].split() == ["token", "reward", "value", "advantage", "kl", "text"]
    assert lines[4].split() == ["0", *["0.5000"] * 4, '"a"']
    assert lines[5].split() == ["1", *["-"] * 4, '"b"', "(environment)"]


def test_a_terminal_has_the_text_in_colors_and_a_legend(tmp_path):
    out = printed(tmp_path, [episode()], force_terminal=True, color_system="truecolor")
    assert "Advantage: -0.5" in out
    assert "\x1b[30;48;2;86;180;233ma" in out  # above 0: blue
    assert "\x1b[30;48;2;230;159;0mc" in out  # below 0: orange
    assert '"a"' not in out
    assert '"a"' in printed(tmp_path, [episode()], numbers=True, force_terminal=True, color_system="truecolor")


def test_a_terminal_that_shall_have_no_color_gets_the_numbers(tmp_path):
    out = printed(tmp_path, [episode()], force_terminal=True, no_color=True)
    assert "\x1b" not in out
    assert '"a"' in out


@pytest.mark.parametrize("terminal", [{}, {"force_terminal": True, "color_system": "truecolor"}])
def test_hostile_text_moves_no_cursor_and_is_no_markup(tmp_path, terminal):
    texts = ["\x1b[2J\x1b]0;owned\x07", "[bold]no[/bold]", "\u202e", "\x9b31m", "z" * 100_000]
    out = printed(tmp_path, [completion_row(texts, prompt="\x1b[2J" + "p" * 100_000)], **terminal)
    assert "⟨U+001B⟩[2J" in out
    assert "[bold]no[/bold]" in out
    assert not re.search("\x1b(?!\\[[0-9;]*m)|\x9b|\x07|\u202e", out)
    assert len(out) < 5000
