"""The warm process as a program: ``python -m moat.commands.warm_server SOCKET``. No subcommand of its own."""

import sys

from moat.commands.cli import main as run_command
from moat.pipeline.warm.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], run_command))
