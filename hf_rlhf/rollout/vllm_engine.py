"""An engine that samples by a stock vLLM server, which gets the policy's adapter whenever its weights have changed."""

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from hf_rlhf.distributed import gather_in_order, rank
from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.models.adapters import base_of, compute_in_base_dtype, keep_modes
from hf_rlhf.models.backbone import counted_ids, counted_states, logits_head
from hf_rlhf.ops.logprobs import token_logprobs
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.vllm_adapter import load_adapter, remove_adapters, require_servable, unload_adapter, write_adapter
from hf_rlhf.rollout.vllm_client import Answer, ServerLost, VLLMClient
from hf_rlhf.rollout.vllm_completion import completion_of, completion_request, failure_of, vocabulary_of
from hf_rlhf.rollout.vllm_server import LAUNCH, VLLMServer
from hf_rlhf.types import Completion, Model, Sequences

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # at one completion, each after the server came back
_CONCURRENCY = 512  # a process may have about 1000 connections
_PROBE = Sampling(max_completion_length=16, temperature=2.0)
_ROUNDING = 0.1  # nats a token, at most, between bf16 and fp32
_PROBE_GAP = 0.5  # nats a token; between two models it is well above 1


class VLLMEngine:
    """Sends prompts as token ids to a vLLM server, and gets token ids with their log-probabilities back.

    The adapter is saved to a folder that the server reads, and loaded there under a name made of its content: equal
    weights are loaded once, and neither a cached prefix nor a request can belong to others. Not by vLLM's `load_inplace`,
    which keeps cached prefixes of the weights before, and reads the folder again at every token
    (github.com/vllm-project/vllm/issues/33791).

    Under several ranks the main rank hands the adapter over, and each sends its own prompts.

    Args:
        model: the policy, a `PeftModel` with a LoRA adapter `policy`.
        tokenizer: the policy's.
        server: the address of a server, or one to start (which the main rank does, at the first call of `generate`).
        folder: for adapters; the server sees it under the same path.
        timeout: seconds to wait for a server that does not answer.
        concurrency: requests at the same time; by default all, up to 512.

    Raises `InputError` for a policy that vLLM cannot serve.
    """

    def __init__(
        self,
        model: Model,
        tokenizer,
        server: str | VLLMServer,
        folder: str | os.PathLike,
        *,
        timeout: float = 240.0,
        concurrency: int | None = None,
    ):
        require_servable(model)
        self.model = model
        self.tokenizer = tokenizer
        self.server = server if isinstance(server, VLLMServer) and rank() == 0 else None
        self.client = VLLMClient(server.url if isinstance(server, VLLMServer) else server)
        self.folder = Path(folder).absolute()
        self.timeout = timeout
        self.concurrency = concurrency
        self._adapter: str | None = None  # name of the adapter that the server has
        self._repairs = 0  # how often the server came back
        self._repairing = threading.Lock()
        self._failure: InputError | None = None  # why the batch is given up

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """See `Engine.generate`; up to the rounding of a server, which depends on what else it computes at the time.

        A server that is gone is waited for. Raises `InputError` when it does not come back, or cannot do what is asked.
        """
        request = completion_request(self.model, self.tokenizer, sampling)
        self._failure = None
        self._hand_over_adapter(prompts)
        if not prompts:
            return []
        pool = ThreadPoolExecutor(min(self.concurrency or _CONCURRENCY, len(prompts)), thread_name_prefix="vllm")
        try:
            requests = [
                {**request, "prompt": list(ids), "seed": seed} for ids, seed in zip(prompts, seeds, strict=True)
            ]
            return list(pool.map(lambda each: self._complete(each, sampling), requests))
        except BaseException as error:
            self._failure = self._failure or InputError(
                f"the completions were given up: {error or type(error).__name__}"
            )
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """End the server if this engine started it, and remove the adapters that were written for it."""
        if self.server is not None:
            self.server.end()
        if self._adapter is not None and rank() == 0:
            self._forget(self._adapter)
        self._adapter = None

    # Requests

    def _complete(self, request: dict[str, Any], sampling: Sampling) -> Completion:
        """One completion, asked for again when the server was lost, or has forgotten the adapter."""
        for _ in range(_ATTEMPTS):
            seen = self._repairs
            try:
                answer = self.client.post("/v1/completions", {**request, "model": self._adapter})
                reason = failure_of(answer)
                if reason is None:
                    return self._completion(answer, sampling)
            except ServerLost as error:
                reason = str(error)
            self._repair(seen, reason)
        raise InputError(
            f"the vLLM server at {self.client.base_url} failed {_ATTEMPTS} times at the same completion, at last: {reason}"
        )

    def _completion(self, answer: Answer, sampling: Sampling) -> Completion:
        if answer.status != 200:
            raise InputError(self._refused(f"refused (status {answer.status}): {answer.message}"))
        try:
            return completion_of(answer, sampling, vocabulary_of(self.model))
        except InputError as error:
            raise InputError(self._refused(str(error))) from error

    # A server that comes and goes

    def _repair(self, seen: int, reason: str) -> None:
        """Wait for the server and load the adapter again; of all threads that notice, one does it."""
        with self._repairing:
            self._require_hope()
            if self._repairs > seen:
                return
            logger.warning("The vLLM server at %s was lost (%s); waiting for it", self.client.base_url, reason)
            try:
                self._bring_up()
                self._load_adapter()
            except InputError as error:
                self._failure = error
                raise
            logger.warning("The vLLM server has the adapter again; the unfinished requests are sent again")
            self._repairs += 1

    def _bring_up(self) -> None:
        """Wait until the server is healthy; the run's own is started if it is not."""
        if self.server is not None and not self.client.healthy():
            self.server.end()  # what may be left of it
            self.server.start()
        self._wait_until_healthy()

    def _wait_until_healthy(self) -> None:
        def require_hope() -> None:
            self._require_hope()
            if self.server is not None:
                self.server.require_running()

        if not self.client.wait_until_healthy(self.timeout, require_hope):
            raise InputError(
                f"no vLLM server answered at {self.client.base_url} within vllm_server_timeout={self.timeout:g} seconds"
                f"\n{self._how_to_start()}"
            )

    def _require_hope(self) -> None:
        """Raise `InputError` when the batch has failed in another thread, for the reason it has there."""
        if self._failure is not None:
            raise InputError(str(self._failure))

    def _load_adapter(self) -> None:
        path = self.folder / str(self._adapter)
        for _ in range(_ATTEMPTS):
            try:
                return load_adapter(self.client, path)
            except InputError as error:
                raise InputError(self._refused(str(error))) from error
            except ServerLost:
                self._wait_until_healthy()
        raise InputError(f"the vLLM server at {self.client.base_url} ends each time it is to load the adapter {path}")

    def _refused(self, reason: str) -> str:
        return f"the vLLM server at {self.client.base_url} cannot sample: {reason}\n{self._how_to_start()}"

    def _how_to_start(self) -> str:
        name = base_of(self.model).config._name_or_path or "MODEL"
        return f"Start it with: {LAUNCH.replace('MODEL', name)}\n(with --max-lora-rank and --max-logprobs where above 16 and 20)"

    # The adapter

    def _hand_over_adapter(self, prompts: Sequence[Sequence[int]]) -> None:
        """Let the server have the weights as they are now: done by the main rank, and waited for by all."""
        before, problem = self._adapter, None
        if rank() == 0:
            try:
                self._hand_over(prompts)
            except Exception as error:  # whatever it is, the other ranks wait in the collective below
                problem = error
        wrong_input = isinstance(problem, InputError)
        said = None if problem is None else str(problem) or type(problem).__name__
        url, self._adapter, said, wrong_input = gather_in_order(
            [(self.client.base_url, self._adapter, said, wrong_input)]
        )[0]
        if problem is not None:
            raise problem
        if said is not None:
            raise InputError(said) if wrong_input else RunFailed(f"rank 0 failed: {said}")
        self.client = VLLMClient(url)  # of a started server, only the main rank knows the port
        if rank() == 0 and before not in (None, self._adapter):
            # No rank needs it any more: all have come to the collective above.
            self._forget(before)

    def _hand_over(self, prompts: Sequence[Sequence[int]]) -> None:
        name = write_adapter(self.model, self.folder)
        if name == self._adapter:
            return
        first = self._adapter is None
        if first:  # what a killed run left
            remove_adapters(self.folder, but=name)
        self._adapter = name
        self._bring_up()
        self._load_adapter()
        if first and prompts:
            self._require_same_model(prompts[0])

    def _forget(self, adapter: str) -> None:
        with contextlib.suppress(ServerLost):  # then it has forgotten by itself
            unload_adapter(self.client, adapter)
        shutil.rmtree(self.folder / adapter, ignore_errors=True)

    def _require_same_model(self, prompt: Sequence[int]) -> None:
        """Raise `InputError` when the server's log-probabilities are not those of the policy, nearly."""
        request = {
            **completion_request(self.model, self.tokenizer, _PROBE),
            "stop_token_ids": [],
            "prompt": list(prompt),
            "seed": 0,
        }
        completion = self._complete(request, _PROBE)
        sampled = torch.tensor(completion.logprobs)
        gap, gap_at_1 = (
            (sampled - self._logprobs(prompt, completion.ids, temperature)).abs().mean().item()
            for temperature in (_PROBE.temperature, 1.0)
        )
        if gap > _ROUNDING and gap_at_1 < gap / 4:
            raise InputError(
                f"the vLLM server at {self.client.base_url} gives log-probabilities before temperature and top-k; start it"
                f" with --logprobs-mode processed_logprobs\n{self._how_to_start()}"
            )
        if not gap < _PROBE_GAP:
            raise InputError(
                f"the vLLM server at {self.client.base_url} serves another model than the policy's base: a token's"
                f" log-probability is {gap:.1f} nats off\n{self._how_to_start()}"
            )

    @torch.no_grad()
    def _logprobs(self, prompt: Sequence[int], ids: list[int], temperature: float) -> torch.Tensor:
        """Log-probabilities `(T,)` of one completion by the policy itself."""
        causal_lm = base_of(self.model)
        sequences = Sequences.from_ids([prompt], [ids]).to(next(causal_lm.parameters()).device)
        with keep_modes(self.model), compute_in_base_dtype(self.model):
            self.model.eval()
            states = counted_states(causal_lm, sequences)
            scored = token_logprobs(states, counted_ids(sequences), logits_head(causal_lm), temperature=temperature)
        return scored.logprobs.cpu()
