"""The cost of preparing a data set: 60,000 JPEGs, in a process of its own.

    python benchmarks/prepare.py [--mirror DIR_OR_URL]

Prints JSON. Needs a mirror with cifar10-jpeg.tar.xz (default: $MOAT_MIRROR). Batches are measured by data.py.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moat.provenance import environment

ROOT = Path(__file__).parents[1]


def measure_prepare(mirror: str) -> dict:
    """Wall and CPU seconds and peak memory of `moat prepare cifar10-jpeg` in its own process."""
    moat = [sys.executable, "-m", "moat", "--project", str(ROOT)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [*moat, "fetch", "cifar10-jpeg", "--into", folder, "--mirror", mirror], check=True, stdout=sys.stderr
        )
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        out = f"{folder}/x.safetensors"
        command = [*moat, "prepare", "cifar10-jpeg", "--from", folder, "--out", out]
        subprocess.run(command, check=True, stdout=sys.stderr)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        size = os.path.getsize(out)
    return {
        "images": 60_000,
        "wall_s": round(wall, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        # The largest of all child processes; fetching, before it, needs far less.
        "peak_mib": round(after.ru_maxrss / 1024),
        "file_mib": round(size / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("MOAT_MIRROR")
    parser.add_argument("--mirror", default=default, required=default is None)
    found = measure_prepare(parser.parse_args().mirror)
    print(json.dumps({"prepare": found, "load_average": os.getloadavg()[0], **environment.environment()}, indent=2))


if __name__ == "__main__":
    main()
