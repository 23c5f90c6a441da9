# What is made again although it is there: files that were cut short, and, where asked for, what other code made.


def refresh(record, *files):
    """A stamp to make a result again: one of its files was cut short; or, with `--config refresh=stale`, its sources
    have changed since.

    The stamp differs from the last one: its content is what is wrong, because Snakemake looks at the content of a newer
    input before it makes anything again.
    """
    wrong = {str(file): Path(file).stat().st_mtime_ns for file in (record, *files) if snakemake_repair.is_damaged(file)}
    if not wrong and config["refresh"] == "stale" and (changed := staleness.stale_file(record)):
        wrong = {"stale": changed, "made_by": read_json(record)["sources"], "made_at": Path(record).stat().st_mtime}
    if not wrong:
        return []
    stamp = Path("work/refresh", record)
    write_json(stamp, wrong)
    return [stamp]


def refresh_run(wildcards):
    folder = paths.run_dir(wildcards.scale, run_of(wildcards))
    return refresh(folder / "run.json", folder / "model.safetensors", folder / "last.safetensors")


def refresh_evaluation(wildcards):
    rows = paths.evaluation(wildcards.scale, run_of(wildcards), wildcards.suite)
    return refresh(rows.with_suffix(".json"), rows)


def refresh_probe(wildcards):
    arrays = paths.probe(wildcards.scale, run_of(wildcards), wildcards.probe)
    return refresh(arrays.with_suffix(".json"), arrays)


def stale_parts(record):
    return stale_parts_of(record, record.stat().st_mtime_ns) if record.exists() else []


# Several tables show what one record tells. It may be made anew while Snakemake runs.
@cache
def stale_parts_of(record, mtime_ns):
    return [] if snakemake_repair.is_damaged(record) else staleness.stale_file(record)


def stale_results(scale, shown):
    """What a table, a figure or the page marks as stale: it is made again when that changes."""
    records = [paths.run_dir(scale, run) / "run.json" for run in shown.runs]
    records += [paths.evaluation(scale, e.run, e.suite).with_suffix(".json") for e in shown.evaluations]
    records += [paths.checks(scale, run) for run in shown.checks]
    probes = getattr(shown, "probes", ())
    records += [paths.probe(scale, probe.run, probe.name).with_suffix(".json") for probe in probes]
    return {str(record): parts for record in records if (parts := stale_parts(record))}
