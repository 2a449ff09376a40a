"""Environments for tests."""

from hf_rlhf.environments import Turn


class TwoTurns:
    """Answers once, then ends: the reward of a turn is the number of its words."""

    def reset(self, row, rng):
        self.turn = 0
        self.word = rng.choice(["good", "bad"])
        return row["prompt"]

    def step(self, completion):
        if self.turn == 2:
            raise RuntimeError("the episode is over")
        self.turn += 1
        reward = float(len(completion.split()))
        if self.turn == 2:
            return Turn(reward=reward, terminated=True)
        return Turn(({"role": "user", "content": f"{self.word} ?"},), reward=reward)


class Endless:
    """Never ends by itself."""

    def reset(self, row, rng):
        return row["prompt"]

    def step(self, completion):
        return Turn(({"role": "user", "content": "the cat ?"},), reward=1.0)


class GuessNumber:
    """A number from 1 to 3 in three tries."""

    def reset(self, row, rng):
        self.number, self.tries = row["number"], 0
        return [{"role": "user", "content": "guess"}]

    def step(self, completion):
        if self.tries == 3 or self.number is None:
            raise RuntimeError("the game is over")
        self.tries += 1
        if completion.strip() == str(self.number):
            self.number = None
            return Turn(reward=1.0, terminated=True)
        if self.tries == 3:
            return Turn(({"role": "user", "content": "no"},), truncated=True)
        return Turn(({"role": "user", "content": "no"},))


class Fails:
    """Raises an exception for every third row."""

    def reset(self, row, rng):
        self.number = row["number"]
        return row["prompt"]

    def step(self, completion):
        if self.number % 3 == 0:
            raise RuntimeError("out of order")
        return Turn(reward=1.0, terminated=True)
