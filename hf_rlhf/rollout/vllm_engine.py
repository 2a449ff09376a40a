"""An engine that samples by a stock vLLM server, which gets the policy's adapter whenever its weights have changed."""

import contextlib
import hashlib
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
from hf_rlhf.models.adapters import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    POLICY,
    base_of,
    compute_in_base_dtype,
    is_peft_model,
    keep_modes,
    save_adapter,
)
from hf_rlhf.models.backbone import counted_ids, counted_states, logits_head
from hf_rlhf.ops.logprobs import token_logprobs
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.stops import stop_token_ids
from hf_rlhf.rollout.vllm_client import Answer, ServerLost, VLLMClient
from hf_rlhf.rollout.vllm_server import LAUNCH, RUNTIME_LORA, VLLMServer
from hf_rlhf.types import Completion, Model, Sequences

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # at one completion, each after the server came back
_CONCURRENCY = 512  # a process may have about 1000 connections
_STOP_STRINGS = 4  # as many as the server takes
_MASKED = -9000.0  # the server writes -9999 for the log-probability of a token that was cut off
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
        request = self._request(sampling)
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

    def _request(self, sampling: Sampling) -> dict[str, Any]:
        """What all requests have in common. Every option is there: for others the server asks the model's own config."""
        if len(sampling.stop_strings) > _STOP_STRINGS:
            raise InputError(
                f"stop_strings: a vLLM server takes {_STOP_STRINGS} of them, not {len(sampling.stop_strings)}"
            )
        truncated = sampling.truncated
        return {
            "max_tokens": sampling.max_completion_length,
            "temperature": float(sampling.temperature),
            "top_k": sampling.top_k if truncated else 0,
            "top_p": sampling.top_p if truncated else 1.0,
            "min_p": sampling.min_p if truncated else 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,  # the end tokens are among these, and no others end a completion
            "stop_token_ids": stop_token_ids(base_of(self.model), self.tokenizer, sampling),
            "stop": list(sampling.stop_strings),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,  # stop strings may be made of them
            "logprobs": logprobs_wanted(sampling, vocabulary_of(self.model)),
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def _complete(self, request: dict[str, Any], sampling: Sampling) -> Completion:
        """One completion, asked for again when the server was lost, or has forgotten the adapter."""
        for _ in range(_ATTEMPTS):
            seen = self._repairs
            try:
                answer = self.client.post("/v1/completions", {**request, "model": self._adapter})
                if _is_unknown_model(answer):
                    reason = "it does not know the adapter"
                elif answer.status >= 500 or _ended_without_reason(answer):
                    reason = answer.message
                else:
                    return self._completion(answer, sampling)
            except ServerLost as error:
                reason = str(error)
            self._repair(seen, reason)
        raise InputError(
            f"the vLLM server at {self.client.base_url} failed {_ATTEMPTS} times at the same completion, at last: {reason}"
        )

    def _completion(self, answer: Answer, sampling: Sampling) -> Completion:
        if answer.status != 200:
            raise InputError(self._refused(answer))
        try:
            choice = answer.json["choices"][0]
            ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            candidates = choice["logprobs"]["top_logprobs"]
            complete = len(ids) == len(logprobs) == len(candidates) and 0 < len(ids) <= sampling.max_completion_length
            stopped = {"stop": True, "length": False}[choice["finish_reason"]]
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"what {self.client.base_url} answers is not of a vLLM server that knows return_token_ids (0.10.2 or later):"
                f" {answer.text[:300]!r}"
            ) from error
        if not complete:
            raise InputError(f"{self.client.base_url} gave {len(logprobs)} log-probabilities for {len(ids)} tokens")
        vocab_size = vocabulary_of(self.model)
        if max(ids) >= vocab_size:
            raise InputError(
                f"the server at {self.client.base_url} sampled token {max(ids)}, and the policy's vocabulary has {vocab_size};"
                f" it serves another model\n{self._how_to_start()}"
            )
        support = [_allowed_ids(each, sampling, vocab_size) for each in candidates] if sampling.truncated else None
        return Completion(ids, [0.0] * len(ids) if sampling.greedy else logprobs, stopped, support)

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
                answer = self.client.post("/v1/load_lora_adapter", {"lora_name": self._adapter, "lora_path": str(path)})
                break
            except ServerLost:
                self._wait_until_healthy()
        else:
            raise InputError(
                f"the vLLM server at {self.client.base_url} ends each time it is to load the adapter {path}"
            )
        if answer.status == 200 or "already been loaded" in answer.message:
            return
        if answer.status == 404 and "adapter" not in answer.message:
            raise InputError(
                f"the vLLM server at {self.client.base_url} cannot load adapters while it runs: it was started without"
                f" {RUNTIME_LORA}=True\n{self._how_to_start()}"
            )
        if answer.status == 404:
            raise InputError(
                f"the vLLM server at {self.client.base_url} finds no adapter in {path}; output_dir must be on a disk that the"
                " server sees under the same path"
            )
        raise InputError(self._refused(answer))

    def _refused(self, answer: Answer) -> str:
        return (
            f"the vLLM server at {self.client.base_url} refused (status {answer.status}): {answer.message}"
            f"\n{self._how_to_start()}"
        )

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
        name = self._write_adapter()
        if name == self._adapter:
            return
        first = self._adapter is None
        if first:  # what a killed run left
            for other in set(self.folder.glob("policy-*")) - {self.folder / name}:
                shutil.rmtree(other, ignore_errors=True)
        self._adapter = name
        self._bring_up()
        self._load_adapter()
        if first and prompts:
            self._require_same_model(prompts[0])

    def _write_adapter(self) -> str:
        """Save the adapter below `folder`; returns its name, which says what is in it."""
        scratch = self.folder / ".partial"
        save_adapter(self.model, POLICY, scratch)
        digest = hashlib.blake2b(digest_size=8)
        for file in (ADAPTER_CONFIG_FILE, ADAPTER_FILE):
            digest.update((scratch / file).read_bytes())
        name = f"policy-{digest.hexdigest()}"
        if (self.folder / name).is_dir():
            shutil.rmtree(scratch)
        else:
            os.replace(scratch, self.folder / name)
        return name

    def _forget(self, adapter: str) -> None:
        with contextlib.suppress(ServerLost):  # then it has forgotten by itself
            self.client.post("/v1/unload_lora_adapter", {"lora_name": adapter})
        shutil.rmtree(self.folder / adapter, ignore_errors=True)

    def _require_same_model(self, prompt: Sequence[int]) -> None:
        """Raise `InputError` when the server's log-probabilities are not those of the policy, nearly."""
        request = {**self._request(_PROBE), "stop_token_ids": [], "prompt": list(prompt), "seed": 0}
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


