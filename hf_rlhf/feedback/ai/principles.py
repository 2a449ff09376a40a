"""The principles by which a model criticizes, revises and compares replies: a YAML file, checked as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError


@dataclass(frozen=True, slots=True)
class Principle:
    """One principle of a constitution (Bai et al. 2022, arXiv 2212.08073).

    Args:
        name: under which rows and reports name it.
        critique: asks the model what is wrong with its reply.
        revision: asks it for a better reply, after the critique.
        comparison: asks a judge which of two replies is better.
    """

    name: str
    critique: str
    revision: str
    comparison: str


_KEYS = tuple(field.name for field in fields(Principle))


def load_principles(path: str | None = None) -> list[Principle]:
    """Read a list of principles; by default those of this package. Raises `InputError` for a wrong file."""
    import yaml

    try:
        if path is None:
            text = (files("hf_rlhf") / "feedback" / "ai" / "principles.yaml").read_text(encoding="utf-8")
        else:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _invalid(path, f"it cannot be read ({reason})", "Check the path") from error
    except yaml.YAMLError as error:
        raise _invalid(path, f"it is no YAML ({' '.join(str(error).split())})", "Mend the file") from error
    if not isinstance(content, list) or not content:
        raise _invalid(path, "it holds no list of principles", "Begin each one with `- name: ...`")
    principles = [_principle(path, number, entry) for number, entry in enumerate(content, start=1)]
    names = [principle.name for principle in principles]
    if twice := {name for name in names if names.count(name) > 1}:
        raise _invalid(path, f"two principles are named {sorted(twice)[0]}", "Name each once")
    return principles


def _principle(path: str | None, number: int, entry: Any) -> Principle:
    if not isinstance(entry, Mapping):
        raise _invalid(path, f"principle {number} has no keys", f"Write {', '.join(_KEYS)} with their texts")
    if unknown := [str(key) for key in entry if key not in _KEYS]:
        raise _invalid(path, f"principle {number} has the unknown key {unknown[0]}", f"The keys are {', '.join(_KEYS)}")
    for key in _KEYS:
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise _invalid(path, f"principle {number} has no text as {key}", "Write it")
    return Principle(**{key: entry[key].strip() for key in _KEYS})


def _invalid(path: str | None, reason: str, fix: str) -> InputError:
    return InputError(f"principles={path} is invalid: {reason}. {fix}.")
