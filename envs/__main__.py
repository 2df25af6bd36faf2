"""`python -m envs`: see envs/browse.py, which stands apart because the children of a `__main__` can't import it."""

import tyro

import command
from envs.browse import Cli, main

command.run(main, command.start(lambda: tyro.cli(Cli, prog="python -m envs")))
