"""Texts of models are shown letter by letter, and never run, load or leave anything."""

from hf_rlhf.feedback import Field, Form, Task

RUN = "window.__xss=1"
TAGS = [
    f"<script>{RUN}</script>", "<ScRiPt src=//evil.example/x.js></ScRiPt>", f"<img src=x onerror={RUN}>", f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>", f"<body onload={RUN}>", "<iframe srcdoc='<script>parent.__xss=1</script>'></iframe>",
    f"<iframe src=javascript:{RUN}></iframe>", f"<a href=javascript:{RUN}>click</a>", f"<input autofocus onfocus={RUN}>",
    f"<details open ontoggle={RUN}>", f"<video><source onerror={RUN}></video>", f"<audio src=x onerror={RUN}>", f"<marquee onstart={RUN}>",
    f"<object data=javascript:{RUN}>", f"<embed src=javascript:{RUN}>", f"<form action=javascript:{RUN}><button>x</button></form>",
    "<link rel=stylesheet href=//evil.example/x.css>", "<style>*{display:none}</style>", "<style>@import '//evil.example/x.css'</style>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>", "<base href=//evil.example/>", f"<math><mtext><script>{RUN}</script></mtext></math>",
    f"</textarea><script>{RUN}</script>", f"</title><script>{RUN}</script>", f"</script><script>{RUN}</script>", f"--><script>{RUN}</script><!--",
    f"]]><script>{RUN}</script>", f"<![CDATA[<script>{RUN}</script>]]>", f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    f"<template><script>{RUN}</script></template>", f"<x onclick={RUN}>x</x>", f"\"><img src=x onerror={RUN}>", f"'><svg/onload={RUN}>",
    f"\" onmouseover={RUN} x=\"", f"javascript:{RUN}", f"data:text/html,<script>{RUN}</script>", "{{constructor.constructor('window.__xss=1')()}}",
    "${window.__xss=1}", "`${window.__xss=1}`", "<%= 7*7 %>", "#{7*7}", "{% raw %}", "[[__proto__]]", "__proto__", "constructor",
    "<img src=//evil.example/p.png>", "![x](//evil.example/p.png)", f"[x](javascript:{RUN})", "<dialog open>owned</dialog>",
]  # fmt: skip
LETTERS = [
    "\u202egnp.exe", "\u2066\u2067\u2069", "a\u200bb\u200cc\u200dd\ufeffe", "مرحبا بالعالم", "שלום <b>עולם</b>", "漢字かな交じり文",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇳", "e\u0301 ẛ̣ Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯", "nul \0 byte", "bell \x07 escape \x1b[31m", "tab\tand  two spaces \u00a0 end ", "\n\nnewlines\n\n\nkept\n",
    "line\u2028separator\u2029", "&lt;b&gt; &amp; &#60;", "lone \ud83d half", "<" * 50, "\\u003cscript\\u003e",
]  # fmt: skip
HOSTILE = TAGS + LETTERS


def shown(page, selector):
    return page.eval_on_selector_all(selector, "all => all.map(each => each.textContent)")


def test_sixty_hostile_texts_are_shown_as_they_are_and_nothing_runs(store, labeller):
    assert len(HOSTILE) >= 60
    texts = [text for text in HOSTILE if "\ud83d" not in text]
    for start in range(0, len(texts), 8):
        part = tuple(texts[start : start + 8])
        store.add_tasks([Task(Form("rating"), [{"role": "user", "content": each} for each in part], part)])
    field = Field("name", "choice", "<img src=x onerror=window.__xss=1>", options=(HOSTILE[0], HOSTILE[3]))
    store.add_tasks([Task(Form("custom", question=HOSTILE[2], fields=(field,)), HOSTILE[1], (HOSTILE[1],))])
    store.add_tasks([Task(Form("span", labels=(HOSTILE[2], HOSTILE[3])), "x", (HOSTILE[0],))])
    store.add_tasks([Task(Form("correction"), "x", (HOSTILE[23],))])
    store.set("guidelines", "\n".join(texts))
    ann = labeller(name="<img src=x onerror=window.__xss=1>")
    page = ann.page
    page.evaluate("addEventListener('securitypolicyviolation', event => (window.__xss = event.violatedDirective))")
    assert shown(page, "#dialog .guidelines") == ["\n".join(texts)]
    page.keyboard.press("Escape")
    for start in range(0, len(texts), 8):
        part = texts[start : start + 8]
        assert shown(page, ".prompt .text") == part
        assert sorted(shown(page, ".reply .text")) == sorted(part)
        ann.press("s")
    assert shown(page, "h1") == [HOSTILE[2]]
    assert shown(page, ".options label span") == [HOSTILE[0], HOSTILE[3]]
    ann.press("1", "Enter")
    ann.press("ArrowRight", "1", "c", "Escape", "Enter")
    page.wait_for_selector("textarea.edit")
    assert page.input_value("textarea.edit") == HOSTILE[23]
    page.fill("textarea.edit", HOSTILE[0] + HOSTILE[2])
    page.wait_for_selector("ins")
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    page.keyboard.type(HOSTILE[2])
    page.keyboard.press("Control+Enter")
    ann.press("Enter")
    ann.wait_saved()
    page.goto(ann.address.split("?")[0] + "#agreement")
    page.wait_for_selector("table")
    assert "<img src=x" in page.inner_text("tbody")
    assert page.evaluate("window.__xss") is None
    assert ann.complaints == []
    assert [event.comment for event in store.current()][-1] == HOSTILE[2]


def test_half_of_a_character_is_shown_and_refused_in_an_answer(store, labeller):
    store.add_tasks([Task(Form("rating"), "x", ("nul \0 byte 👍",))])
    ann = labeller()
    assert shown(ann.page, ".reply .text") == ["nul \0 byte 👍"]
    reply = ann.page.evaluate(
        """async () => (await fetch("/api/events", {method: "POST", headers: {"Content-Type": "application/json"},
        body: JSON.stringify({uuid: crypto.randomUUID(), kind: "skip", comment: "\\ud83d"})})).status"""
    )
    assert reply == 400
    assert store.events() == []
