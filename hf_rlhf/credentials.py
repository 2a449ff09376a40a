"""Detection of access tokens and passwords, so that none reaches a file, a log or a card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hf_rlhf.errors import InputError

TOKEN = re.compile(
    r"""(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2}))(   # %3A and the like end where they end, also before a letter
        (hf|hf_oauth|api_org)_[A-Za-z0-9]{16,}        # Hugging Face
      | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,}
      | sk-(?=[\w-]*\d)[A-Za-z0-9_-]{20,}             # OpenAI, Anthropic
      | AKIA[0-9A-Z]{16} | xox[abpr]-[A-Za-z0-9-]{10,} | glpat-[\w-]{16,}
    ) | (?<=://)[^\s/@]*:[^\s/@]+(?=@)                # user:password of an address
    """,
    re.VERBOSE,
)
_SECRET_KEY = re.compile(
    r"(^|_)(token|password|passwd|passphrase|secret|(api|secret|access|private)_?key|credentials?|authorization)$"
)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # of apiToken
_NOT_SECRET = ("eos_token", "pad_token", "bos_token", "unk_token", "stop_token")

WHERE_TOKENS_BELONG = (
    "Log in once with `hf auth login`, or set the variable HF_TOKEN in the environment (WANDB_API_KEY and the like for "
    "trackers): both are read where they are needed and written nowhere"
)


def names_a_secret(key: str) -> bool:
    """Return whether a key, an option or a variable of this name holds a token or a password."""
    name = _HUMP.sub("_", key).lower().replace("-", "_")
    return name not in _NOT_SECRET and bool(_SECRET_KEY.search(name))


def hide_tokens(text: str) -> str:
    """Replace everything in a text that looks like an access token by `<token>`."""
    return TOKEN.sub("<token>", text)


def printable(text: str, limit: int | None = None) -> str:
    """Make text fit for one line of a terminal or a report: no control characters or tokens, at most `limit` long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in hide_tokens(_encodable(text))).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def printable_lines(text: str) -> str:
    """Make several lines printable like `printable`, without shortening them."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in hide_tokens(_encodable(text)))


def _encodable(text: str) -> str:
    """Escape the halves of characters in the names of files that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def without_secrets(values: Any) -> Any:
    """Return a copy of nested settings without keys that name a token or password, and with tokens in texts hidden."""
    if isinstance(values, Mapping):
        return {key: without_secrets(value) for key, value in values.items() if not names_a_secret(str(key))}
    if isinstance(values, (list, tuple)):
        return [without_secrets(value) for value in values]
    return hide_tokens(values) if isinstance(values, str) else values


def refuse_secrets(settings: Mapping[str, Any], where: str) -> None:
    """Raise InputError when a setting is, or is named as, a token or password; the message does not repeat it.

    Settings inside of settings, of lists and of text that is JSON are looked at too. What is None, empty or false is no
    secret, so that a flag may be named without being set.
    """
    for key, value in settings.items():
        inside = _from_json(value) if isinstance(value, str) else value
        if isinstance(inside, (list, tuple)):
            inside = {f"{key}[{number}]": each for number, each in enumerate(inside)}
        if isinstance(inside, Mapping) and not names_a_secret(str(key)):
            refuse_secrets(inside, f"{where}: {hide_tokens(str(key))}")
        elif value and value is not True and names_a_secret(str(key)):
            raise InputError(f"{where}: {key} must not stand here, as settings are stored. {WHERE_TOKENS_BELONG}")
        elif TOKEN.search(f"{key} {value}"):
            name = hide_tokens(str(key))
            raise InputError(f"{where}: the value of {name} looks like an access token. {WHERE_TOKENS_BELONG}")


def _from_json(text: str) -> Any:
    """Decode a JSON object or array, the form of flags with keys of their own; return any other text unchanged."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
