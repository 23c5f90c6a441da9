"""Get the results that dvc.lock names; refuse where they are not exactly those; then Snakemake has nothing to do."""

from pathlib import Path

HELP = "get models and results through DVC, so that Snakemake has nothing to do"


def add_arguments(parser) -> None:
    parser.add_argument(
        "--local", action="store_true", help="only from this machine's cache, as after `git checkout` of another commit"
    )


def run(arguments) -> int:
    from moat.pipeline.dvc_pull import pull

    root = Path(arguments.project)
    pull(root, local=arguments.local)
    print("All results are those of dvc.lock, and `snakemake` has nothing to do.")
    return 0
