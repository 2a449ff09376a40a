"""Trajectories in a terminal: the color behind a token is a number, or each token is a line with its numbers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_rlhf.evaluation.trajectories.characters import PART, in_one_line, visible
from hf_rlhf.evaluation.trajectories.facts import facts_of
from hf_rlhf.evaluation.trajectories.quantities import QUANTITIES, Quantity, Scale
from hf_rlhf.evaluation.trajectories.reading import Trajectories
from hf_rlhf.ppo.trajectories import ENVIRONMENT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_ABOVE, _BELOW = (86, 180, 233), (230, 159, 0)  # sky blue and orange of Okabe and Ito, both legible under black
_MOST_TOKENS = 2000
_LONGEST_PROMPT, _LONGEST_TOKEN = 400, 200
_IN_LINES = ("reward", "value", "advantage", "kl")


def print_trajectories(console: "Console", found: Trajectories, quantity: Quantity, *, numbers: bool) -> None:
    """Print completions, with the color of `quantity` behind each token.

    With `numbers`, and where the output takes no colors, each token is a line with its numbers.
    """
    colored = console.is_terminal and not console.no_color
    scale = Scale.of(quantity, found.rows)
    if colored:
        console.print(_legend(quantity, scale), soft_wrap=True)
    for row in found.rows:
        console.print()
        console.out(f"iteration {found.iteration}, row {row['row']}: {', '.join(facts_of(row))}", highlight=False)
        console.out(f"prompt: {in_one_line(row['prompt'], _LONGEST_PROMPT)}", highlight=False)
        if colored:
            console.print(_completion(row, quantity, scale), soft_wrap=True)
        if numbers or not colored:
            for line in _lines(row):
                console.out(line, highlight=False)
        if len(row["tokens"]) > _MOST_TOKENS:
            console.out(f"… {len(row['tokens']) - _MOST_TOKENS} more tokens, which the page of --html shows")


def _legend(quantity: Quantity, scale: Scale) -> "Text":
    from rich.text import Text

    legend = Text(f"{quantity.title}: {scale.low:.3g} ")
    places = range(-6, 7) if scale.diverging else range(13)
    for place in places:
        legend.append("  ", _style(place / 6 if scale.diverging else place / 12))
    return legend.append(f" {scale.high:.3g}. {quantity.meaning}")


def _completion(row: dict[str, Any], quantity: Quantity, scale: Scale) -> "Text":
    from rich.text import Text

    shown = Text()
    for turn in row["turns"]:
        if len(row["turns"]) > 1:
            shown.append(f"{'' if not shown else chr(10)}[{turn['role']}] ", "bold")
        for t in range(turn["start"], min(turn["end"], _MOST_TOKENS)):
            strength = scale.strength(row[quantity.column][t])
            style = "dim" if strength is None else _style(strength)
            shown.append(visible(row["tokens"][t][:_LONGEST_TOKEN]) or PART, style)
    return shown


def _style(strength: float) -> str:
    """Return black on the color of a number, or no style where that is 0."""
    if abs(strength) < 0.04:
        return ""
    color = _ABOVE if strength > 0 else _BELOW
    red, green, blue = (round(255 + (part - 255) * (0.25 + 0.75 * abs(strength))) for part in color)
    return f"black on rgb({red},{green},{blue})"


def _lines(row: dict[str, Any]) -> Iterator[str]:
    quantities = [QUANTITIES[name] for name in _IN_LINES]
    yield f"{'token':>6} " + "".join(f"{each.name:>11}" for each in quantities) + "  text"
    roles = {t: turn["role"] for turn in row["turns"] for t in range(turn["start"], turn["end"])}
    for t, text in enumerate(row["tokens"][:_MOST_TOKENS]):
        cells = "".join(f"{_number(row[each.column][t]):>11}" for each in quantities)
        whose = f"  ({ENVIRONMENT})" if roles.get(t) == ENVIRONMENT else ""
        yield f"{t:>6} {cells}  {_quoted(text)}{whose}"


def _quoted(text: str) -> str:
    """Return the text of a token so that spaces at its ends are seen."""
    return f'"{in_one_line(text, _LONGEST_TOKEN)}"' if text else PART


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
