"""An ensemble of reward models: adapters on one base whose rewards are combined, and whose disagreement is logged."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapter_files import adapter_base, hub_folder
from hf_rlhf.models.positions import positions
from hf_rlhf.models.precision import native_dtype
from hf_rlhf.models.reward_model import SeparateRewardModel, load_reward_adapters, load_reward_tokenizer
from hf_rlhf.models.same_base import same_model
from hf_rlhf.ops.preference import BINARY, COMBINATIONS, REGRESSION, combined_rewards, disagreement
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.types import Model, Prompt

ENSEMBLE_FILE = "ensemble.json"


@dataclass(frozen=True)
class EnsembleFile:
    """Contents of ensemble.json.

    Attributes:
        wanted: how many members the ensemble has once it is trained.
        members: folders beside the file of those that are trained and checked.
        combination, std_coef: the reward, see `combined_rewards`.
        settings: those of the training that a resumed run has to share.
        centers: the mean reward of each member on some training texts. A loss of comparisons leaves the level of a
            member free, so `min` would be the member of the lowest level. Empty where the level has a meaning (ratings,
            labels).
    """

    wanted: int
    members: tuple[str, ...] = ()
    combination: str = "mean"
    std_coef: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)
    centers: tuple[float, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "EnsembleFile":
        """Read ensemble.json of a folder. Raises `InputError` for one that is damaged."""
        file = folder / ENSEMBLE_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            read = cls(**{**content, "members": tuple(content["members"]), "centers": tuple(content["centers"])})
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{file} is invalid: it describes no ensemble ({error}). Write it again, by training the ensemble with"
                " --resume auto."
            ) from error
        for member in read.members:
            if not (folder / str(member)).is_dir() or Path(str(member)).name != member:
                raise InputError(f"{file} is invalid: {member!r} is no folder beside it. Put it there, or omit it.")
        require_combination(read.combination, read.std_coef)
        return read

    def combined(self, combination: str | None = None, std_coef: float | None = None) -> str:
        """Return in words how rewards are combined, by these or else by the file, as `mean_minus_std (lambda 2)`."""
        combination = combination or self.combination
        coef = self.std_coef if std_coef is None else std_coef
        return f"{combination} (lambda {coef:g})" if combination == "mean_minus_std" else combination

    @property
    def needs_centers(self) -> bool:
        """True if the loss compares completions, and the members' levels are not measured yet."""
        compares = self.settings.get("reward_loss") not in (REGRESSION, BINARY)
        return compares and len(self.centers) != len(self.members)

    def write(self, folder: Path) -> None:
        """Write ensemble.json, whole or not at all."""
        scratch = folder / f".{ENSEMBLE_FILE}.{os.getpid()}"
        scratch.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        os.replace(scratch, folder / ENSEMBLE_FILE)


