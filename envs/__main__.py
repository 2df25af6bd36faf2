"""`python -m envs`: see envs/browse.py, which stands apart because the children of a `__main__` can't import it."""

import sys

import tyro

from envs.browse import Cli, main

try:
    main(tyro.cli(Cli, prog="python -m envs"))
except (ValueError, ImportError, FileNotFoundError, RuntimeError) as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None
