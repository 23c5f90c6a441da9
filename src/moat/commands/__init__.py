"""The subcommands of ``moat``, one module each; :mod:`moat.commands.cli` lists and runs them.

A subcommand's module has a docstring (its description in ``--help``) and

- ``add_arguments(parser)``: its options;
- ``request(arguments)``: what was asked for, as one frozen dataclass; nothing else sees the parsed arguments;
- ``run(request)``: does it; returns the exit code, or None for 0;
- ``RESUMES``, where an interrupted command can be given again: the sentence that says what happens then.

Whatever needs torch is imported in ``run``: after the GPU is leased, so that torch sees no other one, and not for
``--help``, because that import takes seconds.
"""
