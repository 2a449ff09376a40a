"""The reward `code_tests`: whether the Python code of a completion passes the tests of a column."""

import re
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.models.fingerprints import identity
from hf_rlhf.rewards.sandbox import Limits, Outcome, require_sandbox, run_limited
from hf_rlhf.rewards.texts import as_list, column_of, completion_text
from hf_rlhf.rewards.values import Unkept

_FENCE = re.compile(r"```[ \t{.]*(\w*)[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = ("python", "python3", "py")


class CodeTests:
    """1.0 where the completion's Python code passes all tests, else 0.0; None for a row without tests.

    The code is what stands in the fenced code blocks of the completion, or the whole completion where it has none.
    Where some blocks are marked as Python, it is these alone, as the others may show output. Each test runs after it in
    a process of its own; see `hf_rlhf.rewards.sandbox`.

    Args:
        column: holds the tests as Python code, such as `assert add(1, 2) == 3`: one text or a list of texts.
        allow_execution: has to be true: the code that the policy wrote is executed on this machine.
        share: whether the reward is the share of the tests that passed.
        cpu_seconds, seconds, memory_mb: limits of each test.
        workers: tests that run at the same time.
    """

    name = "code_tests"
    deterministic = True

    def __init__(
        self,
        *,
        column: str = "tests",
        allow_execution: bool = False,
        share: bool = False,
        cpu_seconds: int = 5,
        seconds: float = 20.0,
        memory_mb: int = 1024,
        workers: int = 4,
    ):
        if not allow_execution:
            raise InputError(
                "it executes code that a model wrote, with the rights of this user. Add allow_execution=true if that is"
                " wanted, and run it in a container"
            )
        require_sandbox()
        if workers < 1:
            raise InputError(f"workers={workers} must be at least 1")
        self.column = column
        self.required_columns = (column,)
        self.limits = Limits(cpu_seconds=cpu_seconds, seconds=seconds, memory_mb=memory_mb)
        if run_limited("", "", self.limits) == "failed":
            raise InputError(
                f"even code that does nothing fails within memory_mb={memory_mb} and cpu_seconds={cpu_seconds}, so"
                " every reward would be 0. Raise memory_mb"
            )
        self.share = share
        self.workers = workers
        self.cache_key = identity(self.name, column, share, cpu_seconds, memory_mb)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return the reward of each completion."""
        given = column_of(columns, self.column, self.name)
        codes = [find_code(completion_text(completion)) for completion in completions]
        jobs = [
            (row, str(test))
            for row, tests in enumerate(given)
            for test in as_list(tests, self.name)
            if test is not None
        ]
        with ThreadPoolExecutor(self.workers) as pool:
            outcomes: list[Outcome] = list(pool.map(lambda job: run_limited(codes[job[0]], job[1], self.limits), jobs))
        by_row: dict[int, list[Outcome]] = {}
        for (row, _), outcome in zip(jobs, outcomes, strict=True):
            by_row.setdefault(row, []).append(outcome)
        return [self._reward(by_row.get(row, [])) for row in range(len(completions))]

    def _reward(self, outcomes: Sequence[Outcome]) -> float | None:
        if not outcomes:
            return None
        passed = outcomes.count("passed")
        reward = passed / len(outcomes) if self.share else float(passed == len(outcomes))
        return Unkept(reward) if "late" in outcomes else reward


def find_code(text: str) -> str:
    """Return the fenced code blocks of a text, one below the other, or the whole text where it has none.

    They are those marked as Python where there are such, else those without a mark, else all.
    """
    blocks = [(mark.lower(), textwrap.dedent(code)) for mark, code in _FENCE.findall(text)]
    for marks in (_PYTHON, ("",)):
        if marked := [code for mark, code in blocks if mark in marks]:
            return "\n".join(marked)
    return "\n".join(code for _, code in blocks) if blocks else text
