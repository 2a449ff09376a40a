"""A stock vLLM server as a process of this run: its arguments, its start, its watch and its end."""

import contextlib
import logging
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hf_rlhf.distributed import failing_together
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import POLICY, base_of
from hf_rlhf.types import Model

logger = logging.getLogger(__name__)

MODULE = "vllm.entrypoints.openai.api_server"
RUNTIME_LORA = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
LAUNCH = f"{RUNTIME_LORA}=True python -m {MODULE} --model MODEL --enable-lora --logprobs-mode processed_logprobs"
"""Command that starts such a server; add `--max-lora-rank` when the adapter's rank is above 16."""

_GUARD = Path(__file__).with_name("server_guard.py")
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that --max-lora-rank takes
_OF_THE_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_")
_SECONDS_TO_END = 15  # a little more than the guard takes
# Nothing can be captured in graphs there, and vLLM 0.32 fails at a prompt that it cuts in two when requests have seeds.
_ON_CPU = ["--enforce-eager", "--no-enable-chunked-prefill"]
_ON_GPU = ["--gpu-memory-utilization", "0.3"]  # which the trainer shares; vLLM would take almost all of its memory
_WATCH_SECONDS = 1.0  # between looks at whether a server has ended
_LOG_LINES = 15  # of a server that failed, shown in the message


class VLLMServer:
    """A server on this machine, alive at most as long as this process.

    Args:
        python: of an environment with vLLM.
        arguments: of the server, but host and port.
        log_file: where all it says goes.
    """

    def __init__(self, python: str, arguments: Sequence[str], log_file: Path):
        self.python = python
        self.arguments = arguments
        self.log_file = log_file
        self.port = _free_port()
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """True if the server was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, unless it runs. It answers some time later. Raises `InputError` when it cannot start."""
        if self.running:
            return
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        command = [self.python, "-m", MODULE, *self.arguments, "--host", "127.0.0.1", "--port", str(self.port)]
        if not os.access(self.python, os.X_OK):
            raise InputError(f"vllm_python={self.python!r} cannot be run. Name the python of an environment with vLLM")
        with self.log_file.open("a", encoding="utf-8") as log:
            print(shlex.join(command), file=log, flush=True)
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_GUARD), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # so that Ctrl-C reaches the run alone, and the run ends the server
            )

    def end(self) -> None:
        """End the process and wait until it is gone."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process = None

    def require_running(self) -> None:
        """Raise `InputError` with the end of the log when the process has ended."""
        if not self.running:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
            raise InputError(
                f"the vLLM server that vllm_python={self.python!r} started has ended; the whole log is in"
                f" {self.log_file}, and ends with:\n" + "\n".join(lines)
            )


@contextlib.contextmanager
def keep_running(server: VLLMServer | None, restarting: threading.Lock, given_up: Callable[[], bool]) -> Iterator[None]:
    """Restart this rank's server if it ends before every rank has left the block, which all leave together.

    Only the main rank has one, and it may have its completions long before the others. `restarting` is held while a
    server is restarted, and nothing is restarted once `given_up`.
    """
    left = threading.Event()
    watcher = threading.Thread(target=_watch, args=(server, restarting, given_up, left), daemon=True)
    watcher.start()
    try:
        with failing_together():
            yield
    finally:
        left.set()
        watcher.join()


def _watch(
    server: VLLMServer | None, restarting: threading.Lock, given_up: Callable[[], bool], left: threading.Event
) -> None:
    while server is not None and not left.wait(_WATCH_SECONDS):
        with restarting:  # unless this rank has noticed too, and starts it itself
            if not server.running and not given_up():
                logger.warning("the vLLM server at %s has ended, and is started again for the other ranks.", server.url)
                server.start()


def how_to_start(model: Model) -> str:
    """Return the command that starts a server for the policy `model`."""
    name = base_of(model).config._name_or_path or "MODEL"
    return (
        f"Start it with: {LAUNCH.replace('MODEL', name)}\n(with --max-lora-rank and --max-logprobs where above 16 and"
        " 20)"
    )


def server_arguments(model: Model, *, max_length: int, max_logprobs: int, on_cpu: bool, more: str | None) -> list[str]:
    """Return the arguments of a server that samples from the policy `model`.

    Args:
        model: a `PeftModel` whose base has been loaded by name.
        max_length: most tokens of a prompt and its completion.
        max_logprobs: most log-probabilities that are asked for at a token.
        on_cpu: whether the policy is on a CPU; a GPU is shared with it.
        more: further arguments, as on a command line; they come last, so they win.
    """
    base = base_of(model)
    name = base.config._name_or_path
    if not name:
        raise InputError("the policy's base has no name or folder that a vLLM server could load. Load it from one")
    arguments = ["--model", name, "--dtype", str(base.dtype).removeprefix("torch."), "--enable-lora"]
    arguments += ["--max-lora-rank", str(_served_rank(model.peft_config[POLICY]))]
    arguments += ["--max-model-len", str(max_length), "--max-logprobs", str(max_logprobs)]
    arguments += ["--logprobs-mode", "processed_logprobs"]
    if not Path(name).is_dir() and (commit := getattr(base.config, "_commit_hash", None)):
        arguments += ["--revision", commit]
    arguments += _ON_CPU if on_cpu else _ON_GPU
    return arguments + shlex.split(more or "")


def _served_rank(config) -> int:
    rank = max([config.r, *config.rank_pattern.values()])
    fitting = [served for served in _LORA_RANKS if served >= rank]
    if not fitting:
        raise InputError(f"lora_r={rank}: vLLM serves adapters of rank {_LORA_RANKS[-1]} at most")
    return fitting[0]


def _environment() -> dict[str, str]:
    """Return this process's environment without the launcher's variables: the server is no rank of the run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_LAUNCHER)}
    return {**kept, RUNTIME_LORA: "True"}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
