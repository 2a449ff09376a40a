"""A judge that is loaded here: it reads the probabilities of the answers, instead of sampling one."""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from hf_rlhf.data.tokens import row_ids
from hf_rlhf.errors import InputError
from hf_rlhf.judges.base import Judge
from hf_rlhf.judges.questions import LETTERS, RATINGS, Question, comparison_messages, rating_messages
from hf_rlhf.models.adapted import load_policy
from hf_rlhf.models.adapter_files import adapter_folder
from hf_rlhf.models.adapters import base_of, compute_in_base_dtype, keep_modes
from hf_rlhf.models.backbone import logits_head, states_at
from hf_rlhf.models.fingerprints import identity, model_fingerprint
from hf_rlhf.models.load import load_tokenizer, public_name
from hf_rlhf.models.positions import positions
from hf_rlhf.models.precision import NATIVE, current_device
from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences
from hf_rlhf.types import Message, Model

_PLAIN_ENDING = "\n\nAnswer:"  # for a model without a chat template


class ModelJudge(Judge):
    """A language model whose next-token probabilities are the answer.

    P(A is better) = p(A) / (p(A) + p(B)), and a rating is the mean of 1 to 5 by their probabilities, so it is seldom a
    whole number. A letter's probability is that of its tokens with and without a space before it.

    Args:
        model: a causal language model, with or without a PEFT wrapper.
        tokenizer: the model's; its chat template puts the question.
        name: under which reports name it.
        question: see `Judge`.
        rubric: see `Judge`.
        batch_size: questions in one forward pass.

    Raises `InputError` when the answers are no single tokens of the tokenizer.
    """

    def __init__(
        self,
        model: Model,
        tokenizer,
        *,
        name: str | None = None,
        question: str | None = None,
        rubric: str | None = None,
        batch_size: int = 16,
    ):
        super().__init__(name or str(base_of(model).config._name_or_path) or type(model).__name__, question, rubric)
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.max_length = positions(model)
        self._letters = [self._tokens_of(letter) for letter in LETTERS]
        self._ratings = [self._tokens_of(rating) for rating in RATINGS]

    @classmethod
    def load(cls, name_or_path: str, *, dtype: str = NATIVE, **settings) -> "ModelJudge":
        """Load a model or adapter by folder, Hub name or as the embedded one; `settings` are those of the class."""
        model = load_policy(name_or_path, adds_adapter=True, dtype=dtype).to(current_device())
        tokenizer = load_tokenizer(adapter_folder(name_or_path))
        return cls(model, tokenizer, name=public_name(name_or_path), **settings)

    @cached_property
    def cache_key(self) -> str:
        """Text that names the weights, by a digest, and the wording."""
        return identity("judge", model_fingerprint(self.model, self.tokenizer), self.question, self.rubric)

    def _prefer_first(self, questions: Sequence[Question], on_done: Callable[[int], None]) -> list[float]:
        asked = [comparison_messages(question, ties=False) for question in questions]
        return self._probabilities(asked, self._letters, on_done)[:, 0].tolist()

    def _rate(self, questions: Sequence[Question], on_done: Callable[[int], None]) -> list[float]:
        asked = list(map(rating_messages, questions))
        ratings = torch.arange(1.0, 1.0 + len(RATINGS))
        return (self._probabilities(asked, self._ratings, on_done) @ ratings).tolist()

    @torch.no_grad()
    def _probabilities(
        self, asked: Sequence[list[Message]], answers: Sequence[Sequence[int]], on_done: Callable[[int], None]
    ) -> Tensor:
        """Return `(B, answers)` fp32: the probabilities of the answers' tokens, made to sum up to 1."""
        ids = list(map(self._ids, asked))
        self._require_short_enough(ids)
        device = next(self.model.parameters()).device
        found = torch.empty(len(ids), len(answers))
        by_length = sorted(range(len(ids)), key=lambda b: len(ids[b]))
        with keep_modes(self.model), compute_in_base_dtype(self.model):
            self.model.eval()
            head = logits_head(base_of(self.model), self._head_of(answers))
            for start in range(0, len(ids), self.batch_size):
                rows = by_length[start : start + self.batch_size]
                input_ids = pad_sequences([ids[b] for b in rows], self.tokenizer.pad_token_id or 0).to(device)
                lengths = torch.tensor([len(ids[b]) for b in rows], device=device)
                mask = lengths_to_mask(lengths, input_ids.shape[1])
                each = torch.arange(len(rows), device=device)
                states = states_at(base_of(self.model), input_ids, mask, each, lengths - 1)
                logits = head(states).float().split(list(map(len, answers)), dim=1)
                found[rows] = torch.stack([each.logsumexp(dim=1) for each in logits], dim=1).softmax(dim=1).cpu()
                on_done(len(rows))
        self.counts.update(asked=len(ids), repeated=0, unreadable=0, failed=0)
        if not found.isfinite().all():
            raise FloatingPointError(f"the judge {self.name} returned NaN logits")
        return found

    def _head_of(self, answers: Sequence[Sequence[int]]) -> Callable[[Tensor], Tensor]:
        """Return the rows of the head for the answers' tokens, in fp32: bf16 rounds a logit of 20 to 1/8."""
        tokens = [token for of_answer in answers for token in of_answer]
        head = base_of(self.model).get_output_embeddings()
        if type(head) is not nn.Linear:  # such as one with an adapter
            return lambda states: head(states)[:, tokens]
        weight, bias = head.weight[tokens].float(), None if head.bias is None else head.bias[tokens].float()
        return lambda states: nn.functional.linear(states.float(), weight, bias)

    def _ids(self, messages: list[Message]) -> list[int]:
        if self.tokenizer.chat_template:
            return row_ids(messages, self.tokenizer, continued=True)
        return row_ids(messages[0]["content"] + _PLAIN_ENDING, self.tokenizer, continued=True)

    def _tokens_of(self, answer: str) -> list[int]:
        """Return the tokens that stand for an answer, with and without a space before it."""
        spelled = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (answer, f" {answer}")]
        unknown = self.tokenizer.unk_token_id
        tokens = sorted({ids[0] for ids in spelled if len(ids) == 1 and ids[0] != unknown})
        if not tokens:
            raise InputError(
                f"the model {self.name} cannot be a judge: its tokenizer has no token for the answer {answer!r}. Take"
                " another model, or one behind a server (url)."
            )
        return tokens

    def _require_short_enough(self, ids: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, ids), default=0)
        if self.max_length is not None and longest > self.max_length:
            raise InputError(
                f"the judge {self.name} takes {self.max_length} tokens, and a question to it has {longest}. Make"
                " prompts or completions shorter (max_prompt_length, max_completion_length), or take a judge with more"
                " positions."
            )
