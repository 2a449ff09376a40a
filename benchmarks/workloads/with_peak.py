"""Run another script in this process, and then say how much memory it took, as the last line of JSON of this rank.

python benchmarks/workloads/with_peak.py recipes/ppo.py --config ...
"""

import json
import runpy
import sys

from work import peak_bytes

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        print("\n" + json.dumps({"peak_bytes": peak_bytes()}), flush=True)
