"""Many tasks and long texts: the next task is there at once."""

import statistics

from hf_rlhf.feedback import Form, Task

LONG = "👑 " + "Once upon a time there was a king. " * 2850


def test_ten_thousand_tasks_paint_in_a_second_and_the_next_one_comes_in_a_tenth(store, labeller):
    texts = ("a" * 900, "b" * 900)
    store.add_tasks(Task(Form("pairwise"), f"question {number} " + "x" * 200, texts) for number in range(10_000))
    ann = labeller()
    ann.page.reload()
    ann.page.wait_for_selector(".reply")
    paint = ann.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    ann.page.evaluate(
        """() => {
        window.shown = [];
        addEventListener("keydown", () => (window.pressed = performance.now()), true);
        new MutationObserver(() => requestAnimationFrame(() => window.shown.push(performance.now() - window.pressed)))
            .observe(document.querySelector("#main"), {childList: true});
        }"""
    )
    for _ in range(20):
        ann.press("1")
    ann.wait_saved()
    times = ann.page.evaluate("window.shown")
    assert len(times) == 20
    assert statistics.quantiles(times, n=20, method="inclusive")[-1] < 100, times
    assert paint < 1000
    assert len(store.events()) == 20


def test_a_hundred_thousand_characters_are_shown_on_request_and_marked_at_the_right_place(store, labeller):
    assert len(LONG) > 99_000
    store.add_tasks([Task(Form("pairwise"), LONG, (LONG, "short"))])
    store.add_tasks([Task(Form("span", labels=("false",)), "x", (LONG,))])
    store.add_tasks([Task(Form("correction"), "x", (LONG,))])
    ann = labeller()
    page = ann.page
    assert page.locator("button.show-all").count() == 3  # the prompt, its text and one reply
    page.keyboard.press("o")
    page.wait_for_selector("button.show-all", state="detached")
    lengths = page.eval_on_selector_all(".text", "all => all.map(each => [...each.textContent].length)")
    assert sorted(lengths) == [5, len(LONG), len(LONG)]
    ann.press("=")
    ann.press("ArrowLeft", "ArrowLeft", "1", "Enter")
    page.wait_for_selector("textarea.edit")
    page.keyboard.press("e")
    page.keyboard.press("Control+Home")
    page.keyboard.type("Not ")
    page.wait_for_selector("ins")
    assert page.inner_text("ins") == "Not "
    ann.press("Control+Enter")
    ann.wait_saved()
    spans, correction = [event.value for event in store.current()][1:]
    (span,) = spans["spans"]
    assert LONG[span["start"] : span["end"]] == "a"
    assert span["start"] == LONG.rindex(" a ") + 1
    assert correction["text"] == "Not " + LONG