class EnsembleReward(LearnedReward):
    """Several reward models with one tokenizer as one reward function.

    Logs the standard deviation over members as the column `<name>_disagreement` of samples.jsonl and as a metric.

    Args:
        members: each maps `(input_ids (B, L), attention_mask (B, L))`, right-padded, to rewards `(B,)`.
        tokenizer: that of all.
        combination, std_coef: see `combined_rewards`.
        centers: the level of each member, which all exchange for their mean; () leaves the levels as they are.
        settings: those of `LearnedReward`.
    """

    def __init__(
        self,
        members: Sequence[Any],
        tokenizer,
        *,
        combination: str = "mean",
        std_coef: float = 1.0,
        centers: Sequence[float] = (),
        **settings: Any,
    ):
        require_combination(combination, std_coef)
        super().__init__(self._by_member, tokenizer, **settings)
        self.members, self.combination, self.std_coef = list(members), combination, std_coef
        self.centers = tuple(centers)

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Any], log_extra=None, log_metric=None, **columns: Any
    ) -> list[float]:
        """Return one reward for each completion, and log how far members disagree on it."""
        rewards = self.rewards(prompts, completions, columns).double()
        if self.centers and len(rewards):
            levels = torch.tensor(self.centers, dtype=torch.float64)
            rewards = rewards - levels + levels.mean()
        spread = disagreement(rewards)
        if log_extra is not None:
            log_extra(f"{self.name}_disagreement", spread.tolist())
        if log_metric is not None and len(spread):
            log_metric(f"{self.name}_disagreement", spread.mean().item())
        return combined_rewards(rewards, self.combination, self.std_coef).tolist()

    def _by_member(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.stack([member(input_ids, attention_mask) for member in self.members], dim=1)


def require_combination(combination: str, std_coef: float) -> None:
    """Raise `InputError` unless these say how the rewards of an ensemble are combined."""
    if combination not in COMBINATIONS:
        raise InputError(f"ensemble_reward={combination} is invalid: it must be one of {', '.join(COMBINATIONS)}.")
    if not isinstance(std_coef, (int, float)) or not math.isfinite(std_coef) or std_coef < 0:
        raise InputError(f"ensemble_std_coef={std_coef} is invalid: it must be a number from 0 on.")


def ensemble_folder(name_or_path: str) -> Path | None:
    """Return the local folder of an ensemble, by path or Hub name; None for a reward that is no ensemble."""
    if os.path.isdir(name_or_path):
        return Path(name_or_path) if (Path(name_or_path) / ENSEMBLE_FILE).is_file() else None
    wanted = ["*adapter_*", "*.json", "*.jinja", "*tokenizer*"]
    found = hub_folder(name_or_path, ENSEMBLE_FILE, allow_patterns=wanted, ignore_patterns=["*checkpoint-*"])
    return None if found is None else Path(found)


def load_ensemble(
    folder: Path,
    *,
    policy: Model | None = None,
    tokenizer: Any = None,
    name: str | None = None,
    device: torch.device | str = "cpu",
    combination: str | None = None,
    std_coef: float | None = None,
    unfinished: bool = False,
    **kwargs: Any,
) -> EnsembleReward:
    """Load an ensemble as a reward: adapters on the policy's base where they were trained on it, or on their own.

    Args:
        folder: with ensemble.json.
        policy: whose base the members may share.
        tokenizer: instead of that in `folder`.
        name: under which the reward is logged; by default that of the folder.
        device: for a base of their own.
        combination, std_coef: instead of those in the file.
        unfinished: whether the levels of the members may still have to be measured.
        kwargs: `dtype` of a base of their own (by default native), and others for `from_pretrained`.

    Raises `InputError` for an ensemble that is not trained to the end, and for members on different bases.
    """
    described = EnsembleFile.read(folder)
    if len(described.members) < described.wanted or (described.needs_centers and not unfinished):
        raise InputError(
            f"the ensemble {folder} is incomplete: {len(described.members)} of {described.wanted} members are trained,"
            f" and the levels of {len(described.centers)} are measured. Run its training again with --resume auto"
        )
    tokenizer = tokenizer or load_reward_tokenizer(str(folder))
    folders = [str(folder / member) for member in described.members]
    bases = [adapter_base(each) or each for each in folders]
    if other := [base for base in bases if not same_model(base, bases[0])]:
        raise InputError(
            f"the ensemble {folder} is invalid: its members are adapters of {bases[0]!r} and of {other[0]!r}. Take"
            " members of one base"
        )
    kwargs.setdefault("dtype", native_dtype(torch.device(device)))
    members = load_reward_adapters(folders, policy=policy, **kwargs)
    if isinstance(members[0], SeparateRewardModel):
        members[0].model.to(device)  # pyright: ignore[reportCallIssue]
    return EnsembleReward(
        members,
        tokenizer,
        combination=combination or described.combination,
        std_coef=described.std_coef if std_coef is None else std_coef,
        centers=() if described.needs_centers else described.centers,
        name=name or folder.name,
        max_length=positions(members[0].model),
        device=device,
    )
