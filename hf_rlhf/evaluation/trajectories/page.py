"""Trajectories as one page: the color behind a token is a number, and all numbers of a token are a tap away."""

import json
from collections.abc import Mapping
from typing import Any

from hf_rlhf.evaluation.page import render_page
from hf_rlhf.evaluation.trajectories.characters import AS_THEY_ARE, PART, in_one_line, visible
from hf_rlhf.evaluation.trajectories.facts import facts_of
from hf_rlhf.evaluation.trajectories.page_template import SCRIPT, STYLE, TEMPLATE
from hf_rlhf.evaluation.trajectories.quantities import QUANTITIES, Quantity, Scale
from hf_rlhf.evaluation.trajectories.reading import Trajectories, in_words

_OTHERS = {"reference_logprobs": "Reference log-prob."}  # besides the quantities


def trajectory_page(found: Trajectories, quantity: Quantity) -> str:
    """Return completions as HTML, colored by `quantity` until the reader chooses another one. It loads nothing.

    Texts are escaped, and characters that hide are shown by their number.
    """
    scales = {name: Scale.of(each, found.rows) for name, each in QUANTITIES.items()}
    run = in_one_line(found.run.resolve().name, 80)
    return render_page(
        TEMPLATE,
        title=f"Trajectories of {run}",
        style=STYLE,
        script=SCRIPT,
        headline=_headline(found),
        quantities=QUANTITIES.values(),
        chosen=quantity,
        scale=scales[quantity.name],
        rows=[_row(row, quantity, scales[quantity.name]) for row in found.rows],
        others=f"The run wrote {in_words(found.written)}." if len(found.written) > 1 else "",
        numbers=_numbers(found, scales),
    )


def _headline(found: Trajectories) -> str:
    count = len(found.rows)
    rewards = [row["reward"] for row in found.rows if row["reward"] is not None]
    mean = f", mean reward {sum(rewards) / len(rewards):.3g}" if rewards else ", none with a reward"
    return f"Iteration {found.iteration}: {count} completion{'s' if count != 1 else ''}{mean}"


def _row(row: Mapping[str, Any], quantity: Quantity, scale: Scale) -> dict[str, Any]:
    tokens = [
        {"text": visible(text) or PART, "part": not text, "strength": scale.strength(number)}
        for text, number in zip(row["tokens"], row[quantity.column], strict=True)
    ]
    turns = [
        {"role": turn["role"], "tokens": tokens[turn["start"] : turn["end"]], "several": len(row["turns"]) > 1}
        for turn in row["turns"]
    ]
    return {
        "number": row["row"],
        "facts": facts_of(dict(row)),
        "prompt": visible(row["prompt"], AS_THEY_ARE),
        "turns": turns,
    }


def _numbers(found: Trajectories, scales: Mapping[str, Scale]) -> str:
    """Return what the page's script reads, as JSON that stands in HTML. It holds no text of a model."""
    columns = {each.column: each.title for each in QUANTITIES.values()} | _OTHERS
    content = {
        "names": list(columns.values()),
        "quantities": {
            name: {
                "place": list(columns).index(each.column),
                "low": scales[name].low,
                "high": scales[name].high,
                "diverging": each.diverging,
                "meaning": each.meaning,
            }
            for name, each in QUANTITIES.items()
        },
        "rows": [
            {
                "ids": row["completion_ids"],
                "numbers": [[_short(number) for number in row[column]] for column in columns],
            }
            for row in found.rows
        ],
    }
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _short(number: float | None) -> float | None:
    return None if number is None or number - number != 0 else float(f"{number:.4g}")
