"""Episodes of a tiny policy."""

from tiny import make_prompts

from hf_rlhf.environments.episodes import DEFAULT_LIMITS, collect_episodes
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling, row_seed

SAMPLING = Sampling(6)


def rows_of(tokenizer, count, prompts=None):
    """Rows with the ids of their prompts."""
    return [
        row | {"prompt_ids": tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]}
        for row in (make_prompts(count) if prompts is None else prompts)
    ]


def play(model, tokenizer, rows, make_env, limits=DEFAULT_LIMITS, sampling=SAMPLING, batch_size=None, **settings):
    """Collect an episode for each row, seeded by its number."""
    seeds = [row_seed(0, row["number"]) for row in rows]
    engine = TransformersEngine(model, tokenizer, batch_size)
    return collect_episodes(engine, rows, tokenizer, sampling, seeds, make_env, limits, **settings)
