"""command.py: how commands end, what they are silent about, and that nothing is tried only after the work.

Run: pytest tests/test_command.py        (about 20 seconds on one core)
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

import command

ROOT = Path(command.__file__).parent


def python(*words, **environ) -> subprocess.CompletedProcess:
    """`-c code` or a script of ours, in a process of its own, as a user's shell starts it."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONWARNINGS", "PYTHONIOENCODING")}
    environ = {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environ, cwd=ROOT, timeout=120)


# ---- ends ----


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ValueError("bad\nword"), 2, "error: bad word\n"),
        (FileNotFoundError("no file"), 2, "error: no file\n"),
        (RuntimeError("no OpenGL"), 2, "error: no OpenGL\n"),
        (ImportError("pip install it"), 2, "error: pip install it\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_one_line(error, code, said, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as end:
        command.run(fail)
    assert end.value.code == code and capsys.readouterr() == ("", said)


def test_a_line_is_one_write(monkeypatch):
    """So that the lines of several processes on one terminal don't mix."""
    writes = []

    def fail():
        raise ValueError("one\ntwo")

    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=writes.append, flush=lambda: None))
    with pytest.raises(SystemExit):
        command.run(fail)
    assert writes == ["error: one two\n"]


def test_faults_of_ours_are_not_hidden():
    with pytest.raises(KeyError):
        command.run({}.__getitem__, "a field")
    assert command.run(max, 2, 3) == 3


@pytest.mark.parametrize("end", ["", "; raise SystemExit(0)", "; raise ValueError('after it was closed')"])
def test_nobody_reads_any_more(end):
    """`| head -1`, and `2>&1 | head -1`: silence, and no success."""
    code = f"def main():\n    print('one line', flush=True); input(); print('more'){end}\n"
    code = f"import command\n{code}command.run(main)"
    for both in (False, True):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.STDOUT if both else subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": ""},
        )  # fmt: skip
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        said = "" if both else process.stderr.read()
        if "after" in end:  # what was wrong is said to whoever listens
            assert process.wait(60) == 2 and said in ("", "error: after it was closed\n") and (both or said)
        else:
            assert process.wait(60) == 141 and said == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        code = "import command; command.run(print, 'a table')"
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr == "error: [Errno 28] No space left on device\n"


def test_a_terminal_without_the_letter():
    done = python("-c", "import command; command.start(print, '1 \u00b1 2')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 \\xb1 2\n", "")


def test_warnings_of_packages_are_off_in_child_processes_too():
    warn = "import warnings; warnings.warn('version'); warnings.warn('numbers', RuntimeWarning)"
    code = f"import command, subprocess, sys; command.start(int); {warn}; "
    code += f"subprocess.run([sys.executable, '-c', {warn!r}])"
    done = python("-c", code)
    assert done.stderr.count("RuntimeWarning: numbers") == 2 and "version" not in done.stderr
    assert python("-c", code, PYTHONWARNINGS="default").stderr.count("version") == 2  # who wants them has them


# ---- checks ----


def test_files_are_tried_and_nothing_changes(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    command.try_file(tmp_path / "mine")
    command.try_file(tmp_path / "new")
    command.try_folder(tmp_path / "folder")
    command.try_folder(tmp_path / "deep" / "and" / "new")
    for path, words in (
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "nowhere" / "x", "there is no folder"),
        (tmp_path / "mine" / "x", "there is no folder"),
    ):
        with pytest.raises(OSError, match=f"^cannot write .*{words}"):
            command.try_file(path)
    for path in (tmp_path / "mine", tmp_path / "mine" / "x"):
        with pytest.raises(OSError, match="^cannot write to the folder .*(File exists|Not a directory)"):
            command.try_folder(path)
    if Path("/proc").exists():  # where not even root can write
        with pytest.raises(OSError, match="^cannot write /proc/x"):
            command.try_file(Path("/proc/x"))
        with pytest.raises(OSError, match="^cannot write to the folder /proc/x"):
            command.try_folder(Path("/proc/x"))
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "mine").read_text() == "mine"


def test_a_number_that_is_none_is_in_no_range():
    @dataclass
    class Settings:
        steps: int = 3
        rate: float = 0.5

    ranges = {"steps": (1, 5), "rate": (0, 1)}
    command.check_fields(Settings(), ranges)
    for bad, words in ((Settings(steps=0), "steps must be at least 1"), (Settings(rate=float("nan")), "a number")):
        with pytest.raises(ValueError, match=words):
            command.check_fields(bad, ranges)


# ---- every command ----


@pytest.mark.parametrize(
    "words", ["train.py", "eval.py", "bench.py", "bench.py envs", "demos.py", "tour.py", "-m envs"]
)
def test_help_does_not_wait_for_torch(words, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was asked for')")
    environ = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PATH": str(tmp_path)}
    done = python(*words.split(), "--help", **environ)
    assert done.returncode == 0 and "usage" in done.stdout and not done.stderr, done.stderr
    done = python(*words.split(), "--no-such-word", **environ)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "torch" not in done.stderr or words == "train.py"  # which asks for a GPU where there is a driver


@pytest.mark.parametrize(
    "words, said",
    [
        ("demos.py make --tasks mw-reach --seed -1", "seed must be at least 0"),
        ("demos.py make --tasks mw-reach --out README.md/x", "mw-reach cannot be made: cannot write to the folder"),
        ("demos.py list README.md", "no demonstrations in README.md"),
        ("demos.py list recordings --csv envs", "cannot write envs: it is a folder"),
        ("demos.py check --workers -1", "workers must be at least 0"),
        ("-m envs --play mw-reach --seed -1", "seed must be at least 0"),
        ("-m envs --play mw-reach --out envs", "cannot write envs: it is a folder"),
        ("-m envs --play mw-reach,mw-push", "one task"),
        ("-m envs --gallery README.md/x.png", "no folder README.md"),
        ("-m envs --random /proc/x.csv", "cannot write /proc/x.csv"),
    ],
)
def test_bad_input_is_one_line(words, said):
    done = python(*words.split())
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and said in done.stderr
