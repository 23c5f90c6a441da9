"""Shared by the methods whose experts are trained beforehand: how the experts are initialised."""

from collections.abc import Mapping
from pathlib import Path

from moat.methods.base import Method
from moat.models.moe.experts import load_experts


class PretrainedExperts(Method):
    """A method whose model has ``experts``, each initialised from a finished run of its own."""

    PARAMETERS = {
        "initialize_from": {"type": "runs", "description": "one finished run for each expert, in the experts' order"},
        "reuse_experts": {
            "type": "boolean",
            "default": False,
            "description": "true: every seed starts from the runs of seed 0; false: from its own",
        },
    }

    def initialize(self, runs: Mapping[str, Path]) -> None:
        load_experts(self.model.experts, {run["name"]: runs[run["name"]] for run in self.recipe["initialize_from"]})
