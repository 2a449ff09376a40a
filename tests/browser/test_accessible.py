"""The page can be used with a screen reader, by keys, without motion, in the dark and on a phone."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hf_rlhf.feedback import Field, Form, Task

FIELDS = (Field("tone", "choice", options=("warm", "cold")), Field("send", "checkbox"), Field("why", "text"))
FORMS = {
    "pairwise": (Form("pairwise"), 2),
    "ranking": (Form("ranking"), 4),
    "rating": (Form("rating"), 1),
    "ratings": (Form("rating", criteria=("helpful", "tone")), 2),
    "correction": (Form("correction"), 1),
    "span": (Form("span", labels=("false", "rude")), 1),
    "custom": (Form("custom", fields=FIELDS), 1),
}
TEXT = "A reply with\n\n```python\nprint('code')\n```\n\nand a rather long-winded sentence behind it."
DIALOGUE = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me more about it."}]


def axe_file():
    """The script of axe-core: named by AXE_CORE, or in the folder of npm's packages."""
    if name := os.environ.get("AXE_CORE"):
        return Path(name)
    if npm := shutil.which("npm"):
        root = subprocess.run([npm, "root", "--global"], capture_output=True, text=True, check=False).stdout.strip()
        if (file := Path(root) / "axe-core" / "axe.min.js").is_file():
            return file
    return None


def tasks(*names):
    return [
        Task(form, DIALOGUE, tuple(f"{name} {number}. {TEXT}" for number in range(count)))
        for name, (form, count) in FORMS.items()
        if not names or name in names
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_screen(store, labeller, scheme):
    file = axe_file()
    if file is None:
        pytest.skip("axe-core is not installed: npm install --global axe-core, or name axe.min.js by AXE_CORE")
    source = file.read_text(encoding="utf-8")
    store.add_tasks(tasks())
    store.set("guidelines", "Truth first.\n" * 40)
    ann = labeller(color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")
    found = []

    def check(where):
        result = ann.page.evaluate(source + "; axe.run().then(result => result.violations)")
        serious = [each for each in result if each["impact"] in ("serious", "critical")]
        found.extend((where, each["id"], each["nodes"][0]["html"][:200]) for each in serious)

    check("guidelines")
    ann.page.keyboard.press("Escape")
    for name in FORMS:
        check(name)
        for key in ("?", "f"):
            ann.page.keyboard.press(key)
            check(f"{name} {key}")
            ann.page.keyboard.press("Escape")
        ann.press("s")
    check("thanks")
    ann.page.click("#open-agreement")
    ann.page.wait_for_selector("table")
    check("agreement")
    ann.page.click("#change-name")
    check("name")
    assert found == []


def test_everything_is_reached_by_tab_and_has_a_name(store, labeller):
    store.add_tasks(tasks())
    page = (ann := labeller()).page
    for name in FORMS:
        page.wait_for_selector(f".reply:has-text('{name} 0.'), textarea.edit")
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            described = page.evaluate(
                """(() => {
                const at = document.activeElement;
                if (!at.matches("button, input, textarea")) return "";
                return `${at.name || at.id || ""}|${at.ariaLabel || at.labels?.[0]?.textContent || at.textContent || "?"}`;
                })()"""
            )
            if described in reached:
                break
            reached |= {described} if described else set()
        counted = page.evaluate(
            """(() => {
            const all = [...document.querySelectorAll("button, input, textarea")].filter(each => each.checkVisibility());
            const radios = all.filter(each => each.type === "radio");
            return all.filter(each => !each.disabled).length - radios.length + new Set(radios.map(each => each.name)).size;
            })()"""
        )
        assert not any(each.endswith("?") and "Keys" not in each for each in reached)
        assert len(reached) == counted, (name, reached)
        page.evaluate("document.activeElement.blur()")
        ann.press("s")


def test_keys_write_while_a_text_field_has_the_focus_and_a_held_key_answers_once(store, labeller):
    store.add_tasks(tasks("correction", "rating", "ratings"))
    ann = labeller()
    ann.press("s")
    ann.press("s")
    ann.page.keyboard.press("e")
    ann.page.keyboard.type("usf1?")
    assert ann.page.input_value("textarea").endswith("usf1?")
    ann.page.keyboard.press("Escape")
    ann.press("u")
    ann.press("u")
    ann.page.wait_for_timeout(200)
    for _ in range(10):
        ann.page.keyboard.down("4")
        ann.page.wait_for_timeout(40)
    ann.page.keyboard.up("4")
    ann.wait_saved()
    assert [event.kind for event in store.current()] == ["answer"]


def test_nothing_sticks_out_at_three_widths_and_two_replies_are_stacked_on_the_narrow_one(store, labeller):
    store.add_tasks(tasks())
    ann = labeller()
    for name, (_, count) in FORMS.items():
        for width in (1440, 1024, 390):
            ann.page.set_viewport_size({"width": width, "height": 800})
            assert ann.page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
            if count == 2:
                places = "all => all.map(each => Math.round(each.getBoundingClientRect().left))"
                lefts = set(ann.page.eval_on_selector_all(".reply", places))
                assert len(lefts) == (1 if width == 390 else 2)
        ann.press("s")


def test_motion_stops_and_colors_follow_where_the_reader_asks_for_it(store, labeller):
    store.add_tasks(tasks("pairwise"))
    ann = labeller(color_scheme="dark", reduced_motion="reduce")
    style = "getComputedStyle(document.querySelector('%s')).%s"
    assert ann.page.evaluate(style % (".replies", "animationName")) == "none"
    dark = ann.page.evaluate(style % ("body", "backgroundColor"))
    ann.page.emulate_media(color_scheme="light", reduced_motion="no-preference")
    assert ann.page.evaluate(style % ("body", "backgroundColor")) != dark
    assert ann.page.evaluate(style % (".replies", "animationName")) == "appear"
