"""Write docs/metrics.md and docs/flags.md from the definitions in the code: `python docs/make_tables.py`."""

import inspect
from dataclasses import fields
from pathlib import Path

from hf_rlhf.cli.help import own_groups
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.metrics import METRICS
from hf_rlhf.recipes.arguments import DataArguments, ModelArguments, PPOArguments
from hf_rlhf.recipes.reward import RESULTS

DOCS = Path(__file__).parent


def metrics_page() -> str:
    """Return the table of metrics as Markdown."""
    rows = "\n".join(f"| `{name}` | {_cell(meaning)} |" for name, meaning in METRICS.items())
    of_reward_models = "\n".join(f"| `{name}` | {_cell(meaning)} |" for name, meaning in RESULTS.items())
    return (
        "# Metrics of a PPO run\n\n"
        "Written to `metrics.jsonl` and to every tracker, once an iteration. A number that could not be computed is `null`\n"
        "there, never 0. Rows of `samples.jsonl` have the same `iteration`. Besides, Trainer logs `step` (optimizer updates),\n"
        "`epoch` and `learning_rate`, and the last row holds the times of the whole run. Numbers of an evaluation have"
        " the prefix `eval_`. What reward functions log by `log_metric` is\n"
        "added under the names they give.\n\n"
        f"| key | meaning |\n|---|---|\n{rows}\n\n"
        "## Of a reward model\n\n"
        "Printed at the end of `hf-rlhf reward`, and in `evaluation.json`.\n\n"
        f"| key | meaning |\n|---|---|\n{of_reward_models}\n"
    )


def flags_page() -> str:
    """Return the tables of `PPOConfig`'s own flags as Markdown, by the headings of its source."""
    tables = []
    for title, group in own_groups(PPOConfig):
        tables.append(f"\n## {title}\n\n| flag | default | meaning |\n|---|---|---|")
        tables += [f"| `{field.name}` | `{field.default}` | {_cell(field.metadata['help'])} |" for field in group]
    for title, classes in (("data and rewards", (PPOArguments, DataArguments)), ("models", (ModelArguments,))):
        tables.append(f"\n## On the command line besides: {title}\n\n| flag | default | meaning |\n|---|---|---|")
        tables += [
            f"| `{field.name}` | `{field.default}` | {_cell(field.metadata['help'])} |"
            for field in fields(classes[0])
            if any(field.name in inspect.get_annotations(each) for each in classes)
        ]
    tables.append(
        "\nand the other flags of trl's `ModelConfig`: `lora_r`, `lora_alpha`, `use_dora`, `load_in_4bit`, ..."
    )
    return (
        "# Flags of PPO\n\n"
        "`PPOConfig` is a `transformers.TrainingArguments` with these flags besides, or with another default. They are keys\n"
        "of a YAML file (`--config`), options of the command line (`--kl_coef 0.1`) and arguments of `PPOConfig(...)`. How\n"
        "the sizes of an iteration belong together is on the page about the [batch algebra](batch_algebra.md).\n"
        + "\n".join(tables)
        + "\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    (DOCS / "metrics.md").write_text(metrics_page(), encoding="utf-8")
    (DOCS / "flags.md").write_text(flags_page(), encoding="utf-8")
