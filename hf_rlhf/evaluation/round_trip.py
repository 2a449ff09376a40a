"""The round trip of a reward model: each form in which it is saved gives the rewards that it gave in memory.

Forms: loaded again, alone and beside others in a batch, padded on either side; merged; a pipeline; another dtype.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hf_rlhf.data.tokens import NOTHING, row_ids
from hf_rlhf.errors import RunFailed
from hf_rlhf.models.adapters import base_of, compute_in_base_dtype
from hf_rlhf.models.load import without_zero_3
from hf_rlhf.models.positions import table_positions
from hf_rlhf.models.reward_model import SeparateRewardModel, load_reward_model
from hf_rlhf.ops.padding import pad_sequences
from hf_rlhf.rewards.learned import LearnedReward

Side = Literal["right", "left"]

PROBE_ROWS, CANDIDATES = 8, 512
_LARGE = 2e9  # weights of a model that is not copied to fp32 for a check

logger = logging.getLogger(__name__)


class Bounds(NamedTuple):
    """Largest differences of rewards, as shares of the largest reward (of 1, if that is larger)."""

    reload: float  # in memory, and loaded again
    batch: float  # alone and beside others, padded left and right
    merged: float  # the adapter beside its base, and merged into it
    dtype: float = 2e-1  # in fp32 and in bf16

    @classmethod
    def of(cls, model: Any, *, casts: bool = False) -> "Bounds":
        """Return the bounds of a model by its dtype and device; `casts`: what trained it cast the weights to bf16."""
        if base_of(model).dtype != torch.float32:
            return cls(5e-2 if casts else 1e-3, 2e-1, 2e-1)  # 30 blocks in bf16: up to 0.12, and 0.06
        # a GPU's kernels differ by the shape of a batch
        batch = 1e-5 if next(model.parameters()).device.type == "cpu" else 1e-4
        return cls(5e-2 if casts else 1e-3, batch, max(batch, 1e-4))


class Probe(NamedTuple):
    """Texts of different length that get a reward in each form, and their ids by the tokenizer of the training."""

    prompts: list[Any]
    completions: list[Any]
    options: Mapping[str, list[Any]]
    ids: list[list[int]]

    @classmethod
    def of(cls, tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Any], options=NOTHING) -> "Probe":
        """Choose up to `PROBE_ROWS` of the first texts, from the shortest to the one of median length, by their tokens.

        Longer ones would take long on a CPU and show no more.
        """
        rows = range(min(len(prompts), CANDIDATES))
        ids = _ids_by(tokenizer, [prompts[row] for row in rows], completions, options)
        ordered = sorted(rows, key=lambda row: len(ids[row]))
        ordered = ordered[: max(len(ordered) // 2 + 1, PROBE_ROWS)]
        count = min(PROBE_ROWS, len(ordered))
        chosen = [ordered[round(i * (len(ordered) - 1) / max(count - 1, 1))] for i in range(count)]
        return cls(
            [prompts[row] for row in chosen],
            [completions[row] for row in chosen],
            {name: [values[row] for row in chosen] for name, values in options.items()},
            [ids[row] for row in chosen],
        )

    def rewards(
        self, model: Callable[[Tensor, Tensor], Tensor], pad_id: int, device: Any, *, side: Side = "right", size=None
    ):
        """Return the reward of each text, `size` of them in a batch (all by default), padded on one side."""
        size, found = size or len(self.ids), []
        for start in range(0, len(self.ids), size):
            batch = self.ids[start : start + size]
            mask = pad_sequences([[1] * len(ids) for ids in batch], 0, side).to(device)
            found += model(pad_sequences(batch, pad_id, side).to(device), mask).float().tolist()
        return found


class Form(NamedTuple):
    """Rewards of the probe in one form, and the bound on their difference from the reference."""

    name: str
    rewards: list[float]
    bound: float


class Reloaded(NamedTuple):
    """A saved reward model, loaded as a user would, and what its forms gave."""

    model: SeparateRewardModel
    reward: LearnedReward
    rewards: list[float]
    gaps: dict[str, float]


def check_saved(
    folder: Path, probe: Probe, expected: list[float], load_kwargs: dict[str, Any], device: Any, *, casts: bool = False
) -> Reloaded:
    """Load what was saved and compare it with the rewards `expected`, and with itself in other batches.

    Raises `RunFailed` with the forms that differ. For one rank: it takes no other.
    """
    with without_zero_3():  # under which loading would take all ranks
        model, tokenizer = load_reward_model(str(folder), **load_kwargs)
    assert isinstance(model, SeparateRewardModel)
    model.model.to(device)  # pyright: ignore[reportCallIssue]
    reward, bounds = LearnedReward(model, tokenizer, device=device), Bounds.of(model.model, casts=casts)
    _require_ids(folder, probe, tokenizer)
    pad_id = tokenizer.pad_token_id or 0
    saved = probe.rewards(model, pad_id, device)
    gap = require_same(folder, expected, [Form("loaded again", saved, bounds.reload)])
    forms = [Form("loaded again, one text at a time", probe.rewards(model, pad_id, device, size=1), bounds.batch)]
    if "left" in padding_sides(model.model):
        left = probe.rewards(_plain_forward(model.model), pad_id, device, side="left")
        forms.append(Form("loaded again, padded on the left", left, bounds.batch))
    return Reloaded(model, reward, saved, {"reload_gap": gap, "padding_gap": require_same(folder, saved, forms)})


def check_plain(folder: Path, probe: Probe, expected: list[float], device: Any, **kwargs: Any) -> dict[str, float]:
    """Load a plain classifier by transformers' pipeline, and compare its forms with the rewards `expected`.

    The pipeline with one text at a time and with a padded batch, and the other one of fp32 and bf16. Raises `RunFailed`
    with the forms that differ.
    """
    from transformers import AutoConfig, pipeline

    config = AutoConfig.from_pretrained(folder, **kwargs)
    placed = {} if getattr(config, "quantization_config", None) else {"device": device}  # 4-bit weights stay in place
    with without_zero_3():
        settings: dict[str, Any] = {"function_to_apply": "none", "dtype": "auto"} | placed | kwargs
        classify: Any = pipeline("text-classification", model=str(folder), **settings)
    model, tokenizer = classify.model.eval(), classify.tokenizer
    _require_ids(folder, probe, tokenizer)
    bounds = Bounds.of(model)
    if getattr(model, "is_quantized", False):  # merging rounds the weights to 4 bits again
        bounds = bounds._replace(merged=2.5e-1)
    pad_id = tokenizer.pad_token_id or 0
    plain = probe.rewards(_plain_forward(model), pad_id, device)
    gap = require_same(folder, expected, [Form("a plain classifier", plain, bounds.merged)])
    forms = [
        *_by_pipeline(classify, probe, device, bounds.batch),
        *_in_other_dtype(model, probe, pad_id, device, bounds.dtype),  # last: the model stays in that dtype
    ]
    require_same(folder, plain, forms)
    return {"merged_gap": gap}


def require_same(folder: Path, expected: list[float], forms: Sequence[Form]) -> float:
    """Return the largest difference from the rewards `expected`. Raises `RunFailed` for forms beyond their bound."""
    reference = torch.tensor(expected, dtype=torch.float64)
    scale, gaps, wrong = max(1.0, reference.abs().max().item()), [0.0], []
    for form in forms:
        gap = (torch.tensor(form.rewards, dtype=torch.float64) - reference).abs().max().item()  # NaN if one is NaN
        gaps.append(gap)
        if not gap <= form.bound * scale:
            wrong.append(f"{form.name} (largest difference {gap:.3g}, allowed {form.bound * scale:.3g})")
    if wrong:
        raise RunFailed(
            f"the reward model saved in {folder} gives other rewards to the same {len(expected)} texts in these forms:"
            f" {'; '.join(wrong)}. Do not use it"
        )
    return max(gaps)


def padding_sides(model: Any) -> list[Side]:
    """Return the sides on which padding leaves rewards as they are; the left only where positions are relative.

    With a table of learned positions, in an encoder and in a recurrent model, states shift with padding on the left.
    """
    classifier = base_of(model)
    is_decoder = hasattr(classifier, "score") and not getattr(classifier, "_is_stateful", False)
    return ["right", "left"] if is_decoder and table_positions(classifier) is None else ["right"]


def _ids_by(tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Any], options) -> list[list[int]]:
    """Return the ids of each text as rewards and the training read it."""
    by_row = [{name: values[row] for name, values in options.items()} for row in range(len(prompts))]
    return [
        row_ids(prompt + completions[row], tokenizer, continued=False, options=by_row[row])
        for row, prompt in enumerate(prompts)
    ]


def _require_ids(folder: Path, probe: Probe, tokenizer: Any) -> None:
    """Raise `RunFailed` when the saved tokenizer reads a text of the probe otherwise than that of the training."""
    for found, ids in zip(_ids_by(tokenizer, probe.prompts, probe.completions, probe.options), probe.ids, strict=True):
        if found != ids:
            raise RunFailed(
                f"the tokenizer saved in {folder} reads a text otherwise than that of the training: {found[:8]}..."
                f" instead of {ids[:8]}... Do not use it"
            )


def _plain_forward(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    @torch.no_grad()
    def forward(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with compute_in_base_dtype(model):
            return model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0]

    return forward


def _by_pipeline(classify: Any, probe: Probe, device: Any, bound: float) -> list[Form]:
    """Return the rewards of the pipeline, one text at a time, and all in one batch that is padded on the left.

    A tokenizer that cannot read the probe's ids from text is passed over: then the pipeline's model gets the ids.
    """
    tokenizer, name = classify.tokenizer, "pipeline('text-classification')"
    texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in probe.ids]
    fitting = [
        settings
        for settings in ({}, {"add_special_tokens": False})
        if tokenizer(texts, **settings)["input_ids"] == probe.ids
    ]

    def rewards(side: Side, size: int) -> list[float]:
        if not fitting:
            return probe.rewards(
                _plain_forward(classify.model), tokenizer.pad_token_id or 0, device, side=side, size=size
            )
        before, tokenizer.padding_side = tokenizer.padding_side, side
        try:
            return [each["score"] for each in classify(texts, batch_size=size, **fitting[0])]
        finally:
            tokenizer.padding_side = before

    forms = [Form(f"{name}, one text at a time", rewards("right", 1), bound)]
    side = padding_sides(classify.model)[-1]
    if side == "left" or tokenizer.pad_token_id is not None:
        forms.append(Form(f"{name}, in a batch padded on the {side}", rewards(side, len(probe.ids)), bound))
    return forms


def _in_other_dtype(model: Any, probe: Probe, pad_id: int, device: Any, bound: float) -> list[Form]:
    """Return the rewards in bf16 of a model in fp32, and the other way round; the model stays in that dtype."""
    other = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}.get(model.dtype)
    if other is None or getattr(model, "is_quantized", False):
        return []
    if other == torch.float32 and model.num_parameters() > _LARGE:
        return []
    rewards = probe.rewards(_plain_forward(model.to(other)), pad_id, device)
    return [Form(f"a plain classifier in {str(other).removeprefix('torch.')}", rewards, bound)]
