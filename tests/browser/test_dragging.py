"""The letters of a ranking are dragged to their places, with the mouse and with a finger."""

import pytest

from hf_rlhf.feedback import Form, Task

TEXTS = ("first", "second", "third", "fourth")


def center(page, selector):
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def letter(text):
    return f".places .letter:text-is('{text}')"


def place(rank):
    return f".place:nth-child({rank + 1})"


def by_mouse(page, start, end):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move((start[0] + end[0]) / 2, end[1] - 3)
    page.mouse.move(*end)
    page.mouse.up()


def by_finger(page, start, end):
    session = page.context.new_cdp_session(page)
    for kind, points in (
        ("touchStart", [start]),
        ("touchMove", [((start[0] + end[0]) / 2, end[1] - 3)]),
        ("touchMove", [end]),
        ("touchEnd", []),
    ):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})


@pytest.mark.parametrize(
    ("drag", "options"),
    [(by_mouse, {}), (by_finger, {"has_touch": True, "viewport": {"width": 390, "height": 844}})],
    ids=["mouse", "finger"],
)
def test_letters_are_dragged_to_places_and_what_is_dropped_beside_them_goes_back(store, labeller, drag, options):
    store.add_tasks([Task(Form("ranking"), "q", TEXTS)])
    ann = labeller(**options)
    page = ann.page
    for text, rank in (("A", 2), ("B", 4), ("C", 2), ("D", 1), ("B", 3)):
        drag(page, center(page, letter(text)), center(page, place(rank)))
    drag(page, center(page, letter("D")), (20, 20))
    assert page.inner_text(".line .summary") == "D > A = C > B"
    assert page.locator(place(2)).locator(".letter").all_inner_texts() == ["A", "C"]
    chosen = page.eval_on_selector_all(".reply input:checked", "all => all.map(each => each.value)")
    assert chosen == ["2", "3", "2", "1"]
    drag(page, center(page, letter("A")), center(page, place(0)))
    assert page.locator("button.save").is_disabled()
    drag(page, center(page, letter("A")), center(page, place(2)))
    page.wait_for_timeout(160)
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Thank you')")
    ann.wait_saved()
    (event,) = store.current()
    assert [event.value["ranks"][number] for number in event.shown_order] == [2, 3, 2, 1]
    assert not ann.complaints


def test_keys_and_choices_move_the_letters_as_well(store, labeller):
    store.add_tasks([Task(Form("ranking"), "q", TEXTS)])
    page = labeller().page
    page.wait_for_timeout(160)
    page.keyboard.press("3")
    page.keyboard.press("1")
    assert page.locator(place(3)).inner_text().split() == ["3", "A"]
    assert page.locator(place(1)).locator(".letter").all_inner_texts() == ["B"]
    page.locator(".reply").nth(1).get_by_text("4", exact=True).click()
    assert page.locator(place(4)).locator(".letter").all_inner_texts() == ["B"]
    assert page.locator(place(0)).locator(".letter").all_inner_texts() == ["C", "D"]
