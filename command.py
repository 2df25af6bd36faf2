"""How every command starts and ends, and what it checks before the work: nothing here takes time to import.

    if __name__ == "__main__":
        given = command.start(tyro.cli, Settings)    # --help and wrong words are answered here, at once
    import torch                                     # takes seconds
    ...
    if __name__ == "__main__":
        command.run(main, given)

Ends: 0; 2 and one line on stderr for bad input, a full disk or a missing library; 130 after Ctrl-C; 141, in silence,
when nobody reads any more what is printed (`| head -1`), as the shell counts it for other programs.
Test: pytest tests/test_command.py
"""

import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, get_args, get_origin

# Simulators and their packages warn each process about versions, precision and missing hardware, amid the bars.
QUIET = (UserWarning, DeprecationWarning, FutureWarning)


def start(parse: Callable, *args) -> object:
    """What `parse` makes of the command line; from now on, warnings (see above) are off here and in child processes.

    Whoever sets PYTHONWARNINGS or python -W gets what they ask for. Letters that the terminal does not know are
    printed by their number: results must not be lost over a ± sign.
    """
    if not sys.warnoptions:
        os.environ["PYTHONWARNINGS"] = ",".join(f"ignore::{kind.__name__}" for kind in QUIET)
        for kind in QUIET:
            warnings.simplefilter("ignore", kind)
    sys.stdout.reconfigure(errors="backslashreplace")  # as stderr's are by default
    return run(parse, *args)


def run(call: Callable, *args) -> object:
    """call(*args); bad input ends with one line on stderr and exit code 2 instead of a traceback. All ends: above."""
    try:
        try:
            result = call(*args)
        except SystemExit:  # --help, and checks with an exit code of their own
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, and not at Python's own end, where a closed pipe gives a traceback
        return result
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # of ours: those to simulators are seen to where they belong
        code = 141
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        code = 2
        with suppress(OSError):
            # Words of files may have line breaks. One write, or the lines of a job's processes mix.
            sys.stderr.write(" ".join(["error:", *str(error).splitlines()]) + "\n")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads it, or the disk is full: what is left goes nowhere, or Python would complain
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    raise SystemExit(code)


class Interruption:
    """Ctrl-C, SIGTERM and a closed terminal (SIGHUP) end the program at once, as by default, with all it started.

    But in a `with` block, the first one only asks: the loop ends after its present step, with a checkpoint.
    """

    def __init__(self):
        self.code, self.patient = 0, False
        numbers = [signal.SIGINT, signal.SIGTERM]
        if os.name == "posix" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under nohup
            numbers.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self._handle) for number in numbers}

    def _handle(self, number, _) -> None:
        at_once = self.code or not self.patient
        self.code = 128 + number
        if at_once:
            raise SystemExit(self.code)
        with suppress(OSError):  # the terminal may be gone
            print("\nstopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr)

    def __enter__(self) -> None:
        self.patient = True

    def __exit__(self, *_) -> None:
        self.patient = False

    def restore(self) -> None:
        """As before; but once one came the program is ending, and another must not fall into Python's own exit."""
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_IGN if self.code else handler)


def check_fields(values, ranges: dict) -> None:
    """Hold a dataclass to its declaration: ValueError, one line, for a field of another type or out of its range.

    Every number needs a range, (smallest, largest); NaN is in none. Words are checked, too, paths and tables aren't.
    """
    for f in fields(values):
        kind = get_args(f.type)[0] if get_origin(f.type) is Annotated else f.type  # as tyro's marks do
        value, kinds = getattr(values, f.name), get_args(kind) if isinstance(kind, UnionType) else (kind,)
        number = float if float in kinds else int
        if value is None and type(None) in kinds:
            continue
        if number in kinds:
            low, high = ranges[f.name]
            if type(value) not in (int, number):
                raise ValueError(f"{f.name} must be a number ({number.__name__}), got {value!r:.60}")
            if not low <= value <= high:
                bound = f"at least {low}" if value < low else f"at most {high}" if value > high else "a number"
                raise ValueError(f"{f.name} must be {bound}, got {value!r:.60}")
        elif kind in (bool, str) and type(value) is not kind:
            raise ValueError(f"{f.name} must be of type {kind.__name__}, got {value!r:.60}")
        elif words := ranges.get(f.name, get_args(kind) if get_origin(kind) is Literal else ()):
            if type(value) is not str or value not in words:
                raise ValueError(f"{f.name} must be one of {', '.join(words)}, got {value!r:.60}")


def try_file(path: Path) -> None:
    """OSError, one line, if this file cannot be written: before the work, not after it. Nothing is changed."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    new = not path.exists()
    try:
        open(path, "ab").close()
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error.strerror}") from error
    if new:
        path.unlink()


def try_folder(path: Path) -> None:
    """The same for a folder that files shall be written to. Folders that are missing will be made by the work."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise type(error)(f"cannot write to the folder {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):  # not there, or in use by now
            for folder in missing:
                folder.rmdir()
