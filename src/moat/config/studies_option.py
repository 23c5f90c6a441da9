"""The options ``--study`` and ``--studies``."""

from moat.base.errors import ConfigError, unknown_name
from moat.config.project import Project


def studies(project: Project, listed: str | None, one: str | None = None) -> list[str]:
    """``one``, else the comma-separated ``listed``, else those of ``config/config.yaml``.

    Raises:
        ConfigError: a study that has no file, or an empty list; names what is allowed.
    """
    if one is not None and listed is not None:
        raise ConfigError("--study and --studies are both given; one of them says it all")
    names = [one] if one is not None else project.config()["studies"] if listed is None else listed.split(",")
    names = [name.strip() for name in names if name.strip()]
    known = project.names("studies")
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name(name, known, what="study"))
    if not names:
        raise ConfigError(f"--studies: no study given; allowed: {', '.join(known)}")
    return list(dict.fromkeys(names))
