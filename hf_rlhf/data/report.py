"""What a run is about to learn from, said before it starts: rows, what was left out and why, lengths, examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.credentials import hide_tokens
from hf_rlhf.data.bad_rows import BadRow, list_by_problem
from hf_rlhf.data.files import LoadedRows, read_columns
from hf_rlhf.data.language_modeling import find_columns, is_conversational, text_problems, tokenize_texts
from hf_rlhf.data.preferences import find_layout, fingerprint, prepare_preferences, read_preferences, value_problems
from hf_rlhf.data.prompt_checks import prompt_problem
from hf_rlhf.data.prompts import with_prompts
from hf_rlhf.data.tokens import chat_ids, text_ids, tokenize_prompts

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

REPORT_FILE = "data_report.json"
MEASURED_ROWS = 2000
"""Rows whose tokens are counted; of a larger set, as many that are spread evenly over it."""

_EXAMPLES, _EXAMPLE_CHARACTERS = 2, 100


class Limit(NamedTuple):
    """Most tokens of a row, by the name of its flag, and what becomes of longer ones."""

    name: str
    tokens: int | None
    then: str


@dataclass(frozen=True)
class Lengths:
    """Tokens of one part of the rows; `above` counts those of the `measured` ones that are over the limit."""

    part: str
    measured: int
    minimum: int
    median: int
    most: int  # 95 of 100 rows have at most so many
    maximum: int
    limit: Limit
    above: int

    @classmethod
    def of(cls, part: str, lengths: Sequence[int], limit: Limit) -> Lengths:
        """Sum up the token counts of some rows, one or more."""
        ordered, last = sorted(lengths), len(lengths) - 1
        above = sum(limit.tokens is not None and length > limit.tokens for length in lengths)
        middle, most = ordered[last // 2], ordered[round(last * 0.95)]
        return cls(part, len(lengths), ordered[0], middle, most, ordered[-1], limit, above)

    def __str__(self) -> str:
        text = f"tokens of {self.part}: {self.minimum} to {self.maximum}, median {self.median}, 95% up to {self.most}"
        if self.limit.tokens is None:
            return text
        over = f"{self.above} of {self.measured} rows {self.limit.then}" if self.above else "none"
        return f"{text}; above {self.limit.name}={self.limit.tokens}: {over}"


@dataclass(frozen=True)
class SetReport:
    """One set. `rows_read` = `rows` + `bad_rows` + all of `left_out`; what is only `noticed` stays in the set."""

    role: str
    source: str
    layout: str
    columns: list[str]
    other_columns: list[str]
    rows_read: int
    rows: int
    bad_rows: list[BadRow]
    left_out: dict[str, int]
    noticed: dict[str, int]
    lengths: list[Lengths]
    examples: list[dict[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        unused = f"; not used: {', '.join(self.other_columns)}" if self.other_columns else ""
        lines = [
            f"{self.role}: {self.source}, {self.rows} of {self.rows_read} rows [{self.layout}]",
            f"columns: {', '.join(self.columns)}{unused}",
            *(f"left out, as skip_bad allows: {line}" for line in list_by_problem(self.bad_rows)),
            *(f"left out: {count} {what}" for what, count in self.left_out.items() if count),
            *(f"kept: {count} {what}" for what, count in self.noticed.items() if count),
            *map(str, self.lengths),
            *("e.g. " + " | ".join(f"{name}: {text}" for name, text in row.items()) for row in self.examples[:1]),
        ]
        return "\n  ".join(lines)


@dataclass(frozen=True)
class DataReport:
    """All sets of a run. `shared` counts what evaluation and training have in common."""

    sets: list[SetReport]
    shared: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        leaks = [f"WARNING: {count} {what}" for what, count in self.shared.items() if count]
        return "\n".join([*map(str, self.sets), *leaks])

    def write(self, folder: Path) -> None:
        """Write data_report.json."""
        folder.mkdir(parents=True, exist_ok=True)
        content = asdict(self)
        for each, report in zip(content["sets"], self.sets, strict=True):
            each["bad_rows"] = [row._asdict() for row in report.bad_rows]
            for length, lengths in zip(each["lengths"], report.lengths, strict=True):
                length["limit"] = lengths.limit._asdict()
        (folder / REPORT_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class CheckedSet(NamedTuple):
    """The rows to go on with, and what was found."""

    dataset: Dataset
    report: SetReport


def check_preferences(rows: LoadedRows, tokenizer: PreTrainedTokenizerBase, *, role: str, limit: Limit) -> CheckedSet:
    """A preference set in TRL's format with its report. Raises InputError as `prepare_preferences` does."""
    columns = read_preferences(rows.dataset, source=rows.source)
    good = rows.without(value_problems(columns, find_layout(columns)))
    dataset, found = prepare_preferences(good.dataset, source=rows.source)
    pairs = _sample(dataset, [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names])
    prompts = pairs.get("prompt") or [[] if isinstance(pairs["chosen"][0], list) else ""] * len(pairs["chosen"])
    tokens = {
        name: _pair_lengths(prompts, pairs[name], tokenizer, source=rows.source) for name in ("chosen", "rejected")
    }
    longer = sum(len(str(c)) > len(str(r)) for c, r in zip(pairs["chosen"], pairs["rejected"], strict=True))
    report = _report(
        rows,
        good,
        dataset,
        role=role,
        layout=found.layout,
        columns=list(columns),
        left_out={
            **{f"malformed: {reason}": count for reason, count in found.malformed_reasons.items()},
            "with chosen equal to rejected": found.identical,
            "that are there already": found.duplicates,
        },
        noticed={
            "that contradict another (the same answers the other way round)": found.contradictions,
            f"of {len(pairs['chosen'])} whose chosen answer is the longer one": longer,
        },
        lengths=[Lengths.of(f"prompt and {name}", lengths, limit) for name, lengths in tokens.items()],
    )
    return CheckedSet(dataset, report)


