"""Find a Chromium that is installed: `python tests/find_browser.py` prints its path, or exits with 1."""

import os
import shutil
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")


def find_browser():
    """The browser that HF_RLHF_BROWSER names, or the first one on PATH."""
    return os.environ.get("HF_RLHF_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


if __name__ == "__main__":
    found = find_browser()
    print(found or "no browser")
    sys.exit(found is None)
