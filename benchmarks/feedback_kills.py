"""Kill processes that write to a store of feedback, and count the answers that are lost or there twice.

    python benchmarks/feedback_kills.py --kills 100 --answers 10000

Each process appends answers and prints an answer's uuid when the store has acknowledged it. The parent kills it by
SIGKILL at a random moment, starts it again with the answer that got no reply, and at last compares the log with what
was printed. Exit status 1 if anything was lost or is there twice.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from feedback_kills import kill_writers  # noqa: E402


def main() -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--answers", type=int, default=10_000, help="acknowledged ones, at least")
    parser.add_argument("--writers", type=int, default=2, help="at once")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_writers(Path(folder) / "feedback.db", **vars(given))
    print(
        f"{found.kills} kills of {given.writers} writers: {found.lost} of {found.acknowledged} acknowledged answers lost,"
        f" {found.twice} there twice; {found.sent_again} were sent again; {found.seconds:.0f} s"
    )
    return int(found.lost > 0 or found.twice > 0)


if __name__ == "__main__":
    sys.exit(main())
