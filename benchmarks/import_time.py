"""CPU seconds that `import pyro_ar` adds to `import torch, pyro`, each in a fresh process of one thread.

    python benchmarks/import_time.py [--runs 5] [--first-use compare]

`--first-use NAME` adds `pyro_ar.NAME` to what is timed. Where they go: `python -X importtime -c "import pyro_ar"`.
"""

import argparse
import os
import statistics
import subprocess
import sys

CODE = """
import time, torch, pyro
start = time.process_time()
import pyro_ar
{use}
print(time.process_time() - start)
"""


def seconds(use):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return float(subprocess.run([sys.executable, "-c", CODE.format(use=use)], check=True, capture_output=True, text=True, env=environment).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--first-use", default="", help="a public name, such as GenerativeClassifier")
    options = parser.parse_args()
    use = options.first_use and f"pyro_ar.{options.first_use}"
    seconds(use)  # compiles the byte code
    times = [seconds(use) for _ in range(options.runs)]
    print(f"import pyro_ar{use and ', ' + use}: median {statistics.median(times):.3f} s CPU beyond torch and pyro "
          f"(least {min(times):.3f}, most {max(times):.3f}, {options.runs} runs)")


if __name__ == "__main__":
    main()
