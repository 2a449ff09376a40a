"""The flags of `hf-rlhf ai-feedback`."""

from dataclasses import dataclass

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.ai.results import AVERAGE, SKIP
from hf_rlhf.models.load import EMBEDDED_MODEL
from hf_rlhf.models.precision import NATIVE
from hf_rlhf.recipes.arguments import flag

_RESUME = (None, "never", "auto", "last")


@dataclass
class AIFeedbackArguments:
    """Prompts, principles and models of AI feedback."""

    output_dir: str = flag("runs/ai_feedback", "Folder for the results.")
    dataset_name: str | None = flag(
        None, "Prompts: Hub name, folder, or .jsonl, .json, .csv, .parquet file (also .gz)."
    )
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    dataset_train_split: str = flag("train", "Split to take prompts from.")
    max_prompts: int | None = flag(None, "Use only the first distinct prompts.")
    skip_bad_rows: int = flag(0, "Skip up to this many unusable rows; one more is an error.")
    system_prompt: str | None = flag(None, "Message of the system before each prompt that has none.")
    principles: str | None = flag(None, "A YAML file of principles; by default those of the package.")
    model_name_or_path: str = flag(
        EMBEDDED_MODEL,
        "Model that replies, criticizes and revises: folder, adapter, Hub name, or the server's name of it.",
    )
    url: str | None = flag(None, "OpenAI-compatible server of that model; by default it is loaded here.")
    api_key_env: str | None = flag(None, "Variable of the environment with the key for url.")
    request: str | None = flag(None, "More keys of each request to url and judge_url, as JSON; null omits one.")
    dtype: str = flag(NATIVE, "Dtype of models that are loaded here; native is what the device multiplies in hardware.")
    judge_model: str | None = flag(None, "Model that compares; by default the one that replies.")
    judge_url: str | None = flag(None, "OpenAI-compatible server of the judge.")
    judge_api_key_env: str | None = flag(None, "Variable of the environment with the key for judge_url.")
    judge_max_tokens: int = flag(
        16, "Most tokens of an answer of a judge behind a server; more for one that thinks first."
    )
    calibrate: bool = flag(
        True, "Take out of a judge's probabilities how much it prefers the reply that is shown first."
    )
    when_orders_disagree: str = flag(
        SKIP, "What becomes of a pair whose better reply changes with the order: skip, or average over both orders."
    )
    num_completions: int = flag(2, "Replies to each prompt; every two of them are compared.")
    num_revisions: int = flag(1, "Critiques and revisions of the first reply to each prompt; 0 for preferences alone.")
    max_completion_length: int = flag(128, "Longest reply and revision, in tokens.")
    max_critique_length: int = flag(96, "Longest critique, in tokens.")
    keep_unfinished: bool = flag(False, "Keep revisions that were cut off at max_completion_length as demonstrations.")
    temperature: float = flag(1.0, "Sampling temperature of replies, critiques and revisions.")
    batch_size: int = flag(16, "Dialogues, or pairs, asked together; a killed run asks at most so many again.")
    concurrency: int = flag(16, "Most requests to a server at the same time.")
    timeout: float = flag(120.0, "Seconds to wait for an answer of a server.")
    retries: int = flag(4, "Tries after the first, where a server fails.")
    max_failed_requests: int = flag(
        0, "So many requests of this start may fail after all tries; their replies and comparisons are omitted."
    )
    seed: int = flag(0, "Seed of samples and of the draw of principles.")
    resume: str | None = flag(
        None, "auto (continue the run in output_dir, or begin one), last (an error if there is none), or never."
    )

    def __post_init__(self):
        rules = {
            "max_prompts": (self.max_prompts is None or self.max_prompts >= 1, "at least 1"),
            "num_completions": (self.num_completions >= 2, "at least 2, to compare them"),
            "num_revisions": (self.num_revisions >= 0, "0 or above"),
            "max_completion_length": (self.max_completion_length >= 1, "at least 1"),
            "max_critique_length": (self.max_critique_length >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or above"),
            "max_failed_requests": (self.max_failed_requests >= 0, "0 or above"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "when_orders_disagree": (self.when_orders_disagree in (SKIP, AVERAGE), f"{SKIP} or {AVERAGE}"),
            "resume": (self.resume in _RESUME, "auto, last or never"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"{name}={getattr(self, name)} is invalid: it must be {rule}.")
        if self.temperature == 0:
            raise InputError("temperature=0 is invalid: all replies to a prompt would be equal. Use 1, say.")
        for name in ("api_key_env", "request"):
            if getattr(self, name) is not None and self.url is None and self.judge_url is None:
                raise InputError(f"{name} is invalid without url: no server is asked. Give url, or omit {name}.")
        if self.judge_api_key_env is not None and self.judge_url is None:
            raise InputError("judge_api_key_env is invalid without judge_url. Give judge_url, or omit it.")
        if self.judge_url is not None and self.judge_model is None:
            raise InputError("judge_model is missing: judge_url needs the name by which that server knows its model.")
