"""Addresses of servers and the keys for them, checked before anything is asked."""

import os
import re
from urllib.parse import parse_qsl, urlsplit

from hf_rlhf.credentials import refuse_secrets
from hf_rlhf.errors import InputError


def server_address(flag: str, url: str) -> str:
    """Return the address as `http://host:port`, without a last `/v1`. Raises `InputError` for what is none."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        refused = parts.port == 0 or parts.scheme not in ("http", "https") or not parts.hostname
    except (TypeError, ValueError):
        refused = True
    if refused or re.search(r"[\s?#]", url):
        raise InputError(f"{flag}={url} is invalid: it is not the address of a server. Write http://host:8000.")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/').removesuffix('/v1')}"


def checked_url(url: str) -> str:
    """Return the URL without a last slash. Raises `InputError` for what is none, or has a token or password in it."""
    refuse_secrets({"url": url}, "an endpoint")
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (AttributeError, TypeError, ValueError):
        known, parts = False, urlsplit("")
    if not known or re.search(r"[\s#]", url):
        raise InputError(f"url={url} is invalid: it is not the address of a server. Write http://host:8000.")
    refuse_secrets(dict(parse_qsl(parts.query)), "url")
    return url.rstrip("/")


def key_in(variable: str | None) -> str | None:
    """Return the key that a variable of the environment holds. Raises `InputError`, which does not repeat the key."""
    if variable is None:
        return None
    refuse_secrets({"api_key_env": variable}, "an endpoint")
    if not re.fullmatch(r"[A-Za-z_]\w*", variable):
        raise InputError(
            "api_key_env is invalid: it takes the name of a variable of the environment, and not its value."
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"api_key_env={variable} is invalid: the environment has no such variable. Export it first.")
    if not key.isascii() or not key.isprintable():
        raise InputError(f"api_key_env={variable} is invalid: what it holds is no key. Export it again.")
    return key
