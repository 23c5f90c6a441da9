"""``python -m moat`` is the ``moat`` command."""

from moat.commands.cli import main

raise SystemExit(main())
