"""Hook of mkdocs: links to files beside docs/ lead to the repository, so that pages read the same there and as a site."""

import os.path
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown, page, config, files):
    """Return the Markdown with absolute links in place of those that leave docs/."""
    folder = os.path.dirname(page.file.src_uri)

    def absolute(link: re.Match) -> str:
        target = os.path.normpath(os.path.join("docs", folder, link[1]))
        if target.startswith("docs/"):
            return link[0]
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"]({config.repo_url.rstrip('/')}/{kind}/main/{target}{link[2] or ''})"

    parts = FENCE.split(markdown)  # code is at the odd places
    return "".join(part if number % 2 else LINK.sub(absolute, part) for number, part in enumerate(parts))
