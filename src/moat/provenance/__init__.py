"""Where a result comes from: versions and hardware, and whether the sources that made it have changed."""
