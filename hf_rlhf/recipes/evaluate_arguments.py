"""The flags of `hf-rlhf evaluate`."""

from dataclasses import dataclass

from hf_rlhf.errors import InputError
from hf_rlhf.models.precision import NATIVE
from hf_rlhf.recipes.arguments import flag
from hf_rlhf.recipes.reward_flags import RewardFlags

PEOPLE = "people"


@dataclass
class EvaluateArguments(RewardFlags):
    """The models, the held-out prompts, who compares the completions, and how they are sampled."""

    policy: str | None = flag(None, "Trained model or adapter: folder or Hub name.")
    baseline: list[str] | None = flag(
        None, "Models to compare it to: folders, adapters, Hub names; by default the start in the policy's record."
    )
    output_dir: str = flag("runs/evaluate", "Folder for completions, answers, evaluation.json and the page.")
    dataset_name: str | None = flag(None, "Held-out prompts: Hub name, folder or file.")
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    dataset_split: str = flag("test", "Split to take prompts from; a file has train alone.")
    max_prompts: int | None = flag(None, "Use only the first prompts.")
    skip_bad_rows: int = flag(0, "Skip up to this many unusable rows; one more is an error.")
    judge_model: str | None = flag(
        None, "Model that compares in both orders: folder, adapter, Hub name, or a server's name."
    )
    judge_url: str | None = flag(None, "OpenAI-compatible server of the judge.")
    judge_api_key_env: str | None = flag(None, "Variable of the environment with the key for judge_url.")
    judge_max_tokens: int = flag(
        16, "Most tokens of an answer of a judge behind a server; more for one that thinks first."
    )
    request: str | None = flag(None, "More keys of each request to judge_url, as JSON; null omits one.")
    calibrate: bool = flag(
        True, "Take out of a judge's probabilities how much it prefers the completion that is shown first."
    )
    concurrency: int = flag(16, "Most requests to a server at the same time.")
    timeout: float = flag(120.0, "Seconds to wait for an answer of a server.")
    retries: int = flag(4, "Tries after the first, where a server fails.")
    max_failed_requests: int = flag(
        0, "So many requests may fail after all tries; their pairs have no answer, and the next start asks them again."
    )
    annotator: str | None = flag(
        None, f"{PEOPLE}: write the pairs to feedback.db in output_dir, for hf-rlhf label, and read the answers."
    )
    perplexity_text: str | None = flag(None, "A held-out text file (.txt, .md) to measure the perplexity of.")
    max_completion_length: int | None = flag(None, "Longest completion, in tokens; by default that of the run, or 64.")
    temperature: float | None = flag(None, "Sampling temperature; by default that of the run, or 1. 0 is greedy.")
    top_k: int | None = flag(None, "Sample among the k most likely tokens; by default as the run. 0 is off.")
    top_p: float | None = flag(
        None, "Sample among the most likely tokens with this total probability; by default as the run. 1 is off."
    )
    chat_template_kwargs: dict | str | None = flag(
        None, "Arguments of the chat template, as JSON; by default those of the run."
    )
    use_transformers_continuous_batching: bool = flag(False, "Sample by transformers' continuous batching.")
    use_vllm: bool = flag(False, "Sample by a vLLM server; the models have to be LoRA adapters on the base it serves.")
    vllm_server_base_url: str = flag("http://127.0.0.1:8000", "Address of that server.")
    batch_size: int = flag(64, "Completions sampled, and written, together.")
    dtype: str = flag(NATIVE, "Dtype of the models; native is what the device multiplies in hardware.")
    seed: int = flag(0, "Seed of the completions; a prompt has the same random numbers for every model.")

    def __post_init__(self):
        for name in ("policy", "dataset_name"):
            if not getattr(self, name):
                raise InputError(f"{name} is missing. Use: hf-rlhf evaluate POLICY --dataset_name HELD_OUT_PROMPTS")
        rules = {
            "max_prompts": (self.max_prompts is None or self.max_prompts >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "max_failed_requests": (self.max_failed_requests >= 0, "0 or above"),
            "annotator": (self.annotator in (None, PEOPLE), PEOPLE),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"{name}={getattr(self, name)} is invalid: it must be {rule}.")
        if self.use_vllm and self.use_transformers_continuous_batching:
            raise InputError("use_vllm=True is invalid with use_transformers_continuous_batching. Choose one engine.")
        if self.judge_url is not None and self.judge_model is None:
            raise InputError("judge_model is missing: judge_url needs the name by which that server knows its model.")
        for name in ("judge_api_key_env", "request"):
            if getattr(self, name) is not None and self.judge_url is None:
                raise InputError(
                    f"{name} is invalid without judge_url: no server is asked. Give judge_url, or omit it."
                )
