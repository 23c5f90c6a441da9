"""Where everything is below ``results/<scale>``. The only place that spells these paths."""

from pathlib import Path

TABLE_SUFFIXES = ("csv", "md", "tex")
FIGURE_SUFFIXES = ("png", "pdf", "csv")
#: The files of a run's weights, and what follows the name of a run in the paths of what is measured on them.
WEIGHTS = {"best": "model.safetensors", "last": "last.safetensors"}
#: The keys of their sha256 in run.json.
SHA256 = {"best": "model_sha256", "last": "last_sha256"}
_ENDINGS = {"best": "", "last": "-last"}


def results(scale: str) -> Path:
    return Path("results") / scale


def evidence() -> Path:
    """What git keeps of finished scales, a folder for each."""
    return Path("results/evidence")


def manifest(resources: str, dataset: str) -> Path:
    """Written last by ``moat fetch``: what was downloaded, from where, with which checksums."""
    return Path(resources) / dataset / "manifest.json"


def prepared(scale: str, dataset: str) -> Path:
    return results(scale) / "data" / f"{dataset}.safetensors"


def run_dir(scale: str, run) -> Path:
    """What a training leaves, the same folder for both of its weights."""
    return results(scale) / "runs" / run_name(run.training)


def weights(scale: str, run) -> Path:
    """The weights that are meant by a run."""
    return run_dir(scale, run) / WEIGHTS[run.weights]


def evaluation(scale: str, run, suite: str) -> Path:
    return results(scale) / "evaluations" / run_name(run) / f"{suite}.parquet"


def checks(scale: str, run) -> Path:
    return results(scale) / "checks" / f"{run_name(run)}.json"


def probe(scale: str, run, name: str) -> Path:
    """The arrays that a probe took from a run's model; its record is the .json beside it."""
    return results(scale) / "probes" / run_name(run) / f"{name}.safetensors"


def table(scale: str, study: str, name: str) -> Path:
    """Without suffix: one file for each of :data:`TABLE_SUFFIXES`."""
    return results(scale) / "tables" / f"{study}-{name}"


def figure(scale: str, study: str, name: str) -> Path:
    """Without suffix: one file for each of :data:`FIGURE_SUFFIXES`."""
    return results(scale) / "figures" / f"{study}-{name}"


# The files of all studies. ``selection``: see :func:`moat.config.shown.selection_of`.
def cells(scale: str, selection: str = "") -> Path:
    return results(scale) / "tables" / f"cells{selection}.csv"


def claims(scale: str, selection: str = "") -> Path:
    """Without suffix: one file for each of :data:`TABLE_SUFFIXES`."""
    return results(scale) / "tables" / f"claims{selection}"


def robustbench(scale: str, selection: str = "") -> Path:
    """Entries in RobustBench's shape, of all runs."""
    return results(scale) / "tables" / f"robustbench{selection}.json"


def metrics(scale: str, selection: str = "") -> Path:
    return results(scale) / f"metrics{selection}.json"


def report(scale: str, selection: str = "") -> Path:
    return results(scale) / f"report{selection}.html"


def run_name(run) -> str:
    """``<dataset>/<arch>/<method>/seed<k>``, and ``-last`` where the weights of the last epoch are meant."""
    return f"{run.dataset}/{run.arch}/{run.method}/seed{run.seed}{_ENDINGS.get(run.weights, run.weights)}"
