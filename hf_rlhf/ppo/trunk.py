"""The policy's trunk in a PPO run: whether it can be computed once per sequence and iteration, and its kept states."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from hf_rlhf.models.adapters import CRITIC, POLICY, REFERENCE, base_of
from hf_rlhf.models.critics import ModelCritic
from hf_rlhf.models.fast.attention import attention
from hf_rlhf.models.fast.trunk import CannotEnter, Trunk, TrunkStates, find_trunk, trunk_depth
from hf_rlhf.models.policy import PolicyWithValue
from hf_rlhf.models.reward_model import SharedRewardModel
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rewards.sources import reward_models
from hf_rlhf.types import Model, Sequences, Trajectory

logger = logging.getLogger(__name__)


class TrunkChoice(NamedTuple):
    """The trunk to keep states of, None for the plain way, and that in words; no words where every block is trained."""

    trunk: Trunk | None
    words: str
    rewards: Sequence[SharedRewardModel] = ()  # whose adapters begin above the trunk


def choose_trunk(
    policy: PolicyWithValue,
    args: PPOConfig,
    attention_kinds: Mapping[Model, str],
    *,
    sharded: bool,
    rewards: Rewards | None = None,
) -> TrunkChoice:
    """Find the untrained blocks, by a few tokens, and decide whether their states are kept.

    Args:
        policy: policy, critic and reference.
        args: of the run.
        attention_kinds: the attention of models that train with another than they have now.
        sharded: whether the launcher shards weights or optimizer state.
        rewards: of the run; an adapter of theirs never makes the trunk smaller.
    """
    if not args.reuse_trunk:
        return TrunkChoice(None, "")
    model = base_of(policy.model)
    kind = attention_kinds.get(model, model.config._attn_implementation)
    try:
        with attention(model, kind):
            trunk = find_trunk(model, (POLICY, CRITIC, REFERENCE))
    except CannotEnter as reason:
        return TrunkChoice(None, f"computed anew in every pass, since {reason}")
    if trunk is None:
        return TrunkChoice(None, "")
    blocks = f"the lowest {trunk.depth} of {trunk.blocks} blocks, which are not trained,"
    if sharded:
        return TrunkChoice(None, f"{blocks} are computed anew in every pass, since FSDP or DeepSpeed owns them")
    if not args.disable_dropout:
        return TrunkChoice(None, f"{blocks} are computed anew in every pass, since disable_dropout=false")
    roles = [
        name
        for name, apart in (
            ("critic", isinstance(policy.critic, ModelCritic)),
            ("reference", policy.reference_model is not None and not policy.reference_has_trunk),
        )
        if apart
    ]
    besides = f"; not for the {' and the '.join(roles)}, a model of its own" if roles else ""
    scorers = {} if rewards is None else reward_models(rewards)
    above: list[SharedRewardModel] = []
    for name, scorer in scorers.items():
        if not isinstance(scorer, SharedRewardModel) or scorer.model is not policy.model:
            besides += f"; not for the reward {name}, a model of its own"
            continue
        with attention(model, kind):
            begins_above = trunk_depth(model, (scorer.name,)) >= trunk.depth
        if begins_above:
            above.append(scorer)
            besides += f"; for the reward {name} too, where its text has the same tokens"
        else:
            besides += f"; not for the reward {name}, whose adapter begins below"
    words = f"{blocks} are computed once per completion and iteration{besides}"
    return TrunkChoice(trunk, words, above)


class KeptStates:
    """Hidden states that leave the policy's trunk, for the sequences of one iteration.

    They are on the CPU and are found again by their tokens.

    The tokens alone decide these states. So a rank that gets a row from another computes them anew, which is faster
    than sending them.
    """

    def __init__(self, policy: PolicyWithValue, rewards: Sequence[SharedRewardModel] = ()):
        self.policy = policy
        self.rewards = rewards  # that begin above the trunk
        for reward in rewards:
            reward.trunk_states = self.states_for_reward
        self._by_tokens: dict[bytes, Tensor] = {}
        self._keeping = True
        self._shared: set[bytes] = set()  # the sequences that rewards read now
        self._trained = self._now_trained()

    def clear(self) -> None:
        """Forget all; and the trunk itself, where weights are trained that were frozen when it was found.

        The reference no longer shares such weights.
        """
        self._by_tokens = {}
        if self._now_trained() <= self._trained:
            return
        self.policy.separate_reference()
        if self.policy.trunk is not None:
            self.policy.trunk = None
            logger.warning(
                "weights are trained that were frozen when the run was made: every pass computes all blocks now"
            )

    def _now_trained(self) -> set[str]:
        return {name for name, parameter in self.policy.named_parameters() if parameter.requires_grad}

    @contextmanager
    def keep_nothing(self) -> Iterator[None]:
        """Keep nothing of what is computed in the block: it belongs to no iteration."""
        self._keeping = False
        try:
            yield
        finally:
            self._keeping = True

    @contextmanager
    def share(self, trajectories: Sequence[Trajectory]) -> Iterator[None]:
        """Share the states of `trajectories` with the rewards that are called in the block; see `states_for_reward`."""
        if self.rewards and trajectories and self._keeping and self.policy.trunk is not None:
            self._shared = set(_keys(Sequences.from_trajectories(trajectories)))
        try:
            yield
        finally:
            self._shared = set()

    def states_for_reward(self, input_ids: Tensor, attention_mask: Tensor) -> TrunkStates | None:
        """Return the states of a batch `(B, L)` that a reward reads; None where no row of it begins with a trajectory.

        A reward often reads a few tokens more, such as the end of the turn. The states before them are the
        trajectory's, since no token changes those of earlier ones, as sampling assumes too. Those of other rows are
        computed with them, and are not kept: no other pass reads them.
        """
        trunk, real = self.policy.trunk, attention_mask.bool()
        if trunk is None or not self._shared:
            return None
        read = Sequences(input_ids, real, torch.ones_like(input_ids[:, 0]), real[:, 1:])
        keys, lengths = _keys(read), sorted({len(key) for key in self._shared})
        starts = {key: key[:length] for key in keys for length in lengths if key[:length] in self._shared}
        return TrunkStates(trunk, self._states(read, keys, keep=starts)) if starts else None

    def find_or_compute(self, sequences: Sequences) -> list[Tensor] | None:
        """Return the states `(L_b, H)` of each sequence, computed if they are new; None for a policy without trunk."""
        if self.policy.trunk is None:
            return None
        keys = _keys(sequences)
        return self._states(sequences, keys, keep={key: key for key in keys} if self._keeping else {})

    def _states(self, sequences: Sequences, keys: Sequence[bytes], *, keep: Mapping[bytes, bytes]) -> list[Tensor]:
        """Return the states of each sequence by its key.

        `keep` maps the key of a sequence to the key of its first tokens, whose states are kept.
        """
        device = sequences.input_ids.device
        new = {key: b for b, key in enumerate(keys) if key not in self._by_tokens}
        computed: dict[bytes, Tensor] = {}
        if new:
            part = sequences[torch.tensor(list(new.values()), device=device)]
            computed = dict(zip(new, self.policy.trunk_states(part), strict=True))
        for key in computed.keys() & keep.keys():
            tokens = len(keep[key]) * len(computed[key]) // len(key)
            if keep[key] not in self._by_tokens:  # a copy, since a view would hold the states of the whole batch
                self._by_tokens[keep[key]] = computed[key][:tokens].to("cpu", copy=True)
        return [computed[key] if key in computed else self._by_tokens[key].to(device) for key in keys]


def _keys(sequences: Sequences) -> list[bytes]:
    """Return what the states of each sequence are found by: its tokens."""
    lengths = sequences.attention_mask.sum(dim=1).tolist()
    return [ids[:length].tobytes() for ids, length in zip(sequences.input_ids.cpu().numpy(), lengths, strict=True)]
