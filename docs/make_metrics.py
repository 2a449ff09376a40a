"""Write docs/metrics.md from the definitions in hf_rlhf.ppo.metrics: `python docs/make_metrics.py`."""

from pathlib import Path

from hf_rlhf.ppo.metrics import METRICS


def page() -> str:
    """The table of metrics as Markdown."""
    rows = "\n".join(f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |" for name, meaning in METRICS.items())
    return (
        "# Metrics of a PPO run\n\n"
        "Written to `metrics.jsonl` and to every tracker, once an iteration. A number that could not be computed is `null`\n"
        "there, never 0. Numbers of an evaluation have the prefix `eval_`.\n\n"
        f"| key | meaning |\n|---|---|\n{rows}\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("metrics.md").write_text(page(), encoding="utf-8")
