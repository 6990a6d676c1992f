"""`python -m pmforensics` is `pmf`."""

from pmforensics.cli import main

main()
