"""README.md and results/README.md: short, no dead link, no file that isn't there, no command that isn't understood.

Run: pytest tests/test_readme.py        (about 6 seconds on one core)

Commands are those of the blocks marked bash, and those inside sentences. bash itself expands their loops, variables and
braces, with functions in place of the programs, which print the words they are given. Then each script runs as the
program that it is, to where its words are parsed (command.start): real parsers, no work.
"""

import argparse
import ast
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import pytest
import tyro
from torch.distributed.run import get_args_parser

import command
import envs
import train_config

ROOT = Path(command.__file__).parent
FRONT, MEASURED = ROOT / "README.md", ROOT / "results/README.md"
PAGES = {page: page.read_text(encoding="utf-8") for page in (FRONT, MEASURED)}
NO_PARSER = {  # scripts that take their words as they are, and which
    "results/filmstrip.py": lambda *words: len(words) == 1,
    "results/from_scratch.py": lambda name, *runs: runs and (ROOT / f"results/{name}.csv").is_file(),
}
PROGRAMS = ("python", "python3", "pip", "pytest", "torchrun")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def prose(text: str) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def code_spans(text: str) -> list[str]:
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose(text))]


def is_command(span: str) -> bool:
    words = [word for word in span.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return len(words) > 1 and words[0] in PROGRAMS


def expanded(scripts: list[str]) -> list[list[str]]:
    """The words of each program that bash would start. AssertionError for other programs, and for wrong syntax."""
    says = r"""say() { printf '%s\0' "$@" $'\n'; }"""
    stand_ins = "\n".join(f'function {name} {{ say {name} "$@"; }}' for name in (*PROGRAMS, "."))
    script = "\n".join(["PATH=", says, stand_ins, *scripts])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    lines = [line.rstrip("\0").split("\0") for line in done.stdout.split("\n\0") if line]
    return [list(words) for words in dict.fromkeys(map(tuple, lines))]


COMMANDS = expanded(
    [script for text in PAGES.values() for script in [*blocks(text, "bash"), *filter(is_command, code_spans(text))]]
)


# ---- size, links, files ----


def test_the_front_door_is_short():
    assert len(PAGES[FRONT].splitlines()) <= 160 and len(PAGES[FRONT]) <= 9_000


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings. (No heading here occurs twice.)"""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.M)
    found = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len({*found}) == len(found)
    return {*found}


@each_page
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]*)\)", prose(PAGES[page]))
    inside = [link for link in links if not link.startswith("https://")]
    assert len(inside) > 5
    for link in inside:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_map_is_complete():
    names = re.findall(r"^\| `([^`]+)` \|", PAGES[FRONT].partition("## The tasks")[0], re.M)
    assert len({*names}) == len(names)
    assert {*names} == {path.name for path in ROOT.glob("*.py")} | {"envs/"}


def imports(path: Path) -> set[str]:
    """Top-level modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_imports_point_upwards():
    """In the map, from every file, and from every function in it, to files above it. Thus there are no circles."""
    rows = re.findall(r"^\| `([^`]+)` \|", PAGES[FRONT].partition("## The tasks")[0], re.M)
    names, above = {re.sub(r"(\.py|/)$", "", row) for row in rows}, set()
    for row in rows:
        files = sorted((ROOT / row).rglob("*.py")) if row.endswith("/") else [ROOT / row]
        name = re.sub(r"(\.py|/)$", "", row)
        for file in files:
            # A package's files know each other, and a script whose functions other processes run names itself.
            assert not (imports(file) & names) - above - {name}, file
        above.add(name)
    assert len(above) > 20


def test_what_is_copied_alone_imports_nothing_of_ours():
    ours = {path.stem for path in ROOT.glob("*.py")} | {"envs"}
    for name in ("world_model.py", "planner.py", "buffer.py"):
        assert not imports(ROOT / name) & ours and f"`{name}`" in PAGES[FRONT]


def test_files_are_read_in_one_sitting_and_functions_on_one_screen():
    """At most 500 lines and 120, of everything that isn't a test."""
    files = [path for folder in (".", "envs", "results") for path in (ROOT / folder).rglob("*.py")]
    files = [path for path in files if not {"tests", ".venv", "venv"} & {*path.relative_to(ROOT).parts}]
    assert len(files) > 60
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno + 1 <= 120, (path, node.name)


@each_page
def test_named_files_exist(page):
    """A name in backticks is that of a file in one of these folders, if it looks like a path of ours."""
    ours = r"[\w/]+\.(py|txt)|(envs|results|recordings)/\S*"
    named = [span for span in code_spans(PAGES[page]) if re.fullmatch(ours, span)]
    assert len(named) > 5
    for name in named:
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "envs", page.parent)), name


