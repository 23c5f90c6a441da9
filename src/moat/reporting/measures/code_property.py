"""What kind of mixture a method is, found by looking at its model: no run is needed."""

READS = ()
UNIT = ""


def measure(cell, runs, results):
    from moat.reporting.properties import describe

    word = describe(results.project, cell.method, cell.code_property)
    return {"measured": word, "measured_std": None, "ci_low": None, "ci_high": None, "n": None}


def show(value: str) -> str:
    return value


def reasons(cell, runs, results):
    return [] if measure(cell, runs, results)["measured"] == cell.published else ["differs-in-code"]
