"""`python -m cenote.bench [--quick] [--json]`."""

import argparse
import sys

from cenote.bench import run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m cenote.bench", description="The speed table.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes, no row of a million keys")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    given = parser.parse_args()
    sys.exit(run(quick=given.quick, as_json=given.json))