def test_all_that_was_measured_is_named():
    """Every file in results/, and with each table and picture its command and its machine."""
    files = {path.name for path in MEASURED.parent.iterdir() if path.is_file()} - {MEASURED.name}
    assert not {name for name in files if name not in PAGES[MEASURED] and f"results/{name}" not in PAGES[FRONT]}
    sections = re.split(r"^## ", PAGES[MEASURED], flags=re.M)[1:]
    for section in sections:
        assert blocks(section, "bash"), section.partition("\n")[0]
        if blocks(section, "") or "![" in section:
            assert "\nMachine: " in section, section.partition("\n")[0]


# ---- commands ----


class Parsed(Exception):
    """Ends a script where its words are understood; holds what they mean."""


@pytest.fixture(scope="module")
def config() -> str:
    """As a run of the starter writes it."""
    return json.dumps(asdict(train_config.parse([]).cfg), default=str)


@pytest.fixture
def user(config, tmp_path, monkeypatch):
    """A folder in which the files lie that commands are given, and scripts that end when they have read their words."""
    parse, folder = tyro.cli, tmp_path / "runs/starter"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    (tmp_path / "demos").mkdir()
    (tmp_path / "demos/walker-walk.safetensors").touch()
    robot = ModuleType("my_robot")
    robot.make_reach, robot.player = lambda render_mode=None: gym.make("Pendulum-v1", render_mode=render_mode), None
    monkeypatch.setitem(sys.modules, "my_robot", robot)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # scripts in results/ add to it

    def start(call, *args):
        monkeypatch.setattr(tyro, "cli", parse)
        raise Parsed(call(*args))

    def cli(*args, **kwargs):  # of a script that doesn't call command.start
        raise Parsed(parse(*args, **kwargs))

    monkeypatch.setattr(command, "start", start)
    monkeypatch.setattr(tyro, "cli", cli)
    return monkeypatch


def run_python(words: list[str], monkeypatch) -> None:
    script, *rest = words
    if script == "-m":
        script, *rest = rest
    if script in NO_PARSER:
        assert (ROOT / script).is_file() and NO_PARSER[script](*rest)
    elif script == "venv":
        assert rest == [".venv"]
    elif script == "mani_skill.utils.download_asset":  # importing it takes seconds
        package = Path(importlib.util.find_spec("mani_skill").origin).parent
        assert (package / "utils/download_asset.py").is_file()
        assert all(f'"{uid}"' in (package / "utils/assets/data.py").read_text() for uid in rest)
    else:
        monkeypatch.setattr(sys, "argv", [script, *rest])
        with pytest.raises(Parsed) as end:
            if words[0] == "-m":
                runpy.run_module(script, run_name="__main__")
            else:
                runpy.run_path(str(ROOT / script), run_name="__main__")
        given = end.value.args[0]
        tasks = getattr(getattr(given, "cfg", given), "tasks", "")  # train.py gives more than settings
        assert not tasks or envs.select(tasks)


def run_pytest(words: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("-m", default="slow")
    parser.add_argument("-k", default="")
    parser.add_argument("files", nargs="*")
    given = parser.parse_args(words)
    assert f'markers = ["{given.m}: ' in (ROOT / "pyproject.toml").read_text()
    for file in given.files:
        assert re.search(rf"^def test_\w*{given.k}", (ROOT / file).read_text(), re.M), f"{file} has no test {given.k}"


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_commands_parse(words, user):
    program, *rest = words
    if program.startswith("python"):
        run_python(rest, user)
    elif program == "pytest":
        run_pytest(rest)
    elif program == "torchrun":
        given = get_args_parser().parse_args(rest)
        run_python([given.training_script, *given.training_script_args], user)
    elif program == "pip":
        assert rest[:3] == ["install", "-q", "-r"] and (ROOT / rest[3]).is_file()
    else:
        assert words == [".", ".venv/bin/activate"]


def test_the_first_screen_sets_up_and_tests_run_as_in_ci():
    """Two commands, each complete on a fresh machine; .ci/run takes the second one's words."""
    first = blocks(PAGES[FRONT], "bash")[0]
    lines = [line for line in first.splitlines() if not line.startswith("#")]
    assert len(lines) == 2 and PAGES[FRONT].index(first) < 1_500
    for line, last in zip(lines, ("python train.py", "pytest"), strict=True):
        assert line.split(" && ")[2:] == ["pip install -q -r requirements.txt", last]
    assert "pytest" in (ROOT / ".ci/run").read_text().splitlines()


@each_page
def test_python_in_the_text_runs(page):
    for block in blocks(PAGES[page], "python"):
        exec(block, {})
