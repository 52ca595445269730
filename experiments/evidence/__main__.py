"""See `runner`."""

from .runner import main

main()
