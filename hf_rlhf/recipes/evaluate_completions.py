"""Completions of the models of an evaluation, and their log-probabilities.

One model is in memory at a time. What it did is in files of `completions/` by then, so that a run that was killed
continues with the part it was at, and one that is repeated loads nothing.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hf_rlhf.checkpoint.manifest import file_digest
from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.likelihood import TextLikelihood, completion_logprobs, text_likelihood
from hf_rlhf.models.adapted import load_adapted, load_policy
from hf_rlhf.models.adapter_files import adapter_base, adapter_folder
from hf_rlhf.models.adapters import POLICY, is_peft_model
from hf_rlhf.models.load import load_causal_lm
from hf_rlhf.models.precision import current_device
from hf_rlhf.progress import progress_of
from hf_rlhf.recipes.candidates import sample_to_file
from hf_rlhf.recipes.evaluate_arguments import EvaluateArguments
from hf_rlhf.recipes.evaluate_models import POLICY_NAME, ComparedModel, Prompts
from hf_rlhf.records import read_json_lines, write_whole
from hf_rlhf.rollout.continuous_batching import ContinuousBatchingEngine, require_batchable
from hf_rlhf.rollout.engines import Engine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.types import Completion, Model, Trajectory

COMPLETIONS = "completions"
_FORWARD_BATCH = 16


@dataclass(frozen=True)
class Work:
    """The work that every model does."""

    args: EvaluateArguments
    folder: Path
    sampling: Sampling
    template: Mapping[str, Any]  # arguments of the chat template
    text: str | None  # to measure the perplexity of

    def file(self, model: ComparedModel, ending: str) -> Path:
        """Return a file of `completions/`."""
        return self.folder / COMPLETIONS / f"{model.stem}{ending}"

    @property
    def device(self) -> torch.device:
        """The device that models run on."""
        return torch.device("cpu") if self.args.use_cpu else current_device()

    @property
    def kl_unknown(self) -> str | None:
        """Reason why completions sampled so are no samples of the policy, of which a KL is a mean; None if they are."""
        if self.sampling.greedy:
            return "the completions are greedy (temperature 0), and a KL is a mean over samples"
        return "top_k, top_p or min_p cut off a part of the distribution" if self.sampling.truncated else None


def require_same_settings(work: Work, model: ComparedModel, prompts: Prompts) -> None:
    """Write what the completions of a model depend on, or raise `InputError` where it was something else before."""
    args, file = work.args, work.file(model, ".json")
    folder = Path(adapter_folder(model.path))
    base = adapter_base(folder)
    engine = "vllm" if args.use_vllm else "transformers"
    now = {
        "model": str(folder.resolve()) if folder.is_dir() else model.path,
        "weights": _weights_digest(folder) | ({} if base is None else {"base": _weights_digest(Path(base))}),
        "prompts": prompts.digest,
        **asdict(work.sampling),
        "chat_template_kwargs": dict(work.template),
        "seed": args.seed,
        "dtype": args.dtype,
        "engine": engine,
    }
    if args.use_transformers_continuous_batching:  # a completion depends on the others of its batch
        now |= {"engine": "continuous batching", "batch_size": args.batch_size}
    now = json.loads(json.dumps(now))
    if not file.is_file() or not work.file(model, ".jsonl").is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(now, indent=2, ensure_ascii=False) + "\n")
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    if changed := [name for name in now if before.get(name) != now[name]]:
        shown = [name for name in changed if name not in ("weights", "prompts")]
        values = ", ".join(f"{name} {before.get(name)} and not {now[name]}" for name in shown)
        what = values or f"other {changed[0]}"
        raise InputError(
            f"output_dir={str(work.folder)!r} is invalid: it holds completions of {model.name} with {what}. Choose"
            " another folder, or remove this one."
        )


def _weights_digest(folder: Path) -> dict[str, Any]:
    """Return the digest of each file of weights in a folder; nothing for a name."""
    if not folder.is_dir():
        return {}
    return {
        each.name: file_digest(each) for ending in ("safetensors", "bin") for each in sorted(folder.glob(f"*.{ending}"))
    }


def sample(work: Work, model: ComparedModel, prompts: Prompts, policy: Prompts) -> None:
    """Let a model complete the prompts, and score the policy's completions and the held-out text.

    Does what its files do not have yet. The policy comes first: the others score what it wrote.
    """
    completions, scored = work.file(model, ".jsonl"), work.file(model, "_of_policy.jsonl")
    count = len(prompts.rows)
    sampled = _lines(completions) == count
    scores = why_no_kl(work, model, prompts, policy) is None and _lines(scored) != count
    reads = work.text is not None and read_likelihood(work, model) is None
    if sampled and not scores and not reads:
        return
    loaded = _load(work, model)
    if not sampled:
        _complete(work, model, prompts, loaded, completions)
    if scores:
        with progress_of(1, f"     log-probabilities by {model.name}"):
            written = read_json_lines(work.file(ComparedModel(POLICY_NAME, ""), ".jsonl"))
            logprobs = completion_logprobs(
                loaded,
                [row["prompt_ids"] for row in policy.rows],
                [row["ids"] for row in written],
                temperature=work.sampling.temperature,
                batch_size=_FORWARD_BATCH,
            )
        write_whole(scored, "".join(json.dumps({"logprobs": each}) + "\n" for each in logprobs))
    if reads:
        _write_likelihood(work, model, loaded, prompts.tokenizer)


def _load(work: Work, model: ComparedModel) -> Model:
    """Load a model for sampling; by vLLM, one without an adapter gets one that changes nothing."""
    folder = adapter_folder(model.path)
    if not work.args.use_vllm:
        loaded: Any = load_policy(model.path, adds_adapter=True, dtype=work.args.dtype).to(work.device).eval()
        if is_peft_model(loaded):
            from hf_rlhf.models.fast.fused_lora import fuse_lora

            fuse_lora(loaded)  # as in training, which rounds differently
        return loaded
    if adapter_base(folder) is not None:
        return load_adapted(load_causal_lm, folder, adapter_name=POLICY, dtype=work.args.dtype).to(work.device).eval()
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    base = load_causal_lm(model.path, dtype=work.args.dtype)
    return get_peft_model(base, config, adapter_name=POLICY).to(work.device).eval()


def _complete(work: Work, model: ComparedModel, prompts: Prompts, loaded: Model, file: Path) -> None:
    """Let a loaded model complete all prompts to its file."""
    with _engine(work, loaded, prompts.tokenizer) as engine:
        sample_to_file(
            loaded,
            prompts.tokenizer,
            prompts.rows,
            work.sampling,
            [row_seed(work.args.seed, "evaluation", number) for number in range(len(prompts.rows))],
            file,
            _row,
            f"     completions of {model.name}",
            engine=engine,
            batch_size=work.args.batch_size,
            chat_template_kwargs=work.template,
        )


@contextmanager
def _engine(work: Work, model: Model, tokenizer: Any) -> Iterator[Engine | None]:
    """Yield the engine that the flags name; None for the one that shows progress by the token."""
    args = work.args
    if args.use_transformers_continuous_batching:
        require_batchable(work.sampling)
        yield ContinuousBatchingEngine(model, tokenizer)
    elif args.use_vllm:
        from hf_rlhf.rollout.vllm.client import server_address
        from hf_rlhf.rollout.vllm.engine import VLLMEngine

        address = server_address("vllm_server_base_url", args.vllm_server_base_url)
        engine = VLLMEngine(model, tokenizer, address, work.folder / "vllm", timeout=args.timeout)
        try:
            yield engine
        finally:
            engine.close()
    else:
        yield None


def why_no_kl(work: Work, model: ComparedModel, prompts: Prompts, policy: Prompts) -> str | None:
    """Return why the KL of the policy to a model cannot be measured; None if it can."""
    if work.kl_unknown is not None:
        return work.kl_unknown
    if prompts.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        return f"{model.name} has another tokenizer than the policy"
    if prompts.digest != policy.digest:
        return f"{model.name} has another chat template than the policy, and reads other prompts"
    return None


def _row(trajectory: Trajectory) -> dict[str, Any]:
    completion = trajectory.completion
    return {"completion": trajectory.text, "ids": completion.ids, "finished": completion.stopped}


def _lines(file: Path) -> int:
    return len(read_json_lines(file)) if file.is_file() else 0


def read_completions(work: Work, model: ComparedModel, prompts: Prompts) -> list[Trajectory]:
    """Return what a model wrote, in the order of the prompts."""
    return [
        Trajectory(row, list(row["prompt_ids"]), Completion(each["ids"], [], each["finished"]), each["completion"])
        for row, each in zip(prompts.rows, read_json_lines(work.file(model, ".jsonl")), strict=True)
    ]


def read_logprobs(work: Work, model: ComparedModel) -> list[list[float]]:
    """Return the log-probabilities by a model of the tokens that the policy wrote."""
    return [row["logprobs"] for row in read_json_lines(work.file(model, "_of_policy.jsonl"))]


def read_likelihood(work: Work, model: ComparedModel) -> TextLikelihood | None:
    """Return the likelihood of the held-out text under a model; None where it was not measured yet."""
    file = work.file(model, "_text.json")
    if work.text is None or not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    return TextLikelihood(**found["likelihood"]) if found["text"] == _digest(work.text) else None


def _write_likelihood(work: Work, model: ComparedModel, loaded: Model, tokenizer: Any) -> None:
    assert work.text is not None
    try:
        with progress_of(1, f"     perplexity of {model.name}"):
            found = text_likelihood(loaded, tokenizer, work.text, batch_size=_FORWARD_BATCH)
    except ValueError as error:
        raise InputError(
            f"perplexity_text={work.args.perplexity_text} is invalid: {error}. Give a longer text."
        ) from error
    content = {"text": _digest(work.text), "likelihood": found._asdict()}
    write_whole(work.file(model, "_text.json"), json.dumps(content) + "\n")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
