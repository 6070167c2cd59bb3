"""`python -m tilelli_nb.cli`, which torchrun needs."""

from .app import main

main()
