"""The data report, printed before a run starts: rows, how many were skipped and why, lengths, examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.credentials import printable
from hf_rlhf.data.dialogues import Pair
from hf_rlhf.data.language_modeling import (
    find_columns,
    learning_problems,
    template_problems,
    text_problems,
    tokenize_texts,
)
from hf_rlhf.data.layouts import IMPLICIT_TEXT, TEXT, layout_of
from hf_rlhf.data.preferences import (
    PREFERENCE_COLUMNS,
    PreferenceReport,
    fingerprint,
    prepare_with_rows,
    read_preferences,
    template_problem,
    value_problems,
)
from hf_rlhf.data.prompt_checks import Overlong, prompt_columns, prompt_problems, require_prompts
from hf_rlhf.data.prompts import require_fitting, with_prompts
from hf_rlhf.data.rows import BadRow, LoadedRows, list_by_problem, read_columns
from hf_rlhf.data.tokens import (
    NOTHING,
    ROW_OPTIONS,
    begin_already,
    options_by_row,
    prompt_refusal,
    require_chat_template,
    scoring_refusal,
    token_ids,
    with_row_options,
)
from hf_rlhf.data.training_rows import pair_ids
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

REPORT_FILE = "data_report.json"
MEASURED_ROWS = 2000
"""Pairs or texts whose tokens are counted; of a larger set, as many that are spread evenly over it."""

_EXAMPLES, _EXAMPLE_CHARACTERS = 2, 100
_BEGUN = "that begin with the BOS already; it is not added again"
_NO_TURN = "of plain text, which the policy continues without its chat template (messages would be answered)"


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
    row_options: list[str]  # those of `ROW_OPTIONS` that the chat template gets
    other_columns: list[str]
    rows_read: int
    rows: int
    bad_rows: list[BadRow]
    left_out: dict[str, int]
    noticed: dict[str, int]
    lengths: list[Lengths]
    examples: list[dict[str, str]] = field(default_factory=list)
    others_are: str = "not used"  # what becomes of the other columns

    def __str__(self) -> str:
        others = f"; {self.others_are}: {', '.join(self.other_columns)}" if self.other_columns else ""
        options = f"; for the chat template: {', '.join(self.row_options)}" if self.row_options else ""
        lines = [
            f"{self.role}: {self.source}, {self.rows} of {self.rows_read} rows [{self.layout}]",
            f"columns: {', '.join(self.columns)}{options}{others}",
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
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / REPORT_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


class CheckedSet(NamedTuple):
    """Return the rows to use, what was found, and where each of these rows stands."""

    dataset: Dataset
    report: SetReport
    place: Callable[[int], str]


def check_preferences(rows: LoadedRows, tokenizer: PreTrainedTokenizerBase, *, role: str, limit: Limit) -> CheckedSet:
    """A preference set in TRL's format with its report. Raises InputError as `prepare_preferences` does."""
    read = _rows_read(rows)
    columns = read_preferences(rows.dataset, source=rows.source)
    layout = layout_of(rows.dataset, source=rows.source)
    good = rows.without(value_problems(columns, layout.pairs))
    good = good.without(_refused_pairs(good, tokenizer))
    (dataset, found), kept = prepare_with_rows(good.dataset, source=rows.source)
    good = good.select(kept)
    pairs = _sample(dataset, with_row_options(_pair_columns(dataset), dataset.column_names))
    tokens = _pair_lengths(pairs, tokenizer, source=rows.source)
    begun = _begun(dataset, ["prompt"] if "prompt" in dataset.column_names else ["chosen", "rejected"], tokenizer)
    _require_one_that_fits(dataset, tokens, tokenizer, limit, source=rows.source)
    longer = sum(len(str(c)) > len(str(r)) for c, r in zip(pairs["chosen"], pairs["rejected"], strict=True))
    report = _report(
        rows,
        dataset,
        read,
        role=role,
        layout=layout.taken_for(found.layout),
        columns=list(columns),
        left_out=_left_out(found, kept, "that are there already"),
        noticed={
            "that contradict another (the same answers the other way round)": found.contradictions,
            f"of {len(pairs['chosen'])} whose chosen answer is the longer one": longer,
            _BEGUN: begun,
        },
        lengths=[Lengths.of(f"prompt and {name}", lengths, limit) for name, lengths in tokens.items()],
    )
    return CheckedSet(_for_trl(dataset, PREFERENCE_COLUMNS), report, good.place)


