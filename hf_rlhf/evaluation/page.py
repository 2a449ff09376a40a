"""One HTML file from a template: the frame and the style that every page of this package shares."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any


def render_page(
    body: str,
    *,
    title: str,
    style: str = "",
    script: str = "",
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """Return a whole page, in a light and a dark theme, for wide and narrow windows. It loads nothing.

    All values are escaped; none is read as HTML or as a template. The browser runs no other script than `script`.

    Args:
        body: jinja template of what the page shows. It has the macros `table_of` (settings), `list_of` (notes) and
            `reply` (who wrote a text, the text, and a mark of it).
        title: of the window; `body` may use it.
        style: CSS besides `PAGE_STYLE`.
        script: JavaScript that runs when the page is there.
        filters: of the template, by name.
        values: of the template, by name.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters or {}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"; script-src 'sha256-{digest}'" if script else ""
    shown = {"title": title, "style": PAGE_STYLE + style, "script": script, "allowed": allowed}
    return environment.from_string(_PARTS.lstrip() + _FRAME.replace("BODY", body)).render(**shown, **values)


_PARTS = """
{% macro table_of(settings) %}
<div class="card"><table class="settings"><tbody>
{% for name, value in settings.items() %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro list_of(notes) %}
<ul class="notes">
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endmacro %}
{% macro reply(name, text, mark) %}
<div class="reply"><header><span>{{ name }}</span>{% if mark %}<span>{{ mark }}</span>{% endif %}</header>
{% if text.strip() %}<p>{{ text }}</p>{% else %}<p class="empty">(empty reply)</p>{% endif %}
</div>
{% endmacro %}
"""

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:{{ allowed | safe }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
{{ style | safe }}
</style>
</head>
<body>
<main>
BODY
</main>
{% if script %}
<script>{{ script | safe }}</script>
{% endif %}
</body>
</html>
"""

PAGE_STYLE = """
:root { --page: #f6f7f9; --card: #fff; --ink: #1f2630; --muted: #5d6878; --line: #e1e5ea; --accent: #0072b2; --after: #eaf3f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161c; --card: #1b2129; --ink: #e6eaf0; --muted: #9aa6b6; --line: #303946; --accent: #62b5e5; --after: #182b38; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { margin: 0 0 8px; font-size: 18px; font-weight: 600; color: var(--muted); }
.headline { margin: 0 0 32px; font-size: clamp(22px, 3.2vw, 32px); line-height: 1.25; font-weight: 700; text-wrap: balance; }
h2 { margin: 44px 0 14px; font-size: 20px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: 10px 18px; text-align: left; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--muted); font-size: 14px; font-weight: 600; }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.change { font-weight: 700; color: var(--accent); }
figure { margin: 0 0 20px; }
figure > .card { background: #fff; padding: 10px; }
img { display: block; width: 100%; max-width: 100%; height: auto; }
figcaption, .empty { color: var(--muted); font-size: 14px; }
figcaption { margin-top: 8px; }
.sample { margin-bottom: 16px; }
.prompt { margin: 0; padding: 12px 18px; font-weight: 600; overflow-wrap: anywhere; }
.replies { display: grid; grid-template-columns: 1fr 1fr; border-top: 1px solid var(--line); }
.reply { padding: 12px 18px 16px; min-width: 0; }
.reply + .reply { background: var(--after); border-left: 1px solid var(--line); }
.reply header { display: flex; justify-content: space-between; gap: 12px; font-size: 14px; font-weight: 600; color: var(--muted); }
.reply p { margin: 6px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
pre { margin: 0; padding: 16px 18px; overflow-x: auto; font: 14px/1.5 ui-monospace, Consolas, "DejaVu Sans Mono", monospace; }
.settings th { width: 40%; }
.settings td { font-variant-numeric: tabular-nums; }
@media (max-width: 640px) {
  main { padding: 24px 14px 48px; }
  th, td { padding: 9px 10px; font-size: 14.5px; }
  .replies { grid-template-columns: 1fr; }
  .reply + .reply { border-left: 0; border-top: 1px solid var(--line); }
}
@media print { body { background: #fff; } .card, figure { break-inside: avoid; } }
"""
