"""The files a run leaves behind: metrics.jsonl, samples.jsonl, config.yaml and versions.json."""

import functools
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from hf_rlhf.compat.names import DEPRECATED, RENAMED_METRICS
from hf_rlhf.credentials import without_secrets
from hf_rlhf.errors import InputError
from hf_rlhf.models.machine import device_name
from hf_rlhf.types import Reward, Score, Trajectory

METRICS_FILE, SAMPLES_FILE, TRAJECTORIES = "metrics.jsonl", "samples.jsonl", "trajectories"
CONFIG_FILE, VERSIONS_FILE = "config.yaml", "versions.json"
WALL_CLOCK = ("time/", "step_time", "eps", "runtime", "per_second")
"""A column of metrics.jsonl whose name has one of these parts measures this machine's time; no two runs agree on it."""

_OF_THE_START = ("resume", "resume_from_checkpoint", "output_dir", "logging_dir", "run_name", "disable_tqdm")
_OF_A_MODEL = (
    "*.safetensors", "adapter_config.json", "config.json", "tokenizer*.json", "README.md", "curves.png",
    "evaluation.json", "report_card.*", "merged", TRAJECTORIES,
)  # fmt: skip


def held_by_another_run(folder: Path) -> str:
    """Return the message for a folder that a new run would write into."""
    resume = ", or resume it (--resume auto)" if any(folder.glob("checkpoint-*")) else ""
    return (
        f"output_dir={str(folder)!r} is invalid: it holds a run already. Choose another folder, or remove this one"
        f"{resume}."
    )


def in_the_way(folder: Path) -> str | None:
    """Return why a new run cannot be written to `folder`; None if it can.

    The reasons are another run, or files that the run would write over. Other files, such as a log of the launcher,
    stay as they are and do no harm.
    """
    if (folder / METRICS_FILE).exists():
        return held_by_another_run(folder)
    found = [path.name for name in _OF_A_MODEL for path in folder.glob(name)]
    if (folder / CONFIG_FILE).exists() and not (folder / VERSIONS_FILE).exists():  # a run leaves both, or neither
        found.append(CONFIG_FILE)
    if not found:
        return None
    return (
        f"output_dir={str(folder)!r} holds {', '.join(sorted(found)[:3])}, which this run would overwrite."
        " Choose another folder, or move the files away."
    )


def append_json_line(file: Path, row: Mapping[str, Any]) -> None:
    """Append one row. A NaN or infinity becomes null, which JSON has and 0 would hide; what JSON lacks becomes text.

    Half a character, which UTF-8 lacks, becomes its JSON escape.
    """
    append_json_lines(file, [row])


def append_json_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append several rows, each in the form of `append_json_line`."""
    _write_json_lines(file, rows, "a")


def write_json_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` in the form of `append_json_line`, in place of what `file` held."""
    _write_json_lines(file, rows, "w")


def _write_json_lines(file: Path, rows: Iterable[Mapping[str, Any]], mode: str) -> None:
    with file.open(mode, encoding="utf-8", errors="backslashreplace") as lines:
        lines.writelines(json.dumps(_finite_or_null(row), ensure_ascii=False, default=str) + "\n" for row in rows)


def write_whole(file: Path, content: str | bytes) -> Path:
    """Write a file that a reader finds whole or not at all; return its path. Text is written as UTF-8."""
    scratch = file.with_name(f".{file.name}.tmp")
    with scratch.open("wb") as stream:
        stream.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(scratch, file)
    return file


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Read what `append_json_line` wrote; a last line torn by a kill is skipped."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines if line.endswith("\n")]