def check_prompt_set(
    rows: LoadedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    role: str,
    limit: Limit,
    overlong: Overlong = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    reward_tokenizers: Mapping[str, PreTrainedTokenizerBase] = NOTHING,
) -> CheckedSet:
    """The rows that PPO takes its prompts from, with their report. Raises InputError as `prepare_prompts` does.

    Prompts above the limit are still there where they are no error: `prepare_prompts` cuts them or leaves them out.
    A prompt that the chat template of a reward model refuses is a bad row too; `reward_tokenizers` has their names.
    """
    read, found = _rows_read(rows), rows.dataset.column_names
    layout = layout_of(rows.dataset, source=rows.source)
    require_prompts(layout, found, source=rows.source)
    names = prompt_columns(layout, found)
    good = rows.without(prompt_problems(read_columns(rows.dataset, names, source=rows.source), layout))
    dataset, kept, pairs = with_prompts(good.dataset, source=rows.source)
    good = replace(good.select(kept), dataset=dataset)
    prompts, ids = _tokenized(good, tokenizer, chat_template_kwargs, reward_tokenizers)
    if limit.tokens is not None:
        require_fitting(ids, limit.tokens, overlong, source=rows.source, place=prompts.place)
    dataset = prompts.dataset
    report = _report(
        rows,
        dataset,
        read,
        role=role,
        layout=layout.taken_for(layout.prompts_name),
        columns=names,
        shown=["prompt"],
        left_out=_left_out(pairs, kept, "with a prompt that is there already"),
        noticed={
            "with a prompt that is there already": len(dataset) - len(fingerprints(dataset, ["prompt", *ROW_OPTIONS])),
            _BEGUN: _begun(dataset, ["prompt"], tokenizer),
            _NO_TURN: len(dataset)
            if tokenizer.chat_template and isinstance(_sample(dataset.select([0]), ["prompt"])["prompt"][0], str)
            else 0,
        },
        lengths=[Lengths.of("prompt", list(map(len, ids)), limit)],
        others_are="passed to the rewards",
    )
    return CheckedSet(dataset, report, prompts.place)


def check_text_set(
    rows: LoadedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    role: str,
    limit: Limit,
    all_learnable: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> CheckedSet:
    """Demonstrations or texts, with their report. Raises InputError for missing columns and bad values.

    With `all_learnable`, rows without a token to learn within the limit are bad rows, as `prepare_texts` wants it.
    """
    read = _rows_read(rows)
    names = find_columns(rows.dataset, source=rows.source)
    layout = layout_of(rows.dataset, source=rows.source)
    good = rows.without(text_problems(read_columns(rows.dataset, names, source=rows.source)))
    settings: dict[str, Any] = {"source": rows.source, "chat_template_kwargs": chat_template_kwargs}
    good = good.without(template_problems(_with_options(good, names), tokenizer, **settings))
    if all_learnable and limit.tokens is not None:
        texts = tokenize_texts(_with_options(good, names), tokenizer, **settings)
        good = good.without({names[-1]: learning_problems(texts, limit.tokens)})
    sample = _sample(good.dataset, with_row_options(names, good.dataset.column_names))
    texts = tokenize_texts(sample, tokenizer, **settings)
    filled = sum(limit.tokens is not None and text.given >= limit.tokens for text in texts)
    report = _report(
        rows,
        good.dataset,
        read,
        role=role,
        layout=layout.taken_for(layout.texts_name),
        columns=list(names),
        left_out={},
        noticed={
            "that are there already": len(good.dataset) - len(fingerprints(good.dataset, [*names, *ROW_OPTIONS])),
            f"of {len(texts)} whose prompt alone fills {limit.name}": filled,
            _BEGUN: _begun(good.dataset, names[:1], tokenizer),
        },
        lengths=[Lengths.of("text", [len(text.ids) for text in texts], limit)],
    )
    return CheckedSet(_for_trl(good.dataset, names), report, good.place)


def fingerprints(dataset: Dataset, columns: Sequence[str]) -> set[bytes]:
    """One digest for each different row of these columns; one that the set lacks is None in all of its rows."""
    values = read_columns(dataset, [name for name in columns if name in dataset.column_names])
    nothing = [None] * len(dataset)
    return {fingerprint(*row) for row in zip(*(values.get(name, nothing) for name in columns), strict=True)}


def _rows_read(rows: LoadedRows) -> int:
    """Rows, and lines of the file that are none; to be asked before a row is found to be bad."""
    return len(rows.dataset) + len(rows.bad_rows.found)


def _for_trl(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The columns that a stage reads: trl would take a `messages` or `input_ids` beside them for another layout."""
    return dataset.select_columns([n for n in (*names, *ROW_OPTIONS) if n in dataset.column_names])


def _report(
    rows: LoadedRows,
    dataset: Dataset,
    rows_read: int,
    *,
    columns: Sequence[str],
    shown: Sequence[str] | None = None,
    **found: Any,
) -> SetReport:
    shown = shown or [name for name in columns if name in dataset.column_names]
    conversational = isinstance(_sample(dataset.select([0]), shown[-1:])[shown[-1]][0], list)
    options = [name for name in ROW_OPTIONS if name in rows.dataset.column_names and conversational]
    others = [name for name in rows.dataset.column_names if name not in (*columns, *options)]
    return SetReport(
        source=printable(rows.source),
        columns=list(columns),
        row_options=options,
        other_columns=[printable(name, 100) for name in others],
        rows_read=rows_read,
        rows=len(dataset),
        bad_rows=[BadRow(printable(row.place), row.problem) for row in rows.bad_rows.found],
        examples=_examples(dataset, shown),
        **found,
    )


def _left_out(pairs: PreferenceReport | None, kept: Sequence[int], repeats: str) -> dict[str, int]:
    """Why pairs are not `kept`: those that are neither malformed nor with equal answers are there already."""
    if pairs is None:
        return {}
    reasons = {f"malformed: {reason}": count for reason, count in pairs.malformed_reasons.items()}
    reasons["with chosen equal to rejected"] = pairs.identical
    return reasons | {repeats: pairs.rows_in - len(kept) - sum(reasons.values())}


def _with_options(rows: LoadedRows, names: Sequence[str]) -> dict[str, list[Any]]:
    """These columns, and those that trl's trainers hand to the chat template."""
    return read_columns(rows.dataset, with_row_options(names, rows.dataset.column_names), source=rows.source)


def _refused_pairs(rows: LoadedRows, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str | None]]:
    """Return the chat template's objection to each row of checked pairs, None for a row without one."""
    layout = layout_of(rows.dataset, source=rows.source).pairs
    if layout in (TEXT, IMPLICIT_TEXT):
        return {}
    require_chat_template(tokenizer, source=rows.source)
    columns = _with_options(rows, [name for name in PREFERENCE_COLUMNS if name in rows.dataset.column_names])
    by_row = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return {"chosen": [template_problem(row, layout, tokenizer) for row in by_row]}


def _tokenized(
    rows: LoadedRows,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any] | None,
    reward_tokenizers: Mapping[str, PreTrainedTokenizerBase],
) -> tuple[LoadedRows, list[list[int]]]:
    """The prompts that all chat templates take and that have tokens, and these."""
    columns = _with_options(rows, ["prompt"])
    if isinstance(columns["prompt"][0], list):
        require_chat_template(tokenizer, source=rows.source)
        for name, each in reward_tokenizers.items():
            require_chat_template(each, source=f"{rows.source} for the reward model {name!r}")

        def refusal(prompt: Any, options: Mapping[str, Any]) -> str | None:
            own = prompt_refusal(prompt, tokenizer, options=options, chat_template_kwargs=chat_template_kwargs)
            scoring = ((name, scoring_refusal(prompt, options, each)) for name, each in reward_tokenizers.items())
            return own or next((f"reward model {name!r}: {why}" for name, why in scoring if why), None)

        rows = rows.without({"prompt": list(map(refusal, columns["prompt"], options_by_row(columns)))})
        columns = _with_options(rows, ["prompt"])
    settings: dict[str, Any] = {"options": options_by_row(columns), "chat_template_kwargs": chat_template_kwargs}
    ids = token_ids(columns["prompt"], tokenizer, continued=True, source=rows.source, **settings)
    return rows.without({"prompt": [None if each else "no tokens" for each in ids]}), list(filter(None, ids))


