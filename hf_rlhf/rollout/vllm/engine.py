"""An engine that samples by stock vLLM servers, which get the policy's adapter whenever its weights have changed."""

import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_rlhf.distributed import by_first_rank, gather_in_order, rank, world_size
from hf_rlhf.endpoints.answers import Answer
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import saved_names
from hf_rlhf.models.sharding import gather_weights, is_sharded
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.vllm.adapter import load_adapter, remove_adapters, require_servable, unload_adapter, write_adapter
from hf_rlhf.rollout.vllm.client import ServerLost
from hf_rlhf.rollout.vllm.completion import completion_of, completion_request, failure_of, vocabulary_of
from hf_rlhf.rollout.vllm.pool import NoServerLeft, Server, ServerPool, addresses, on_each
from hf_rlhf.rollout.vllm.probe import PROBE, base_name, probe_request, require_same_model
from hf_rlhf.rollout.vllm.server import VLLMServer, how_to_start, keep_running
from hf_rlhf.types import Completion, Model

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # at one completion, each after the server came back
_CONCURRENCY = 512  # a process may have about 1000 connections
_LOOK_SECONDS = 5.0  # for a server that was lost, so that one behind a dead network does not delay an iteration


class VLLMEngine:
    """Sampling by vLLM servers: prompts are sent as token ids, and token ids with log-probabilities come back.

    The adapter is saved to a folder that the servers read, and loaded there under a name made of its content: equal
    weights are loaded once, and neither a cached prefix nor a request can belong to others. Not by vLLM's
    `load_inplace`, which keeps cached prefixes of the weights before, and reads the folder again at every token
    (github.com/vllm-project/vllm/issues/33791).

    Several servers share the completions by load, see `ServerPool`. Which server draws a completion changes nothing but
    rounding, since each request carries its own seed. A server that is lost is not used until the next call of
    `generate`.

    Under several ranks the main rank hands the adapter over, and each sends its own prompts, to all servers.

    Args:
        model: the policy, a `PeftModel` with a LoRA adapter `policy`.
        tokenizer: the policy's.
        servers: one address, several, or a server to start (which the main rank does, at the first call of `generate`).
        folder: for adapters; the servers see it under the same path.
        timeout: seconds to wait for a server that does not answer.
        concurrency: requests at the same time at each server; by default 512 at all of them together.

    Raises `InputError` for a policy that vLLM cannot serve.
    """

    def __init__(
        self,
        model: Model,
        tokenizer,
        servers: str | Sequence[str] | VLLMServer,
        folder: str | os.PathLike,
        *,
        timeout: float = 240.0,
        concurrency: int | None = None,
    ):
        require_servable(model)
        self.model = model
        self.tokenizer = tokenizer
        self._own = servers if isinstance(servers, VLLMServer) else None
        self.server = self._own if rank() == 0 else None  # which this rank starts and ends
        urls = [servers.url] if isinstance(servers, VLLMServer) else [servers] if isinstance(servers, str) else servers
        self.pool = ServerPool(urls, concurrency or max(_CONCURRENCY // len(urls), 1))
        self.folder = Path(folder).absolute()
        self.timeout = timeout
        self._adapter: str | None = None  # name of the adapter that the servers have, once all of them were there
        self._base: str | None = None  # name of the base that they serve, as far as they say
        self._recovering = threading.Lock()
        self._failure: InputError | None = None  # why the batch is given up

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Like `Engine.generate`, up to the rounding of a server, which depends on its other requests at the time.

        When all servers are lost, wait for one. Raises `InputError` when none comes back, or one cannot do what is
        asked.
        """
        request = completion_request(self.model, self.tokenizer, sampling)
        self._failure = None
        self._hand_over_adapter(prompts)
        watched = self._own is not None and world_size() > 1
        with keep_running(self.server, self._recovering, self._has_failed) if watched else contextlib.nullcontext():
            requests = [
                {**request, "model": self._adapter, "prompt": list(ids), "seed": seed}
                for ids, seed in zip(prompts, seeds, strict=True)
            ]
            return self._complete_all(requests, sampling) if requests else []

    def count_answering(self) -> int:
        """Return how many servers completed something since the last call, over all ranks. Every rank takes part."""
        answered, self.pool.answered = self.pool.answered, set()
        return len(set().union(*gather_in_order([answered])))

    def close(self) -> None:
        """End the server if this engine started it, and remove the adapters that were written for the servers."""
        if self.server is not None:
            self.server.end()
        elif self._adapter is not None and rank() == 0:
            adapter = self._adapter
            on_each(
                self.pool.in_use,
                lambda server, given_up: unload_adapter(server.client, adapter, given_up),
                "forget the adapter",
            )
        if self._adapter is not None and rank() == 0:
            remove_adapters(self.folder)
        self._adapter = None

    # Completions

    def _complete_all(self, requests: Sequence[dict[str, Any]], sampling: Sampling) -> list[Completion]:
        threads = min(self.pool.limit * len(self.pool.servers), _CONCURRENCY, len(requests))
        executor = ThreadPoolExecutor(threads, thread_name_prefix="vllm")
        try:
            return list(executor.map(lambda each: self._complete(each, sampling), requests))
        except BaseException as error:
            self._failure = self._failure or InputError(
                f"the completions were given up: {error or type(error).__name__}"
            )
            raise
        finally:
            executor.shutdown(cancel_futures=True)

    def _complete(self, request: dict[str, Any], sampling: Sampling) -> Completion:
        """Return one completion; ask for it again when its server was lost, or has forgotten the adapter."""
        tokens = len(request["prompt"]) + request["max_tokens"]
        attempts = _ATTEMPTS + len(self.pool.servers) - 1
        reason = None
        for _ in range(attempts):
            server, turn = self._take_server(tokens, request)
            try:
                answered = self._ask(server, turn, request, sampling)
                if isinstance(answered, Completion):
                    self.pool.answered.add(server.url)
                    return answered
                reason = answered
                self._stop_using(server, turn, reason)
            except InputError as error:
                self._failure = self._failure or error  # so that no thread waits for its answer any more
                raise
            finally:
                self.pool.give_back(server, tokens)
        raise InputError(
            f"{addresses(self.pool.servers)} failed {attempts} times at the same completion, at last: {reason}"
        )

    def _take_server(self, tokens: int, request: dict[str, Any]) -> tuple[Server, int]:
        while True:
            self._raise_failure()
            try:
                return self.pool.take(tokens)
            except NoServerLeft:
                self._recover(request["model"], request["prompt"])

    def _ask(self, server: Server, turn: int, request: dict[str, Any], sampling: Sampling) -> Completion | str:
        """Return the completion, or why the server cannot be used as it is."""

        def given_up() -> bool:
            return self._failure is not None or not server.in_use or server.turn != turn

        try:
            answer = server.client.post("/v1/completions", request, given_up)
        except ServerLost as error:
            return str(error)
        return failure_of(answer) or self._completion(server, answer, sampling)

    def _completion(self, server: Server, answer: Answer, sampling: Sampling) -> Completion:
        if answer.status != 200:
            raise self._refusal(server, f"refused (status {answer.status}): {answer.message}")
        try:
            return completion_of(answer, sampling, vocabulary_of(self.model))
        except InputError as error:
            raise self._refusal(server, str(error)) from error

    def _refusal(self, server: Server, reason: str) -> InputError:
        return InputError(f"the vLLM server at {server.url} cannot sample: {reason}\n{how_to_start(self.model)}")

    # Servers that come and go

    def _stop_using(self, server: Server, turn: int, reason: str) -> None:
        """Take a lost server out of use; of all threads that notice, one says so."""
        unfinished = self.pool.stop_using(server, turn, reason)
        if unfinished is not None and (others := self.pool.in_use):
            logger.warning(
                "Lost %s (%s). Its unfinished completions (%d) go to %s. It is tried again at the next iteration.",
                *(addresses([server]), reason, unfinished, addresses(others)),
            )

    def _recover(self, adapter: str, prompt: Sequence[int] | None) -> None:
        """Wait until one server answers and has `adapter`; of all threads that notice, one does it.

        `prompt` is what its model is compared with the policy's by, see `_load`.
        """
        with self._recovering:
            self._raise_failure()
            if self.pool.in_use:
                return
            reasons = "; ".join(self.pool.lost.values())
            logger.warning("Lost %s (%s). Waiting until one answers.", addresses(self.pool.servers), reasons)
            try:
                self._bring_one_back(adapter, prompt)
            except InputError as error:
                self._failure = error
                raise
            logger.warning(
                "%s has the adapter again. The unfinished completions are sent again", addresses(self.pool.in_use)
            )

    def _bring_one_back(self, adapter: str, prompt: Sequence[int] | None) -> None:
        for _ in range(_ATTEMPTS):
            self._load(self._wait_for(1), adapter, prompt)
            if self.pool.in_use:
                return
        raise InputError(
            f"{addresses(self.pool.servers)} failed {_ATTEMPTS} times at the adapter {self.folder / adapter}, at"
            f" last: {'; '.join(self.pool.lost.values())}"
        )

    def _wait_for(self, enough: int) -> list[Server]:
        """Wait until so many servers are healthy, and return them; the run's own is started if it is not."""
        if self.server is not None and not self.pool.servers[0].client.healthy():
            self.server.end()  # what may be left of it
            self.server.start()
        healthy: list[Server] = []

        def wait(server: Server, given_up) -> None:
            def over() -> bool:
                self._raise_failure()
                if self.server is not None:
                    self.server.require_running()
                return given_up() or len(healthy) >= enough

            if server.client.wait_until_healthy(self.timeout, over):
                healthy.append(server)

        for problem in on_each(self.pool.servers, wait, "answer").values():
            if problem is not None:
                raise problem
        if len(healthy) < enough:
            urls = " and ".join(server.url for server in self.pool.servers if server not in healthy)
            others = ". The others are ready: remove it from vllm_server_base_urls" if healthy else ""
            hint = f"its log is {self._own.log_file}" if self._own is not None else how_to_start(self.model)
            raise InputError(
                f"no vLLM server answered at {urls} within vllm_server_timeout={self.timeout:g} seconds{others}\n{hint}"
            )
        return healthy

    def _has_failed(self) -> bool:
        return self._failure is not None

    def _raise_failure(self) -> None:
        """Raise `InputError` when the batch has failed in another thread, for the reason it has there."""
        if self._failure is not None:
            raise InputError(str(self._failure))

    # The adapter

    def _hand_over_adapter(self, prompts: Sequence[Sequence[int]]) -> None:
        """Give the servers the current weights: the main rank does it, and all ranks wait for it."""
        lost = {url: reason for each in gather_in_order([self.pool.lost]) for url, reason in each.items()}
        # No rank needs the adapter before this one any more: all have come to the collective above.
        weights = gather_weights(self.model, saved_names(self.model)) if is_sharded(self.model) else None
        self._adapter, self._base, states = by_first_rank(lambda: self._hand_over(prompts, lost, weights))
        self.pool.follow(states)

    def _hand_over(self, prompts: Sequence[Sequence[int]], lost: dict[str, str], weights: dict[str, Tensor] | None):
        for server in self.pool.servers:
            if server.url in lost:
                self.pool.stop_using(server, server.turn, lost[server.url])
        adapter = write_adapter(self.model, self.folder, weights)
        first = self._adapter is None
        if first and weights is not None:
            logger.warning(
                "The policy is sharded, so only the name of the vLLM servers' base is compared with the policy's."
                " Look at sampling/logp_gap of the first iteration: it is large if their base differs"
            )
        if first:
            self._wait_for(len(self.pool.servers))
            self._base = None
            with contextlib.suppress(ServerLost):
                self._base = base_name(self.pool.servers[0].client)
        prompt = prompts[0] if prompts else None
        self._load(self.pool.servers if first else self._reachable(), adapter, prompt, all_must_take_it=first)
        if not self.pool.in_use:
            self._recover(adapter, prompt)
        remove_adapters(self.folder, but=adapter)
        return adapter, self._base, [(server.url, server.in_use) for server in self.pool.servers]

    def _reachable(self) -> list[Server]:
        """Return the servers in use, and those of the others that answer now."""
        back: list[Server] = []

        def look(server: Server, given_up) -> None:
            if server.client.healthy(_LOOK_SECONDS):
                back.append(server)

        on_each([server for server in self.pool.servers if not server.in_use], look, "answer")
        return [server for server in self.pool.servers if server.in_use or server in back]

    def _load(
        self,
        servers: Sequence[Server],
        adapter: str,
        prompt: Sequence[int] | None,
        *,
        all_must_take_it: bool = False,
    ) -> None:
        """Load the adapter on these servers at the same time, and use those that have it and are of the policy's model.

        A server that was started, or started again, completes `prompt`, and its log-probabilities are compared with the
        policy's. Where the policy's weights are sharded, this rank cannot compute what the server should say: the name
        of the base is all that is compared.

        Raises `InputError` when all refuse, or `all_must_take_it` and one refuses; otherwise that one is taken out of
        use.
        """
        probes: dict[Server, Completion] = {}

        def load(server: Server, given_up) -> None:
            self._load_on(server, adapter, given_up)
            if prompt is not None and not server.checked and not is_sharded(self.model):
                answer = server.client.post(
                    "/v1/completions",
                    {**probe_request(self.model, self.tokenizer, prompt), "model": adapter},
                    given_up,
                )
                if reason := failure_of(answer):
                    raise ServerLost(f"{server.url}: {reason}")
                probes[server] = self._completion(server, answer, PROBE)

        problems = on_each(servers, load, "load the adapter")
        for server, probe in probes.items():
            problems[server] = problems[server] or self._check(server, prompt or (), probe)
        refusals = [problem for problem in problems.values() if isinstance(problem, InputError)]
        if refusals and (all_must_take_it or len(refusals) == len(servers)):
            raise InputError("\n".join(map(str, refusals)))
        for server, problem in problems.items():
            self._update_use(server, problem)

    def _load_on(self, server: Server, adapter: str, given_up) -> None:
        """Raise `ServerLost`, or `InputError` when the server cannot take the adapter or has another base."""
        base = base_name(server.client)  # of a server in use too: it may have been started again since it last answered
        if None not in (base, self._base) and base != self._base:
            raise self._refusal(
                server, f"it serves {base}, but this run samples from {self._base}. Start it with --model {self._base}"
            )
        if server.in_use and server.adapter == adapter:
            return
        if not server.in_use:
            server.checked = False
        try:
            load_adapter(server.client, self.folder / adapter, given_up)
        except InputError as error:
            raise self._refusal(server, str(error)) from error
        before, server.adapter = server.adapter, adapter
        if before not in (None, adapter) and not unload_adapter(server.client, before, given_up):
            server.checked = False  # it was started again

    def _check(self, server: Server, prompt: Sequence[int], probe: Completion) -> InputError | None:
        try:
            require_same_model(self.model, prompt, probe)
        except InputError as error:
            return self._refusal(server, str(error))
        server.checked = True
        return None

    def _update_use(self, server: Server, problem: ServerLost | InputError | None) -> None:
        """Take the server into use or out of use, and print what has changed."""
        if problem is None:
            if server.lost_because:
                logger.warning("Back: %s has the adapter of this iteration and samples again.", addresses([server]))
            if not server.in_use:
                self.pool.use(server)
            return
        known = server.lost_because
        self.pool.stop_using(server, server.turn, str(problem))
        server.lost_because = str(problem)
        if not known and len(self.pool.servers) > 1:
            logger.warning(
                "Lost %s (%s). It does not sample in this iteration, and is tried again at the next.",
                *(addresses([server]), problem),
            )
        elif isinstance(problem, InputError) and known != str(problem):
            logger.warning("Not used: %s", problem)
