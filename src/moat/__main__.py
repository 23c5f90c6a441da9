"""``python -m moat`` is the ``moat`` command."""

from moat.cli import main

raise SystemExit(main())
