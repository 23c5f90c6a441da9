"""How long a user waits for `moat --help`, and for the plan of the workflow at each scale.

    python benchmarks/startup.py [--repeats 5]

Prints JSON: wall-clock seconds, the median and the range of the repeats. Run it on an otherwise idle machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from moat.provenance import environment

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "moat --help": ["moat", "--help"],
    **{f"snakemake -n, scale {scale}": ["snakemake", "-n", "--quiet", "--config", f"scale={scale}"]
       for scale in ("quickstart", "smoke", "mini", "paper")},
}  # fmt: skip


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rows = []
    for name, command in COMMANDS.items():
        times = [seconds(command) for _ in range(repeats)]
        rows.append(
            {"what": name, "n": repeats, "seconds": statistics.median(times), "low": min(times), "high": max(times)}
        )
    print(json.dumps({"rows": rows, **environment.environment()}, indent=2))


if __name__ == "__main__":
    main()
