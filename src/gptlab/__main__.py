"""`gptlab` and `python -m gptlab`: the command line, also where it is interrupted while it starts."""

import sys


def main() -> None:
    """Entry point of `gptlab`."""
    try:
        from gptlab.cli import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
