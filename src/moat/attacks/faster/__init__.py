"""The attacks of the package ``pyautoattack`` with less work per verdict; its seeds, numbers and verdicts stay.

Classes of the package, of which one method is another. Nothing of the package itself is changed, and nothing here is
imported before an attack runs: the package takes its time to import.
"""
