import os
import sys
import time
from pathlib import Path

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.code_tests import find_code
from hf_rlhf.rewards.named import make_reward
from hf_rlhf.rewards.sandbox import Limits, run_limited
from hf_rlhf.rewards.values import Unkept

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="code is executed on Linux and macOS only")
ADD = "def add(a, b):\n    return a + b"


def outcome(code, test="assert True", **limits):
    return run_limited(code, test, Limits(**{"cpu_seconds": 1, "seconds": 10, "memory_mb": 256, **limits}))


def test_code_is_not_executed_without_the_flag():
    for text in ("code_tests", "code_tests:allow_execution=false"):
        with pytest.raises(InputError, match="allow_execution=true"):
            make_reward(text)


def test_limits_under_which_nothing_runs_are_refused():
    with pytest.raises(InputError, match="even code that does nothing fails within memory_mb=10"):
        make_reward("code_tests:allow_execution=true,memory_mb=10")


def test_the_reward_is_whether_all_tests_pass_or_their_share():
    fenced = f"Here it is:\n```python\n{ADD}\n```\nIt adds."
    wrong = "def add(a, b):\n    return 3"
    tests = [["assert add(1, 2) == 3", "assert add(2, 2) == 4"]] * 3 + [None]
    texts = [fenced, wrong, "no code", ADD]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    reward = make_reward("code_tests:allow_execution=true")
    assert reward(["?"] * 4, texts, tests=tests) == [1.0, 0.0, 0.0, None]
    shared = make_reward("code_tests:allow_execution=true,share=true")
    assert shared(["?"] * 4, messages, tests=tests) == [1.0, 0.5, 0.0, None]


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{ADD}\n```\nIt prints:\n```\nThe sum is 3\n```",
        f"```bash\npip install x\n```\n```\n{ADD}\n```",
        "1. Add:\n   ```py\n   def add(a, b):\n       return a + b\n   ```",
        f"```{{.python}}\n{ADD}",
        f"```Python title=a\nA = 1\n```\nand\n```python3\r\n{ADD}\n```",
    ],
)
def test_blocks_marked_as_python_are_the_code_and_output_beside_them_is_not(text):
    assert outcome(find_code(text), "assert add(1, 2) == 3") == "passed"


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("import numpy as np\ndef add(a, b): return int(np.sum([a, b]))", "assert add(1, 2) == 3"),
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    a: int",
         "import pickle; assert pickle.loads(pickle.dumps(A(1))) == A(1)"),
        ("import asyncio\nasync def one(): return 1", "assert asyncio.run(one()) == 1"),
        ("import tempfile", "with tempfile.NamedTemporaryFile() as file: file.write(b'a')"),
    ],
)  # fmt: skip
def test_right_code_passes_that_uses_what_the_limits_do_not_forbid(code, test):
    assert outcome(code, test, memory_mb=1024, cpu_seconds=5) == "passed"


@pytest.mark.parametrize(
    "code", ["exit(0)", "import os; os._exit(0)", "raise SystemExit", "1 +", "import sys; sys.exit()"]
)
def test_code_that_leaves_before_the_tests_did_not_pass(code):
    assert outcome(code) == "failed"


def test_an_endless_loop_is_ended_by_its_cpu_seconds_and_waiting_by_the_clock():
    begun = time.monotonic()
    assert outcome("while True: pass") == "failed"
    assert outcome("import time; time.sleep(1000)", seconds=0.5) == "late"
    assert time.monotonic() - begun < 9
    reward = make_reward("code_tests:allow_execution=true,seconds=0.3")
    [late] = reward(["?"], ["import time; time.sleep(1000)"], tests=["pass"])
    assert late == 0.0
    assert isinstance(late, Unkept)


def test_memory_and_the_size_of_files_and_output_are_limited():
    assert outcome("x = bytearray(2**30)") == "failed"
    assert outcome("x = bytearray(2**20)") == "passed"
    assert outcome("f = open('big', 'wb')\nfor _ in range(40): f.write(bytes(2**20)); f.flush()", file_mb=4) == "failed"
    assert outcome("for _ in range(2000): print('x' * 10000)") == "passed"  # to nowhere


def test_code_starts_no_processes_and_reaches_no_network_and_no_file_outside(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("here", encoding="utf-8")
    for code in (
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket(socket.AF_UNIX).bind('own')",
        f"import os; os.remove({str(kept)!r})",
        f"open({str(kept)!r}, 'w')",
        "import ctypes; ctypes.CDLL(None)",
        "import os; os.kill(os.getppid(), 0)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    ):
        assert outcome(code) == "failed", code
    assert kept.read_text(encoding="utf-8") == "here"
    assert outcome("open('own', 'w').write('a')", "assert open('own').read() == 'a'") == "passed"


def test_code_sees_no_variables_of_the_run(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    assert outcome("import os", "assert 'HF_TOKEN' not in os.environ") == "passed"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes that left the group are found by /proc")
def test_a_process_that_got_away_is_ended_too():
    """By the call below Python's audit events, which root's lack of a process limit lets through."""
    code = """
import _posixsubprocess, os, sys
r, w = os.pipe()
_posixsubprocess.fork_exec(
    [sys.executable.encode(), b"-c", b"import time; time.sleep(98765)"], [sys.executable.encode()], True, (), None,
    None, -1, -1, -1, -1, -1, -1, r, w, True, True, -1, None, None, None, -1, None, False)
"""
    before = set(os.listdir("/proc"))
    outcome(code, "while True: pass")
    left = [
        pid for pid in set(os.listdir("/proc")) - before
        if pid.isdigit() and b"98765" in _command(pid)
    ]  # fmt: skip
    assert left == []


def _command(pid):
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return b""
