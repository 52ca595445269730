"""`python -m pplscape`."""

from pplscape.cli import main

main()
