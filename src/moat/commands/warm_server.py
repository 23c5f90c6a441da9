"""The warm process as a program: ``python -m moat.commands.warm_server SOCKET``. No subcommand of its own."""

import os
import sys

from moat.commands.cli import main as run_command
from moat.pipeline.warm.server import main

# All that a job needs to train, attack, check, tabulate and draw.
IMPORTED = (
    # The first step of any optimizer imports torch._dynamo.
    "torch", "torch._dynamo", "pandas", "pyarrow.parquet", "scipy.stats", "safetensors.torch", "jsonschema",
    "moat.commands.evaluation_target", "moat.training.runs", "moat.evaluation.records", "moat.evaluation.checks",
    "moat.reporting.results", "matplotlib.figure",
)  # fmt: skip

if __name__ == "__main__":
    # As in the command itself; there it would be too late for what is imported here.
    os.environ["MPLBACKEND"] = "agg"
    sys.exit(main(sys.argv[1], run_command, IMPORTED))
