"""Warm starts: a process that has imported torch and the like once, and forks for every job of a workflow.

A `moat` job of a few seconds would spend two of them on imports. Where ``MOAT_WARM`` names the socket of a
:mod:`moat.pipeline.warm.server`, :func:`moat.pipeline.warm.client.run_warm` has a fork of it do the work, with its own
arguments, environment, folder and standard streams, passes signals on, and ends as that ends. Results are the same.
Where there is no server, where the package's files have changed since it started, or where it is of another checkout,
interpreter, library version, container or limit of resources than the command, the command does its work itself.
"""

# The environment variable that names the server's socket.
VARIABLE = "MOAT_WARM"
# The commands whose imports take longer than they are worth to a small job.
COMMANDS = ("train", "evaluate", "verify", "probe", "tabulate", "draw", "report")
