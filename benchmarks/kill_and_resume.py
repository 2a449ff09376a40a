"""Kill runs at random moments, start each again, and count those that end in the bits of a run that was not killed.

    python benchmarks/kill_and_resume.py --kills 500

Exit status 1 if any run ended otherwise.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from checkpoint.runs import ON_RANKS, RUNS, kill_and_resume  # noqa: E402


def main() -> int:
    """Print a line for each kind of run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each kind of run of one process")
    parser.add_argument("--kills_of_ranks", type=int, default=10, help="of each kind of run of two ranks")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kinds", nargs="+", choices=sorted(RUNS), default=sorted(RUNS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    for kind in given.kinds:
        with tempfile.TemporaryDirectory() as folder:
            kills = given.kills_of_ranks if kind in ON_RANKS else given.kills
            begin = time.perf_counter()
            same = kill_and_resume(kind, Path(folder), kills, given.seed)
            seconds = time.perf_counter() - begin
        print(f"{kind}: {same} of {kills} killed runs end in the same bits; {seconds:.0f} s", flush=True)
        failed |= same < kills
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
