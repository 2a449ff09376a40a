"""Parts of plots as inline SVG, which takes its colors from the page and so fits its light and dark theme."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 380, 290
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 12, 44
SVG_STYLE = """
:root { --model: #0072b2; --other: #8a94a3; --wrong: #c2410c; --soft: #eef2f6; }
@media (prefers-color-scheme: dark) {
  :root { --model: #62b5e5; --other: #8794a6; --wrong: #f5935a; --soft: #232b35; }
}
svg { display: block; width: 100%; max-width: 560px; height: auto; margin: 0 auto; }
svg text { font: 13px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums; paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
svg .tick, svg .axis { fill: var(--muted); font-size: 12px; }
svg .value { font-weight: 650; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .track { stroke: var(--soft); stroke-width: 8; stroke-linecap: round; }
svg .chance, svg .ideal, svg .zero { stroke: var(--muted); stroke-width: 1.4; stroke-dasharray: 4 4; }
svg .zero { stroke-dasharray: none; stroke-width: 1; }
svg .interval { stroke-width: 4; stroke-linecap: round; opacity: .5; }
svg .mark { stroke: var(--ink); stroke-width: 2.5; }
svg .fit { stroke: var(--ink); stroke-width: 2.2; }
svg line.model { stroke: var(--model); } svg line.other { stroke: var(--other); } svg line.wrong { stroke: var(--wrong); }
svg circle.model { fill: var(--model); } svg circle.other { fill: var(--other); } svg circle.wrong { fill: var(--wrong); }
svg text.value.wrong { fill: var(--wrong); }
svg .point { opacity: .6; }
svg .curve { fill: none; stroke-width: 2.4; } svg path.model { stroke: var(--model); }
svg .steps { fill-opacity: .22; stroke-width: 1.8; }
svg .steps.chosen { fill: var(--model); stroke: var(--model); } svg .steps.rejected { fill: var(--wrong); stroke: var(--wrong); stroke-dasharray: 5 3; }
"""


@dataclass(frozen=True, slots=True)
class Axes:
    """Linear axes of a plot: what is at its ends."""

    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        """Return the place of a number across."""
        low, high = self.across
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / ((high - low) or 1.0)

    def y(self, value: float) -> float:
        """Return the place of a number up."""
        low, high = self.up
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / ((high - low) or 1.0)

    def frame(
        self, across: Sequence[float], up: Sequence[float], label_x: str, label_y: str, percent: bool = False
    ) -> list[str]:
        """Return grid, ticks and the names of both axes."""
        parts = [line(self.x(tick), TOP, self.x(tick), HEIGHT - BOTTOM, "grid") for tick in across]
        parts += [line(LEFT, self.y(tick), WIDTH - RIGHT, self.y(tick), "grid") for tick in up]
        names_x, names_y = _tick_names(across, percent), _tick_names(up, percent)
        parts += [
            text(self.x(tick), HEIGHT - BOTTOM + 18, name, "tick", "middle")
            for tick, name in zip(across, names_x, strict=True)
        ]
        parts += [text(LEFT - 7, self.y(tick) + 4, name, "tick", "end") for tick, name in zip(up, names_y, strict=True)]
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(text(middle, HEIGHT - 8, label_x, "axis", "middle"))
        return [*parts, text(LEFT + 6, TOP + 12, label_y, "axis")]


def _tick_names(ticks: Sequence[float], percent: bool) -> list[str]:
    if percent:
        whole = all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in ticks)
        return [f"{tick:.0%}" if whole else f"{tick:.1%}" for tick in ticks]
    return [f"{tick:.3g}".replace("-", "\N{MINUS SIGN}") for tick in ticks]


def line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    """Return a line of the class `name`."""
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, content: str, name: str, anchor: str = "start") -> str:
    """Return text of the class `name`; it is escaped."""
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(content)}</text>'


def picture(parts: Sequence[str], alt: str, height: float = HEIGHT) -> str:
    """Return a picture of these parts; `alt` says what it shows, for readers who do not see it."""
    alt = html.escape(alt, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{alt}">{"".join(parts)}</svg>'
