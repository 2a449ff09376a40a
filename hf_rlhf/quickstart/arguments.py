"""The settings of the quickstart, and the names of its stages' folders."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from hf_rlhf.models.load import EMBEDDED_MODEL
from hf_rlhf.recipes.arguments import ModelArguments, flag, peft_config
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Model

CANDIDATES, PREFERENCES, REWARD_MODEL, POLICY, EVALUATION = (
    "candidates", "preferences", "reward_model", "policy", "evaluation"
)  # fmt: skip
ROLLOUT_SIZE = 32
"""Replies of an iteration of PPO."""


@dataclass(frozen=True)
class Size:
    """Sizes that decide the duration of the quickstart. Their names are those of its flags."""

    messages: int
    candidates_per_prompt: int
    max_preferences: int
    ppo_iterations: int

    @classmethod
    def of_share(cls, share: float) -> "Size":
        """Return a share of the full size.

        The preferences shrink in proportion, and PPO more slowly, since it is the iterations that move the policy.
        """
        return cls(
            messages=round(216 * share),
            candidates_per_prompt=4 if share == 1 else 3,  # of three, nearly as many preferences as are used
            max_preferences=round(400 * share),
            ppo_iterations=round(18 * (share + 0.5) / 1.5),
        )


SIZE_FLAGS = tuple(field.name for field in fields(Size))


@dataclass
class QuickstartArguments:
    """Settings of the quickstart. Those that are None are chosen so that the run ends within `minutes`."""

    output_dir: str = flag("runs/quickstart", "Folder for the results of all stages.")
    model_name_or_path: str = flag(EMBEDDED_MODEL, "An instruct model: Hub name, folder, or the embedded one.")
    minutes: float = flag(
        8, "Time for all stages. Sizes that are not given are chosen to fit into it, up to the full size."
    )
    seed: int = flag(0, "Seed of all random numbers.")
    messages: int | None = flag(
        None, "Messages to sample replies to; held-out ones come on top, in proportion. 216 at the full size."
    )
    candidates_per_prompt: int | None = flag(None, "Replies sampled to each message; 4 at the full size.")
    max_completion_length: int = flag(32, "Longest reply, in tokens.")
    temperature: float = flag(0.7, "Sampling temperature, in every stage.")
    annotator: str = flag(
        "cheerful", "Who prefers one of two replies: cheerful (a program), or me (you, on a page that opens)."
    )
    judgments: int = flag(60, "With annotator=me: pairs of replies that you are asked about.")
    port: int = flag(0, "With annotator=me: port of the page; 0 takes a free one.")
    open: bool = flag(True, "With annotator=me: open the page in a browser.")
    annotator_noise: float = flag(0.05, "Temperature of the annotator's choice; 0 always takes the better reply.")
    annotator_tie_margin: float = flag(0.1, "Ratings closer than this give no preference.")
    max_preferences: int | None = flag(None, "Preferences to train the reward model on, at most; 400 at the full size.")
    lora_target_modules: str = flag("q_proj,v_proj,o_proj", "Layers that get LoRA, separated by commas.")
    reward_learning_rate: float = flag(5e-4, "Peak learning rate of the reward model.")
    ppo_iterations: int | None = flag(None, "Iterations of PPO, 32 replies each; 18 at the full size.")
    num_ppo_epochs: int = flag(2, "Passes over the replies of an iteration.")
    ppo_learning_rate: float = flag(5e-4, "Peak learning rate of PPO.")
    kl_coef: float = flag(0.03, "Weight of the KL to the start.")

    @property
    def size(self) -> Size:
        """The sizes that are given, and for the others the full ones."""
        given = {name: getattr(self, name) for name in SIZE_FLAGS if getattr(self, name) is not None}
        return Size(**(asdict(Size.of_share(1)) | given))

    @property
    def sampling(self) -> Sampling:
        """Sampling settings of the replies, in every stage."""
        return Sampling(max_completion_length=self.max_completion_length, temperature=self.temperature)

    def lora(self, model: Model) -> Any:
        """Return the LoRA config of both adapters: attention only.

        That is enough here, and half the work of adapting every layer.
        """
        modules = self.lora_target_modules.split(",")
        flags = ModelArguments(model_name_or_path=self.model_name_or_path, lora_target_modules=modules)
        return peft_config(flags, model)

    @property
    def model_kwargs(self) -> dict[str, str]:
        """Arguments for loading the base.

        On a CPU, short sequences train a third faster with plain attention than with fused.
        """
        return {} if torch.accelerator.is_available() else {"attn_implementation": "eager"}
