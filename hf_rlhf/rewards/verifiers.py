"""Rewards that verify a completion: a pattern, an answer, a JSON schema, mathematics. Each gives 1.0 or 0.0."""

import json
import re
import string
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.models.fingerprints import identity
from hf_rlhf.rewards.texts import as_list, column_of, completion_text, plain
from hf_rlhf.rewards.values import Unkept

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LATE_SECONDS = 5.0  # the shorter one of trl's time limits for math-verify, which a busy machine can exceed
_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


class Regex:
    r"""1.0 where a regular expression of Python matches the completion, else 0.0.

    Args:
        pattern: the expression. It is searched for, so `^` and `$` tie it to the ends.
        ignore_case: whether upper and lower case are the same.
        full: whether it has to match the whole completion, which is then stripped of whitespace at its ends.
    """

    name = "regex"

    def __init__(self, *, pattern: str, ignore_case: bool = False, full: bool = False):
        self.match = _compiled(pattern, "pattern", re.IGNORECASE if ignore_case else 0)
        self.full = full

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return 1.0 or 0.0 for each completion."""
        texts = map(completion_text, completions)
        matches = [self.match.fullmatch(text.strip()) if self.full else self.match.search(text) for text in texts]
        return [float(match is not None) for match in matches]


class ExactMatch:
    """1.0 where the completion is the answer that a column holds, else 0.0; None for a row without an answer.

    Args:
        column: holds the answer, or a list of answers, of which one has to match. 4.0 is the answer 4.
        ignore_case: whether upper and lower case are the same.
        ignore_whitespace: whether whitespace at the ends does not count, and any other run of it is one space.
        ignore_punctuation: whether ASCII punctuation is removed from both.
        extract: a regular expression; its last match in the completion is compared, or the first group of that match. A
            completion without a match gets 0.0.
    """

    name = "exact_match"

    def __init__(
        self,
        *,
        column: str = "answer",
        ignore_case: bool = False,
        ignore_whitespace: bool = True,
        ignore_punctuation: bool = False,
        extract: str | None = None,
    ):
        self.column = column
        self.required_columns = (column,)
        self.ignore_case, self.ignore_whitespace = ignore_case, ignore_whitespace
        self.ignore_punctuation = ignore_punctuation
        self.extract = None if extract is None else _compiled(extract, "extract")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return 1.0, 0.0 or None for each completion."""
        answers = column_of(columns, self.column, self.name)
        return [self._score(completion_text(text), answer) for text, answer in zip(completions, answers, strict=True)]

    def _score(self, text: str, answer: Any) -> float | None:
        wanted = {self._normalized(_written(each)) for each in as_list(answer, self.name) if each is not None}
        if not wanted:
            return None
        if self.extract is not None:
            matches = list(self.extract.finditer(text))
            if not matches:
                return 0.0
            text = matches[-1][1 if self.extract.groups else 0] or ""
        return float(self._normalized(text) in wanted)

    def _normalized(self, text: str) -> str:
        text = text.translate(_PUNCTUATION) if self.ignore_punctuation else text
        text = " ".join(text.split()) if self.ignore_whitespace else text
        return text.casefold() if self.ignore_case else text


class JSONSchema:
    """1.0 where the completion is JSON that a JSON Schema accepts, else 0.0. No schema is fetched from the network.

    Args:
        schema: a file, or the schema itself, which begins with `{`.
        fenced: whether the first fenced code block is read instead of the whole completion, where there is one.
    """

    name = "json_schema"

    def __init__(self, *, schema: str, fenced: bool = False):
        try:
            from jsonschema.exceptions import SchemaError
            from jsonschema.validators import Draft202012Validator, validator_for
            from referencing import Registry
        except ImportError as error:
            raise InputError("jsonschema is missing. Run `pip install hf-rlhf[verifiers]`") from error
        content = _read_schema(schema)
        kind: Any = validator_for(content, default=Draft202012Validator)
        try:
            kind.check_schema(content)
        except SchemaError as error:
            raise InputError(f"the schema is no JSON Schema: {error.message}. Mend it") from error
        # without a registry, jsonschema downloads what a $ref names, which the reward must not do
        self.validator = kind(content, registry=Registry(), format_checker=kind.FORMAT_CHECKER)
        self.fenced = fenced

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return 1.0 or 0.0 for each completion."""
        return [float(self._accepts(completion_text(completion))) for completion in completions]

    def _accepts(self, text: str) -> bool:
        from referencing.exceptions import Unresolvable

        block = _FENCE.search(text) if self.fenced else None
        try:
            content = json.loads(block[1] if block else text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return False
        try:
            return self.validator.is_valid(content)
        except (RecursionError, ArithmeticError):  # such as of "multipleOf" for a number that is no float
            return False
        except Unresolvable as error:
            raise InputError(
                f"reward {self.name!r}: its schema has a $ref that is not in it ({error}). Put the definition into"
                " $defs of the schema; nothing is downloaded"
            ) from error


class Math:
    r"""1.0 where the completion's answer equals the solution of a column as mathematics, else 0.0, by `math-verify`.

    This is trl's `accuracy_reward` for completions of either kind: None where the solution cannot be read, and the
    completion's answer has to be LaTeX, such as `\boxed{4}`. An answer that is not compared in time gets 0.0.

    Args:
        column: holds the solution, as text.
    """

    name = "math"
    main_thread = True  # math-verify limits its time by a signal; in another thread 9^{9^{9^9}} would never end

    def __init__(self, *, column: str = "solution"):
        from trl.import_utils import is_math_verify_available

        if not is_math_verify_available():
            raise InputError("math-verify is missing. Run `pip install hf-rlhf[verifiers]`")
        self.column = column
        self.required_columns = (column,)
        self.cache_key = identity(self.name, column, metadata.version("math-verify"))

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return 1.0, 0.0 or None for each completion."""
        from trl.rewards import accuracy_reward

        values: list[float | None] = []
        for completion, solution in zip(completions, column_of(columns, self.column, self.name), strict=True):
            if solution is None:
                values.append(None)
                continue
            begun = time.monotonic()
            [value] = accuracy_reward(
                [[{"role": "assistant", "content": completion_text(completion)}]], [str(plain(solution, self.name))]
            )
            late = time.monotonic() - begun >= _LATE_SECONDS
            values.append(Unkept(value) if late and value is not None else value)
        return values


def _written(answer: Any) -> str:
    """Return an answer as text. A whole number is written as one: a column that lacks some is often one of floats."""
    return str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer)


def _compiled(pattern: str, argument: str, flags: int = 0) -> re.Pattern[str]:
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise InputError(f"{argument}={pattern} is no regular expression ({error}). Mend it") from error


def _read_schema(schema: str) -> Any:
    text = schema
    if not schema.lstrip().startswith("{"):
        try:
            text = Path(schema).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"schema={schema} cannot be read ({error}). Name a JSON file, or write it out") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"schema={schema} is not JSON ({error}). Mend it") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
