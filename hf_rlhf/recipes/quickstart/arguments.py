"""The settings of the quickstart, and the names of its stages' folders."""

from dataclasses import dataclass

import torch

from hf_rlhf.models.load import EMBEDDED_MODEL
from hf_rlhf.recipes.arguments import ModelArguments, flag, peft_config
from hf_rlhf.rollout.sampling import Sampling

CANDIDATES, PREFERENCES, REWARD_MODEL, POLICY, EVALUATION = (
    "candidates", "preferences", "reward_model", "policy", "evaluation"
)  # fmt: skip


@dataclass
class QuickstartArguments:
    """Settings of the quickstart; the defaults are made for two CPU cores."""

    output_dir: str = flag("runs/quickstart", "Where every stage leaves its result.")
    model_name_or_path: str = flag(EMBEDDED_MODEL, "An instruct model: Hub name, folder, or the embedded one.")
    seed: int = flag(0, "Of every random number.")
    candidates_per_prompt: int = flag(4, "Replies sampled to each message.")
    max_completion_length: int = flag(32, "Longest reply, in tokens.")
    temperature: float = flag(0.7, "Sampling temperature, in every stage.")
    annotator_noise: float = flag(0.05, "Temperature of the annotator's choice; 0 always takes the better reply.")
    annotator_tie_margin: float = flag(0.1, "Scores closer than this give no preference.")
    max_preferences: int = flag(400, "Preferences to train the reward model on, at most.")
    lora_target_modules: str = flag("q_proj,v_proj,o_proj", "Layers that get LoRA, by commas.")
    reward_learning_rate: float = flag(5e-4, "Peak learning rate of the reward model.")
    ppo_iterations: int = flag(18, "Iterations of PPO, 32 replies each.")
    num_ppo_epochs: int = flag(2, "Passes over the replies of an iteration.")
    ppo_learning_rate: float = flag(5e-4, "Peak learning rate of PPO.")
    kl_coef: float = flag(0.03, "Weight of the KL to the start.")

    @property
    def sampling(self) -> Sampling:
        """How replies are sampled, in every stage."""
        return Sampling(max_completion_length=self.max_completion_length, temperature=self.temperature)

    @property
    def lora(self):
        """The LoRA config of both adapters: attention only, which is enough here and half the work of every layer."""
        modules = self.lora_target_modules.split(",")
        return peft_config(ModelArguments(model_name_or_path=self.model_name_or_path, lora_target_modules=modules))

    @property
    def model_kwargs(self) -> dict[str, str]:
        """How the base is loaded. On a CPU, short sequences train a third faster with plain attention than with fused."""
        return {} if torch.accelerator.is_available() else {"attn_implementation": "eager"}