def logprobs_wanted(sampling: Sampling, vocab_size: int) -> int:
    """How many log-probabilities a token needs: with top-k all that may be left, which are more than k when some tie.

    In bf16 many do: 59 of SmolLM2-135M's were left by a top-k of 50 within some hundred tokens.

    Raises `InputError` for top-p or min-p alone, which may leave any number of tokens.
    """
    if not sampling.truncated:
        return 0
    if sampling.top_k == 0:
        raise InputError(
            "top_p and min_p need top_k besides with use_vllm: the trainer has to know every token that could have been"
            " sampled, and a vLLM server lists only so many"
        )
    return min(2 * sampling.top_k + 64, vocab_size)


def vocabulary_of(model: Model) -> int:
    """How many tokens the model knows."""
    return base_of(model).config.get_text_config().vocab_size


def require_servable(model: Model) -> None:
    """Raise `InputError` for a policy that a vLLM server cannot take as a LoRA adapter."""
    if not is_peft_model(model):
        raise InputError(
            "use_vllm needs a LoRA policy (use_peft, peft_config): full fine-tuning has no adapter to hand to the server"
        )
    config = model.peft_config[POLICY]
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise InputError(f"peft_type={kind}: a vLLM server takes LoRA adapters only; leave use_vllm out, or use LoRA")
    refused = (
        "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication",
        "alora_invocation_tokens", "use_qalora", "use_bdlora",
    )  # fmt: skip
    if found := [name for name in refused if getattr(config, name, None)]:
        raise InputError(f"a vLLM server cannot load an adapter with {', '.join(found)}; leave it out, or use_vllm")
    causal_lm = base_of(model)
    if getattr(causal_lm, "has_own_vocabulary", False):
        raise InputError(
            "a vLLM server cannot load the embeddings of tokens that an adapter adds to its base; leave use_vllm out, or"
            " save base and tokenizer after resize_token_embeddings and train on that"
        )
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = {"embeddings": causal_lm.get_input_embeddings(), "head": causal_lm.get_output_embeddings()}
    if found := [name for name, module in ends.items() if isinstance(module, BaseTunerLayer)]:
        raise InputError(
            f"a vLLM server takes no LoRA of the {' and '.join(found)}; leave target_modules to the layers"
        )


def _is_unknown_model(answer: Answer) -> bool:
    return answer.status == 404 and "does not exist" in answer.message


def _ended_without_reason(answer: Answer) -> bool:
    """Whether the server broke a completion off, as it does when it ends."""
    content = answer.json
    choices = content.get("choices") if isinstance(content, dict) else None
    return bool(choices) and choices[0].get("finish_reason") in ("abort", "error")


def _allowed_ids(candidates: dict[str, float], sampling: Sampling, vocab_size: int) -> torch.Tensor:
    """Ids `(K,)` of the tokens that were not cut off, from the likeliest ones by `token_id:<id>`."""
    ids = sorted(int(name.removeprefix("token_id:")) for name, logprob in candidates.items() if logprob > _MASKED)
    listed = logprobs_wanted(sampling, vocab_size)
    if len(ids) >= listed and listed < vocab_size:
        raise InputError(
            f"more than {len(ids)} tokens were left by top_k={sampling.top_k}, so many are equally likely, and the server"
            " lists no more; take a smaller top_k, or none"
        )
    return torch.tensor(ids, dtype=torch.int)
