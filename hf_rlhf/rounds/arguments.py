"""The flags of `hf-rlhf rounds`, and the names of its folders."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import CORRECTION, PAIRWISE, SPAN, Form, form_from_json
from hf_rlhf.feedback.selection import CHOICES, RANDOM, require_choice
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.recipes.arguments import RewardTrainingArguments, flag
from hf_rlhf.rollout.sampling import Sampling

STORE_FILE = "feedback.db"
PROMPTS, START = "prompts", "start"
CANDIDATES, PREFERENCES, REWARD_MODEL, POLICY, EVALUATION = (
    "candidates", "preferences", "reward_model", "policy", "evaluation"
)  # fmt: skip
ME, PEOPLE, CHEERFUL, SIMILARITY, JUDGE = "me", "people", "cheerful", "similarity", "judge"
ANNOTATORS = (ME, PEOPLE, CHEERFUL, SIMILARITY, JUDGE)
TO_START, TO_LAST = "start", "last"
MAY_CHANGE = (
    "rounds", "guidelines", "annotator", "num_annotators", "overlap", "annotator_noise", "annotator_taste",
    "annotator_position_bias", "annotator_tie_margin", "judge_model", "judge_url", "judge_api_key_env", "port", "open",
)  # fmt: skip
"""Flags that may change between two starts: how many rounds there are, and who answers what is not answered yet."""


@dataclass
class RoundsArguments:
    """Prompts, questions, annotators and training of rounds of feedback."""

    output_dir: str = flag("runs/rounds", "Folder of all rounds; feedback.db in it has the answers.")
    rounds: int = flag(3, "Rounds. A higher number continues a run that is complete.")
    seed: int = flag(0, "Seed of all random numbers.")
    dataset_name: str | None = flag(
        None, "Prompts: Hub name, folder, or .jsonl, .json, .csv, .parquet file (also .gz)."
    )
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    dataset_train_split: str = flag("train", "Split to take prompts from.")
    max_prompts: int | None = flag(None, "Use only the first distinct prompts.")
    skip_bad_rows: int = flag(0, "Skip up to this many unusable rows; one more is an error.")
    system_prompt: str | None = flag(None, "Message of the system before each prompt that has none.")
    held_out_prompts: int = flag(
        32, "Prompts that are never trained on: for held-out preferences and the evaluation of policies."
    )

    form: str = flag(
        PAIRWISE, "What is asked: pairwise, ranking, rating, correction, or a YAML or JSON file of a form."
    )
    guidelines: str | None = flag(None, "A text file with guidelines for people, shown beside the questions.")
    questions: int = flag(100, "Questions of a round to train on.")
    held_out_questions: int = flag(32, "Questions of a round about held-out prompts, drawn at random.")
    comparisons: int = flag(16, "Comparisons of the policy with the start that are asked after each round; 0 for none.")
    prompts_per_round: int | None = flag(None, "Prompts that get candidates in a round; all by default.")
    candidates_per_prompt: int = flag(4, "Completions sampled to each of these prompts.")
    choose: str = flag(
        RANDOM,
        "Candidates to ask about: random, disagreement (of an ensemble's members) or uncertainty (of the reward model)."
        " The first round has no reward model, and draws at random.",
    )
    max_completion_length: int = flag(64, "Longest completion, in tokens.")
    temperature: float = flag(0.7, "Sampling temperature, everywhere.")

    annotator: str = flag(
        "me",
        "Who answers: me (on a page that opens), people (on the page of hf-rlhf label), cheerful (simulated),"
        " similarity (to the column reference), or judge (a model).",
    )
    port: int = flag(0, "With annotator=me: port of the page; 0 takes a free one.")
    open: bool = flag(True, "With annotator=me: open the page in a browser.")
    overlap: int = flag(1, "Annotators who answer each question.")
    num_annotators: int = flag(1, "Simulated annotators, who answer in turns.")
    annotator_noise: float = flag(0.05, "Temperature of a simulated annotator's choices.")
    annotator_taste: float = flag(0.0, "Standard deviation of each simulated annotator's own opinion of a text.")
    annotator_position_bias: float = flag(0.0, "By how much the completion shown first seems better to it.")
    annotator_tie_margin: float = flag(0.05, "Ratings that differ by no more are a tie to it.")
    judge_model: str | None = flag(None, "Model of the annotator judge: folder, adapter, Hub name, or a server's name.")
    judge_url: str | None = flag(None, "OpenAI-compatible server of the judge; by default it is loaded here.")
    judge_api_key_env: str | None = flag(None, "Variable of the environment with the key for judge_url.")

    num_reward_models: int = flag(1, "Members of the reward model; disagreement needs two or more.")
    reward_learning_rate: float = flag(5e-4, "Peak learning rate of the reward model.")
    reward_epochs: float = flag(1.0, "Passes of the reward model over all preferences so far.")
    reward_batch_size: int = flag(8, "Preferences of an update of the reward model.")
    reward_options: dict | str | None = flag(None, "More flags of hf-rlhf reward: a mapping in YAML, or JSON.")
    ppo_iterations: int = flag(10, "Iterations of PPO in a round.")
    rollout_batch_size: int = flag(32, "Completions of an iteration.")
    num_ppo_epochs: int = flag(2, "Passes over the completions of an iteration.")
    ppo_learning_rate: float = flag(5e-4, "Peak learning rate of PPO.")
    kl_coef: float = flag(0.05, "Weight of the KL.")
    kl_to: str = flag(TO_START, "Model that the KL is measured to: start, or last (the policy of the round before).")
    ppo_options: dict | str | None = flag(None, "More flags of hf-rlhf ppo: a mapping in YAML, or JSON.")

    def __post_init__(self):
        self._require_numbers()
        require_one_of("annotator", self.annotator, ANNOTATORS)
        require_one_of("kl_to", self.kl_to, (TO_START, TO_LAST))
        require_one_of("choose", self.choose, CHOICES)
        require_choice(self.choose, members=self.num_reward_models)
        self.reward_options = _options("reward_options", self.reward_options, RewardTrainingArguments)
        self.ppo_options = _options("ppo_options", self.ppo_options, PPOConfig)
        if self.annotator == JUDGE and self.judge_model is None:
            raise InputError("judge_model is missing: annotator=judge needs a model. Give one.")
        if self.annotator != JUDGE and (self.judge_model or self.judge_url):
            raise InputError(
                f"judge_model={self.judge_model or self.judge_url} is invalid with annotator={self.annotator}. Omit it,"
                f" or set annotator to {JUDGE}."
            )
        if self.annotator == CHEERFUL and self.overlap > self.num_annotators:
            raise InputError(
                f"overlap={self.overlap} is invalid with num_annotators={self.num_annotators}: so many cannot answer a"
                " question. Raise num_annotators."
            )
        if self.annotator in (ME, SIMILARITY, JUDGE) and self.overlap > 1:
            raise InputError(
                f"overlap={self.overlap} is invalid: annotator={self.annotator} is one."
                f" {f'Set annotator to {PEOPLE}.' if self.annotator == ME else 'Omit it.'}"
            )

    def _require_numbers(self) -> None:
        at_least = {
            "rounds": 1, "held_out_prompts": 1, "questions": 1, "held_out_questions": 1, "comparisons": 0,
            "candidates_per_prompt": 1, "overlap": 1, "num_annotators": 1, "num_reward_models": 1, "ppo_iterations": 1,
            "reward_batch_size": 1, "rollout_batch_size": 2, "num_ppo_epochs": 1, "annotator_noise": 0,
            "annotator_taste": 0, "annotator_tie_margin": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise InputError(f"{name}={getattr(self, name)} is invalid: it must be at least {least}.")
        if self.temperature <= 0:
            raise InputError(
                f"temperature={self.temperature} is invalid: candidates have to differ to be compared. Use 0.7, say."
            )
        if self.rollout_batch_size % 2:
            raise InputError(f"rollout_batch_size={self.rollout_batch_size} is invalid: it must be even.")
        if self.prompts_per_round is not None and self.prompts_per_round < 1:
            raise InputError(f"prompts_per_round={self.prompts_per_round} is invalid: it must be at least 1.")

    @property
    def asks_people(self) -> bool:
        """True if people answer, through the page."""
        return self.annotator in (ME, PEOPLE)

    @property
    def sampling(self) -> Sampling:
        """Sampling settings of candidates and evaluations."""
        return Sampling(max_completion_length=self.max_completion_length, temperature=self.temperature)

    def read_form(self) -> Form:
        """Return the form that `form` names. Raises `InputError`."""
        if Path(self.form).suffix not in (".yaml", ".yml", ".json"):
            form = form_from_json(self.form)
        else:
            try:
                form = form_from_json(yaml.safe_load(Path(self.form).read_text(encoding="utf-8")), self.form)
            except (OSError, yaml.YAMLError) as error:
                raise InputError(
                    f"form={self.form} is invalid: it cannot be read ({error}). Check the file."
                ) from error
        if form.kind == SPAN:
            raise InputError(f"form={form.kind} is invalid: no reward model is trained on spans. Use {PAIRWISE}, say.")
        if self.candidates_per_prompt < (1 if form.kind == CORRECTION else 2):
            raise InputError(
                f"candidates_per_prompt={self.candidates_per_prompt} is invalid: nothing could be compared. Use 2 or"
                " more."
            )
        return form

    def read_guidelines(self) -> str | None:
        """Return the text of `guidelines`. Raises `InputError` for a file that cannot be read."""
        try:
            return None if self.guidelines is None else Path(self.guidelines).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"guidelines={self.guidelines} is invalid: it cannot be read ({error}). Check the file."
            ) from error


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `InputError` for a value that is none of those known."""
    if value not in known:
        raise InputError(f"{name}={value} is invalid: it must be one of {', '.join(known)}.")


def _options(name: str, value: Any, kind: type) -> dict[str, Any]:
    """Return further flags as a mapping. Raises `InputError` for what is none, and for flags that `kind` has not."""
    try:
        options = json.loads(value) if isinstance(value, str) else value or {}
    except ValueError as error:
        raise InputError(f"{name}={value} is invalid: it is no JSON ({error}). Write it as a mapping.") from error
    if not isinstance(options, Mapping):
        raise InputError(f'{name}={value} is invalid: it is no mapping. Write it as {{"max_grad_norm": 0.5}}, say.')
    known = {field.name for field in fields(kind)} - {"output_dir", "resume_from_checkpoint", "seed"}
    if unknown := [key for key in options if key not in known]:
        raise InputError(f"{name} is invalid: {kind.__name__} has no flag {unknown[0]} that may be set here. Omit it.")
    return dict(options)
