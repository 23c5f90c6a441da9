"""The subcommands of ``moat``, one module each; see :mod:`moat.commands.cli` for what a module must have."""