def _require_one_that_fits(
    dataset: Dataset,
    measured: Mapping[str, Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    limit: Limit,
    *,
    source: str,
) -> None:
    """Raise InputError when every pair is above the limit; all are looked at only when the `measured` ones are."""
    most = limit.tokens
    if most is None or _any_fits(measured, most):
        return
    for start in range(0, len(dataset), MEASURED_ROWS):
        rows = dataset.select(range(start, min(start + MEASURED_ROWS, len(dataset))))
        pairs = read_columns(rows, with_row_options(_pair_columns(rows), rows.column_names))
        if _any_fits(_pair_lengths(pairs, tokenizer, source=source), most):
            return
    raise InputError(
        f"{source}: all {len(dataset)} pairs are longer than {limit.name}={most} tokens; raise {limit.name}"
    )


def _any_fits(lengths: Mapping[str, Sequence[int]], most: int) -> bool:
    return any(max(pair) <= most for pair in zip(*lengths.values(), strict=True))


def _pair_columns(dataset: Dataset) -> list[str]:
    return [name for name in Pair._fields if name in dataset.column_names]


def _sample(dataset: Dataset, columns: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of at most `MEASURED_ROWS` rows, spread evenly."""
    step = max(len(dataset) / MEASURED_ROWS, 1)
    rows = [int(number * step) for number in range(min(len(dataset), MEASURED_ROWS))]
    return read_columns(dataset.select(rows), columns)


def _pair_lengths(
    pairs: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase, *, source: str
) -> dict[str, list[int]]:
    return {name: list(map(len, ids)) for name, ids in pair_ids(pairs, tokenizer, source=source).items()}


def _begun(dataset: Dataset, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the rows that have a text that begins with the tokenizer's BOS in one of these columns."""
    values = read_columns(dataset, columns)
    if not isinstance(values[columns[0]][0], str):
        return 0
    return sum(map(any, zip(*(begin_already(texts, tokenizer) for texts in values.values()), strict=True)))


def _examples(dataset: Dataset, columns: Sequence[str]) -> list[dict[str, str]]:
    values = read_columns(dataset.select(range(min(_EXAMPLES, len(dataset)))), columns)
    rows = zip(*values.values(), strict=True)
    return [
        {name: printable(_as_text(value), _EXAMPLE_CHARACTERS) for name, value in zip(columns, row, strict=True)}
        for row in rows
    ]


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(f"{message.get('role')}: {message.get('content')}" for message in value)
    return str(value)
