"""`python -m cenote.demo`: the same as `cenote demo`, without the command line's extras."""

import argparse
import sys

from cenote.demo import run


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cenote.demo", description="Watch a swarm's state survive kill -9.")
    parser.add_argument("--modules", type=int)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--no-faults", dest="faults", action="store_false")
    parser.add_argument("--json", dest="as_json", action="store_true")
    parser.add_argument("--data-dir")
    return run(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(_main())