def read_json_lines_from(file: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """Read the whole lines behind the first `start` bytes of JSON Lines; return them, and the bytes read in all."""
    with file.open("rb") as stream:
        stream.seek(start)
        whole, newline, _ = stream.read().rpartition(b"\n")
    return [json.loads(line) for line in whole.split(b"\n") if line], start + len(whole) + len(newline)


def keep_whole_parts(file: Path, size: int, total: int) -> int:
    """Cut JSON Lines that were written in parts of `size` rows, `total` in all, to the parts that are whole.

    Returns the number of rows kept; 0 where there is no file.
    """
    if not file.is_file():
        return 0
    lines = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    kept = total if len(lines) >= total else len(lines) // size * size
    os.truncate(file, sum(map(len, lines[:kept])))
    return kept


def iteration_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of each PPO iteration of the run in `folder`, by the names that they have now."""
    rows = [row for row in read_json_lines(folder / METRICS_FILE) if "iteration" in row]
    return [{RENAMED_METRICS.get(name, name): value for name, value in row.items()} for row in rows]


def evaluation_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of each evaluation of the PPO run in `folder`."""
    return [row for row in read_json_lines(folder / METRICS_FILE) if "eval_reward" in row]


def log_sizes(folder: Path) -> dict[str, int]:
    """Flush the run's logs to the disk and return the bytes of each."""
    sizes = {}
    for name in (METRICS_FILE, SAMPLES_FILE):
        file = folder / name
        sizes[name] = 0
        if file.is_file():
            with file.open("rb+") as lines:
                os.fsync(lines.fileno())
                sizes[name] = lines.seek(0, os.SEEK_END)
    return sizes


def cut_logs(folder: Path, sizes: Mapping[str, int]) -> None:
    """Take back the rows that a run resumed where the logs had `sizes` will write again, and any torn last line."""
    for name, size in sizes.items():
        file = folder / name
        if file.is_file():
            kept = file.read_bytes()[:size]
            os.truncate(file, kept.rfind(b"\n") + 1)


def sample_row(trajectory: Trajectory, reward: Reward, score: Score | None, split: str) -> dict[str, Any]:
    """Return a completion as a row of samples.jsonl. Only training has a score."""
    return {
        "split": split,
        "prompt": trajectory.prompt,
        "completion": trajectory.text,
        "stopped": trajectory.completion.stopped,
        "reward": reward.total,
        "rewards": reward.parts,
        **({} if score is None else {"score": score.total}),
        **({"extra": reward.extra} if reward.extra else {}),
        **({"messages": trajectory.messages} if trajectory.messages is not None else {}),
    }


def write_settings(folder: Path, *configs: Any) -> None:
    """Write config.yaml with every flag of the given dataclasses, secrets omitted, and versions.json.

    That names the device too, where one of them does.
    """
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(_settings_of(*configs), sort_keys=False, allow_unicode=True)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    devices = [("device", device_name(config.device)) for config in configs if hasattr(config, "device")]
    (folder / VERSIONS_FILE).write_text(json.dumps(versions() | dict(devices), indent=2) + "\n", encoding="utf-8")


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the flags of config.yaml in `folder` by the names that they have now; none where there is no file.

    Raises `InputError` for a file that holds no flags.
    """
    import yaml

    file = folder / CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read ({error}). Mend it, or move it away.") from error
    if not isinstance(written, dict):
        raise InputError(f"{file} is not what a run writes: it holds no flags. Mend it, or move it away.")
    named = ((DEPRECATED.get(name, name), value) for name, value in written.items())
    return {name: value for name, value in named if name is not None}


def changed_settings(folder: Path, *configs: Any) -> dict[str, tuple[Any, Any]]:
    """Return the flags of the given dataclasses that differ from config.yaml in `folder`, with both values.

    Nothing where there is no such file. How a run is started and where it writes makes no difference.
    """
    written, now = read_settings(folder), _settings_of(*configs)
    common = [name for name in now if name in written and name not in _OF_THE_START]
    return {name: (written[name], now[name]) for name in common if written[name] != now[name]}


def _settings_of(*configs: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for config in configs:
        values = config.to_dict() if hasattr(config, "to_dict") else asdict(config)
        settings.update(without_secrets(values))
    return json.loads(json.dumps(settings, default=str))


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    import torch

    packages = ("hf-rlhf", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # which names the build (+cpu, +cu130), as its package does not always
        **{name: metadata.version(name) for name in packages},
    }


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_null(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
