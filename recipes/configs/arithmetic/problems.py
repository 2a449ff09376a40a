"""Sums for the recipe of arithmetic: `python recipes/configs/arithmetic/problems.py > arithmetic.jsonl`."""

import argparse
import json
import random
from typing import Any

QUESTION = "What is {} {} {}? Write one line that ends with Answer: and the number."


def problems(count: int, seed: int = 0, largest: int = 99) -> list[dict[str, Any]]:
    """Return rows of `prompt` and `answer`: sums and differences of numbers from 0 to `largest`."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        first, sign, second = rng.randint(0, largest), rng.choice("+-"), rng.randint(0, largest)
        question = QUESTION.format(first, sign, second)
        answer = first + second if sign == "+" else first - second
        rows.append({"prompt": [{"role": "user", "content": question}], "answer": str(answer)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--largest", type=int, default=99)
    for problem in problems(**vars(parser.parse_args())):
        print(json.dumps(problem))
