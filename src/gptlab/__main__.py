"""`python -m gptlab` is `gptlab`."""

from gptlab.cli import main

main()
