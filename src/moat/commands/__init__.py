"""The subcommands of ``moat``, one module each; see :mod:`moat.cli` for what a module must have."""