def check_prompt_set(rows: LoadedRows, tokenizer: PreTrainedTokenizerBase, *, role: str, limit: Limit) -> CheckedSet:
    """The rows that PPO takes its prompts from, with their report. Raises InputError as `prepare_prompts` does."""
    found = rows.dataset.column_names
    if "prompt" in found:
        values = read_columns(rows.dataset, ["prompt"])["prompt"]
        conversational = isinstance(next((value for value in values if value is not None), None), list)
        good = rows.without({"prompt": [prompt_problem(value, conversational=conversational) for value in values]})
    elif {"chosen", "rejected"} <= set(found):
        columns = read_preferences(rows.dataset, source=rows.source)
        good = rows.without(value_problems(columns, find_layout(columns)))
    else:
        good = rows
    dataset = with_prompts(good.dataset, source=rows.source)
    sample = _sample(dataset, ["prompt"])["prompt"]
    ids = tokenize_prompts(sample, tokenizer, {}, source=rows.source)
    report = _report(
        rows,
        good,
        dataset,
        role=role,
        layout="messages" if isinstance(sample[0], list) else "text",
        columns=["prompt"] if "prompt" in found else ["chosen", "rejected"],
        left_out={"malformed, or with a prompt that is there already": len(good.dataset) - len(dataset)},
        noticed={"with a prompt that is there already": len(dataset) - len(fingerprints(dataset, ["prompt"]))},
        lengths=[Lengths.of("prompt", list(map(len, ids)), limit)],
    )
    return CheckedSet(dataset, report)


def check_text_set(rows: LoadedRows, tokenizer: PreTrainedTokenizerBase, *, role: str, limit: Limit) -> CheckedSet:
    """Demonstrations or texts, with their report. Raises InputError for missing columns and bad values."""
    names = find_columns(rows.dataset.column_names, source=rows.source)
    good = rows.without(text_problems(read_columns(rows.dataset, names)))
    sample = _sample(good.dataset, names)
    texts = tokenize_texts(sample, tokenizer, source=rows.source)
    kind = "messages" if is_conversational(sample) else "text"
    report = _report(
        rows,
        good,
        good.dataset,
        role=role,
        layout=kind if len(names) == 1 else f"{' and '.join(names)}, {kind}",
        columns=list(names),
        left_out={},
        noticed={"that are there already": len(good.dataset) - len(fingerprints(good.dataset, names))},
        lengths=[Lengths.of("text", [len(text.ids) for text in texts], limit)],
    )
    return CheckedSet(good.dataset, report)


def fingerprints(dataset: Dataset, columns: Sequence[str]) -> set[bytes]:
    """One digest for each different row of these columns."""
    values = read_columns(dataset, columns)
    return {fingerprint(*row) for row in zip(*values.values(), strict=True)}


def _report(rows: LoadedRows, good: LoadedRows, dataset: Dataset, **found: Any) -> SetReport:
    other = [name for name in rows.dataset.column_names if name not in found["columns"]]
    broken = len(rows.bad_rows.found) - (len(rows.dataset) - len(good.dataset))  # lines that are no rows
    return SetReport(
        source=rows.source,
        other_columns=other,
        rows_read=len(rows.dataset) + broken,
        rows=len(dataset),
        bad_rows=[BadRow(row.place, printable(row.problem, 300)) for row in rows.bad_rows.found],
        examples=_examples(dataset, [name for name in found["columns"] if name in dataset.column_names]),
        **found,
    )


def _sample(dataset: Dataset, columns: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of at most `MEASURED_ROWS` rows, spread evenly."""
    step = max(len(dataset) / MEASURED_ROWS, 1)
    rows = [int(number * step) for number in range(min(len(dataset), MEASURED_ROWS))]
    return read_columns(dataset.select(rows), columns)


def _pair_lengths(
    prompts: Sequence[Any], answers: Sequence[Any], tokenizer: PreTrainedTokenizerBase, *, source: str
) -> list[int]:
    """Tokens of prompt and answer together, as trl's RewardTrainer makes them: plain text gets an end token."""
    whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    if isinstance(whole[0], list):
        return list(map(len, chat_ids(whole, tokenizer, add_generation_prompt=False, source=source)))
    end = str(tokenizer.eos_token or "")
    return list(map(len, text_ids([text if text.endswith(end) else text + end for text in whole], tokenizer)))


def _examples(dataset: Dataset, columns: Sequence[str]) -> list[dict[str, str]]:
    rows = dataset.with_format(None).select(range(min(_EXAMPLES, len(dataset))))
    return [{name: printable(_as_text(row[name]), _EXAMPLE_CHARACTERS) for name in columns} for row in rows]  # pyright: ignore


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(f"{message.get('role')}: {message.get('content')}" for message in value)
    return str(value)


def printable(text: str, limit: int) -> str:
    """One line for a terminal: no control characters, no access tokens, at most `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in hide_tokens(text[: 4 * limit])).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
