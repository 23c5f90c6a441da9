"""Compiles moat's one C++ file when moat is installed; without a compiler moat is installed without it, and slower.

``moat doctor`` says which it is. A wheel also carries the configuration, for folders that are no checkout.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/moat/kernels/winograd.cpp")
# The library for each instruction set -> what the compiler is told of it.
AVX512 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {"avx512_bf16": [*AVX512, "-mavx512bf16"], "avx512": AVX512, "avx2": ["-march=x86-64-v3"]}
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-Wno-psabi"]


# The configuration, and where the wheel has it (moat.config.project reads it there).
CONFIGURATION = ("config/**/*.yaml", "config/published/*.csv", "workflow/schemas/*.yaml")
INSTALLED = Path("moat/installed")


class WheelHook(BuildHookInterface):
    """Called by hatchling before a wheel, an editable one too, is put together."""

    def initialize(self, version: str, build_data: dict) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        # An editable installation reads the checkout's.
        if version != "editable":
            for path in (found for pattern in CONFIGURATION for found in root.glob(pattern)):
                build_data["force_include"][str(path)] = str(INSTALLED / path.relative_to(root))
        for instructions, options in INSTRUCTION_SETS.items():
            library = root / SOURCE.parent / "compiled" / f"winograd_{instructions}.so"
            if compiled(root / SOURCE, library, options):
                build_data["artifacts"].append(str(library.relative_to(root)))
                build_data["pure_python"], build_data["infer_tag"] = False, True


def compiled(source: Path, library: Path, options: list[str]) -> bool:
    """Whether there is such a library now; one that could not be made anew is removed."""
    given = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    library.parent.mkdir(exist_ok=True)
    # Installing an extra later builds moat anew.
    newest = max(source.stat().st_mtime, Path(__file__).stat().st_mtime)
    if library.exists() and library.stat().st_mtime > newest and given.encode() in library.read_bytes():
        return True
    fresh = library.with_suffix(f".{os.getpid()}")
    command = [os.environ.get("CXX", "c++"), *FLAGS, *options, f'-DSOURCE="{given}"', str(source), "-o", str(fresh)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or error
        print(f"moat: convolutions stay PyTorch's, {source.name} was not compiled: {why}", file=sys.stderr)
        fresh.unlink(missing_ok=True)
        library.unlink(missing_ok=True)
        return False
    # In one step: a process that has loaded the old one keeps it.
    os.replace(fresh, library)
    return True
