"""`python -m orcinus.cli` is the program `orcinus`."""

from orcinus.cli import main

main()
