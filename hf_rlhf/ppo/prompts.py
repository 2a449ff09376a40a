"""Which prompts an iteration uses: a function of the seed and the iteration number, so that a resume needs no state."""

import torch

from hf_rlhf.rollout.sampling import row_seed


class PromptStream:
    """An endless stream of data set rows, shuffled anew for each pass, cut into batches of one iteration."""

    def __init__(self, num_rows: int, batch_size: int, seed: int):
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed

    def prompts(self, iteration: int) -> list[tuple[int, int]]:
        """`(pass over the data set, row)` of each prompt of iteration `iteration`, over all ranks.

        An iteration may reach into the next pass and meet a row again; with the pass, its draws differ.
        """
        positions = range(iteration * self.batch_size, (iteration + 1) * self.batch_size)
        passes = {number: self._shuffled(number) for number in {position // self.num_rows for position in positions}}
        return [
            (position // self.num_rows, passes[position // self.num_rows][position % self.num_rows])
            for position in positions
        ]

    def _shuffled(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(row_seed(self.seed, "prompts", number))
        return torch.randperm(self.num_rows, generator=generator).tolist()
