import pytest
from reporting_tree import Tree, build, make_project

from moat.commands.cli import main


@pytest.fixture
def project(tmp_path):
    """A copy of the project's configuration whose results are below it."""
    return make_project(tmp_path)


@pytest.fixture
def tree(project):
    return Tree(project)


@pytest.fixture
def moat(project):
    """Runs one command on the project's results; returns its exit code."""

    def call(command: str, *arguments: str, scale: str = "smoke") -> int:
        results = project / "results"
        results.mkdir(exist_ok=True)
        return main(["--project", str(project), command, "--scale", scale, "--results", str(results), *arguments])

    return call


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Everything made from a tree of results with awkward characters, a failed check and a method that did not run.

    It is made once, and only to be looked at.
    """
    return build(tmp_path_factory.mktemp("built"))
