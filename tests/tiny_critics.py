"""A base with its tokenizer, reward models trained on it, and every way to give a policy a critic."""

from pathlib import Path

import torch
from tiny import make_lora, make_model, make_tokenizer, make_trainer, perturb

LAST = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}
"""LoRA that leaves the lower one of two blocks untrained."""


def make_places(folder):
    """Folders by name: `base`, `other` (another base), `reward` and `upper` (reward models on `base`), `full_reward`.

    `reward` has LoRA on both blocks, `upper` on the last one.
    """
    from peft import get_peft_model

    from hf_rlhf.models.load import load_sequence_classifier

    places = {name: str(Path(folder) / name) for name in ("base", "other", "reward", "upper", "full_reward")}
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(places["base"])
    make_model(tokenizer, seed=4).save_pretrained(places["other"])
    for name, layers in (("reward", {}), ("upper", LAST)):
        config = make_lora(task_type="SEQ_CLS", modules_to_save=["score"], **layers)
        classifier = get_peft_model(load_sequence_classifier(places["base"], dtype="float32"), config)
        perturb(perturb(classifier, only="lora"), only="score", scale=0.5, seed=1).save_pretrained(places[name])
    perturb(load_sequence_classifier(places["base"], dtype="float32"), seed=2).save_pretrained(places["full_reward"])
    for place in places.values():
        tokenizer.save_pretrained(place)
    return places


def make_critic_trainer(folder, places, **flags):
    """Like `make_trainer`, but with a policy that was loaded from `base`; `dtype` is the base's."""
    from hf_rlhf.models.load import load_causal_lm

    model = load_causal_lm(places["base"], dtype=flags.pop("dtype", "float32"))
    return make_trainer(folder, model=model, **flags)


def given_classifier(places):
    """A sequence classifier as an object."""
    from hf_rlhf.models.load import load_sequence_classifier

    return load_sequence_classifier(places["full_reward"], dtype="float32")


# Flags by name, as functions of the places. The policy has LoRA unless `lora` says otherwise.
CRITICS = {
    "linear head": lambda places: {},
    "mlp head": lambda places: {"value_head_mlp_size": 8},
    "detached head": lambda places: {"value_head_detach": True},
    "adapter": lambda places: {"critic": "adapter"},
    "adapter with mlp head": lambda places: {"critic": "adapter", "value_head_mlp_size": 8},
    "adapter of a reward": lambda places: {"critic": "adapter", "critic_path": places["reward"]},
    "model": lambda places: {"critic": "model"},
    "model with mlp head": lambda places: {"critic": "model", "value_head_mlp_size": 8},
    "model of a reward adapter": lambda places: {"critic": "model", "critic_path": places["reward"]},
    "model of a full reward": lambda places: {"critic": "model", "critic_path": places["full_reward"]},
    "given model": lambda places: {"critic": "model", "trainer_kwargs": {"value_model": given_classifier(places)}},
    "full policy, linear head": lambda places: {"lora": None},
    "full policy, model": lambda places: {"lora": None, "critic": "model"},
    "full policy, model of a reward adapter": lambda places: {
        "lora": None, "critic": "model", "critic_path": places["reward"],
    },
    "full policy, model of a full reward": lambda places: {
        "lora": None, "critic": "model", "critic_path": places["full_reward"],
    },
    "full policy, given model": lambda places: {
        "lora": None, "critic": "model", "trainer_kwargs": {"value_model": given_classifier(places)},
    },
}  # fmt: skip

WHOLE_TEXTS = [[5, 9, 3], [7, 8, 20, 11, 4, 6], [12], [14, 13, 2, 1, 10]]  # token ids, none of them padding


def scores_of(model):
    """Return the reward model's scores of the whole texts."""
    length = max(map(len, WHOLE_TEXTS))
    ids = torch.tensor([text + [0] * (length - len(text)) for text in WHOLE_TEXTS])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in WHOLE_TEXTS])
    return model(ids, mask).tolist()
