"""The page of trajectories in a browser: colors, keys, and texts of models that do nothing."""

import pytest
from browser.test_hostile_texts import HOSTILE
from trajectories import completion_row

from hf_rlhf.evaluation import read_trajectories, trajectory_page
from hf_rlhf.evaluation.trajectories.quantities import QUANTITIES
from hf_rlhf.ppo.trajectories import write_trajectories


@pytest.fixture
def page(browser, tmp_path):
    """A function that opens the page of some rows, and gives it with what its console and its network said."""
    contexts = []

    def opened(rows, **options):
        write_trajectories(tmp_path, rows, iteration=1, step=0)
        file = tmp_path / "page.html"
        file.write_text(trajectory_page(read_trajectories(tmp_path), QUANTITIES["advantage"]), encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page, complaints = context.new_page(), []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: request.url == file.as_uri() or complaints.append(request.url))
        page.goto(file.as_uri())
        return page, complaints

    yield opened
    for context in contexts:
        context.close()


def color(page, t):
    return page.locator(".token").nth(t).evaluate("each => getComputedStyle(each).backgroundColor")


def test_hostile_texts_are_shown_and_nothing_runs(page):
    texts = [text.encode("utf-8", "backslashreplace").decode() for text in HOSTILE]
    shown, complaints = page([completion_row(texts, prompt="\n".join(texts)), completion_row(["a"])])
    assert shown.locator(".token").count() == len(texts) + 1
    tokens = shown.locator(".token").all_text_contents()
    assert tokens[: len(texts)][2] == texts[2]
    for t in range(0, len(texts), 7):
        shown.locator(".token").nth(t).click()
        assert shown.locator("#text").text_content() == tokens[t]
    assert shown.evaluate("window.__xss") is None
    assert not complaints


def test_an_injected_script_would_not_run_either(page):
    shown, complaints = page([completion_row(["a"])])
    shown.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.__xss=1'; document.body.append(s); }"
    )
    assert shown.evaluate("window.__xss") is None
    assert "Content Security Policy" in complaints[0]


def test_keys_and_taps_show_the_numbers_of_a_token(page):
    row = completion_row(["the", " cat", " sat"], advantages=[0.5, -0.25, 0.0], values=[0.125, 0.25, 0.75])
    shown, complaints = page([row, completion_row(["x", "y"])])
    panel = shown.locator("#panel")
    assert panel.is_hidden()
    shown.locator(".tokens").first.focus()
    shown.keyboard.press("Shift+Tab")
    shown.keyboard.press("Tab")
    assert shown.locator("#text").text_content() == "the"
    shown.keyboard.press("ArrowRight")
    assert shown.locator("#text").text_content() == " cat"
    assert "\N{MINUS SIGN}0.25" in shown.locator(".now dd").text_content()
    assert shown.locator("#selected").get_attribute("aria-label").startswith(" cat, Advantage \N{MINUS SIGN}0.25")
    shown.keyboard.press("End")
    assert shown.locator("#text").text_content() == " sat"
    shown.keyboard.press("Escape")
    assert panel.is_hidden()
    shown.locator(".token").nth(3).click()
    assert "token 0 of row 1" in shown.locator("#where").text_content()
    assert not complaints


def test_another_quantity_has_its_own_colors_and_scale(page):
    row = completion_row(["a", "b", "c"], advantages=[1.0, -1.0, 0.0], values=[0.0, 2.0, 2.0])
    shown, _ = page([row])
    above, below, zero = (color(shown, t) for t in range(3))
    assert len({above, below, zero}) == 3
    assert shown.locator("#low").text_content() == "\N{MINUS SIGN}1"
    shown.locator("input[value=value]").check(force=True)
    assert color(shown, 0) == zero
    assert color(shown, 1) == color(shown, 2) == above
    assert shown.locator("#high").text_content() == "2"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(page, width, scheme):
    row = completion_row(["W" * 3000, " word" * 50, "\n"], prompt="x" * 100_000)
    shown, _ = page([row], viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown.locator(".token").first.click(position={"x": 5, "y": 8})
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
