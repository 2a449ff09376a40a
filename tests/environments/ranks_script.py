"""Greedy episodes of this rank's share of the rows; written by each rank under its number."""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from environments.games import TwoTurns
from environments.playing import play, rows_of
from tiny import make_model, make_tokenizer

from hf_rlhf.rollout.sampling import Sampling

ROWS = 8


def greedy_episodes(rows, batch_size=None, **settings):
    """Return ids, mask and rewards of each episode."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, max_position_embeddings=256).eval()
    found = play(
        model, tokenizer, rows, TwoTurns, sampling=Sampling(6, temperature=0), batch_size=batch_size, **settings
    )
    return [
        [each.row["number"], each.prompt_ids, each.completion.ids, each.completion_mask, each.env_rewards.tolist()]
        for each in found
    ]


def all_rows():
    return rows_of(make_tokenizer(), ROWS)


if __name__ == "__main__":
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    share = all_rows()[:5] if state.process_index == 0 else all_rows()[5:]
    episodes = greedy_episodes(share, together=True)
    Path(sys.argv[1], f"{state.process_index}.json").write_text(json.dumps(episodes), encoding="utf-8")
    state.destroy_process_group()
