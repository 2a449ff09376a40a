"""Write the pages of docs/reference/ that are made of definitions in the code: `python docs/make_tables.py`."""

import ast
import importlib
import inspect
import pkgutil
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import hf_rlhf
from hf_rlhf.cli.help import own_groups
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.metrics import METRICS
from hf_rlhf.ppo.trajectories import COLUMNS
from hf_rlhf.recipes.arguments import DataArguments, ModelArguments, PPOArguments
from hf_rlhf.recipes.reward_results import RESULTS

DOCS = Path(__file__).parent


def metrics_page() -> str:
    """Return the table of metrics as Markdown."""
    rows = "\n".join(f"| `{name}` | {_cell(meaning)} |" for name, meaning in METRICS.items())
    of_reward_models = "\n".join(f"| `{name}` | {_cell(meaning)} |" for name, meaning in RESULTS.items())
    return (
        "# Metrics of a PPO run\n\n"
        "After this page you can read every number that a run logs. A run writes them to `metrics.jsonl` and to every\n"
        "tracker, once an iteration.\n\n"
        "```bash\ntail -n 2 runs/ppo/metrics.jsonl | head -n 1     # the last iteration\n```\n\n"
        "- A number that could not be computed is `null`, never 0.\n"
        "- Numbers of an evaluation have the prefix `eval_`.\n"
        "- Rows of `samples.jsonl` have the same `iteration`.\n"
        "- Trainer adds `step` (optimizer updates), `epoch` and `learning_rate`. The last row has the times of the"
        " whole run.\n"
        "- Reward functions add their own numbers by `log_metric`, under the names that they give.\n\n"
        f"| key | meaning |\n|---|---|\n{rows}\n\n"
        "## Of a reward model\n\n"
        "`hf-rlhf reward` prints them at its end and writes them to `evaluation.json`.\n\n"
        f"| key | meaning |\n|---|---|\n{of_reward_models}\n"
    )


def trajectories_page() -> str:
    """Return the table of the columns of trajectories as Markdown."""
    rows = "\n".join(f"| `{name}` | {_cell(meaning)} |" for name, meaning in COLUMNS.items())
    return (
        "# Columns of trajectories\n\n"
        "After this page you can read the files of `log_trajectories`: `trajectories/iteration-<n>.parquet` in the"
        " folder of a run.\n"
        "[See a run token by token](../how-to/trajectories.md) says how to write, show and push them.\n\n"
        "```bash\nhf-rlhf show runs/ppo     # the last iteration, in the terminal\n```\n\n"
        "A row is a completion, or an episode of several turns. From `per_token_rewards` on, a column has a number in"
        " float32 for each\n"
        "token behind the prompt, and null where `completion_mask` is false.\n\n"
        f"| column | meaning |\n|---|---|\n{rows}\n"
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
        "\nThe other flags of trl's `ModelConfig` work too: `lora_r`, `lora_alpha`, `use_dora`, `load_in_4bit`, ..."
    )
    return (
        "# Flags of PPO\n\n"
        "After this page you know every flag of a PPO run that is not a flag of `transformers.TrainingArguments`, or"
        " that has\n"
        "another default there. Each is an option of the command line, a key of a YAML file, and an argument of"
        " `PPOConfig`:\n\n"
        "```bash\nhf-rlhf ppo --config ppo.yaml --kl_coef 0.1\n```\n\n"
        "[The sizes of an iteration](../batch_algebra.md) explains how the sizes belong together.\n"
        + "\n".join(tables)
        + "\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def api_page() -> str:
    """Return the tables of public names, package by package, as Markdown."""
    names = [f"hf_rlhf.{found.name}" for found in pkgutil.iter_modules(hf_rlhf.__path__) if found.ispkg]
    parts = []
    for package in (hf_rlhf, *map(importlib.import_module, names)):
        if public := getattr(package, "__all__", ()):
            rows = "\n".join(_api_row(package, name) for name in sorted(public, key=str.lower))
            summary = inspect.getdoc(package).splitlines()[0]
            parts.append(
                f"\n## `{package.__name__}`\n\n{summary}\n\n| name | what it is | defined in |\n|---|---|---|\n{rows}\n"
            )
    return (
        "# Python API\n\n"
        "After this page you know every public name, and the file that has its full docstring with shapes, errors and\n"
        "sources. The names of `hf_rlhf` are those that most programs need. The packages below it have the parts.\n\n"
        "```python\nfrom hf_rlhf import PPOConfig, PPOTrainer\nfrom hf_rlhf.ops import gae\n\nhelp(gae)\n```\n"
        + "".join(parts)
    )


def _api_row(package: ModuleType, name: str) -> str:
    """Return a row of the table: a public name, the first sentence of its docstring, and a link to its file."""
    value = getattr(package, name)
    home = importlib.import_module(getattr(package, "_HOMES", {}).get(name) or _module_of(package, name, value))
    file = Path(home.__file__).relative_to(DOCS.parent / "hf_rlhf").as_posix()
    text = inspect.getdoc(value) if callable(value) else _docstring_below(home, name)
    paragraph = " ".join((text or "").split("\n\n")[0].split())
    return f"| `{name}` | {_cell(paragraph)} | [`{file}`](../../hf_rlhf/{file}) |"


def _module_of(package: ModuleType, name: str, value: Any) -> str:
    """Return the module that defines a name; of a constant, the one that the package imports it from."""
    if callable(value):
        return value.__module__
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(package))) if isinstance(node, ast.ImportFrom)]
    return next(node.module for node in imports if name in {alias.name for alias in node.names})


def _docstring_below(module: ModuleType, name: str) -> str:
    """Return the string below the assignment of a constant; without one, the assignment."""
    body = ast.parse(inspect.getsource(module)).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                return str(following.value.value)
            return f"A constant: `{ast.unparse(node.value)}`."
    raise LookupError(f"{module.__name__} assigns no {name}")


def pages() -> dict[str, str]:
    """Return the text of every generated page, by its path below docs/."""
    return {
        "reference/metrics.md": metrics_page(),
        "reference/flags.md": flags_page(),
        "reference/trajectories.md": trajectories_page(),
        "reference/api.md": api_page(),
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
