"""Evaluations as files: JSON that holds every finished episode while it is being made, and is believed after a check.

    {"newt_evaluation": 1, "ckpt": path, "step": environment steps trained, "settings": {"agent": sha256 of the
     checkpoint, "seed", "planner", "instruction", "precision"}, "planner": {task: way it decided}, "about": {task:
     {"suite", "sentence", "unseen", "stand_in", "success_defined", "random", "demonstrated": scores}}, "tasks": {task:
     [episode, ...]}, "open_loop": {K: {task: [episode, ...]}}}

An episode has the fields of episodes.Episode. JSON has no NaN: what isn't defined is null. Files are complete or
absent. One that was begun with other settings is refused: numbers of two evaluations must not end up in one table.
Test: pytest tests/test_evaluation_file.py
"""

import json
import math
from hashlib import sha256
from pathlib import Path

import envs
from agent_file import NAME
from buffer import replacing
from episodes import Episode, Results
from open_loop import ERRORS

VERSION = 1
WORDS = {"agent": "the checkpoint", "seed": "--seed", "planner": "--planner", "instruction": "--instruction",
         "precision": "--precision"}  # fmt: skip
ABOUT = {"suite": str, "sentence": str, "unseen": bool, "stand_in": bool, "success_defined": bool, "random": float,
         "demonstrated": float}  # fmt: skip


def new(ckpt: Path, step: int, seed: int, planner: str, instruction: str | None, precision: str = "float32") -> dict:
    """An evaluation that is about to begin. OSError if the checkpoint can't be read."""
    settings = {"agent": fingerprint(ckpt), "seed": seed, "planner": planner, "instruction": instruction,
                "precision": precision}  # fmt: skip
    return {"newt_evaluation": VERSION, "ckpt": str(ckpt), "step": step, "settings": settings,
            "planner": {}, "about": {}, "tasks": {}, "open_loop": {}}  # fmt: skip


def about(name: str, sentence: str, unseen: bool, scores: dict[str, float]) -> dict:
    """What a reader of the file is told about a task, who may not have it. scores: tables.baselines."""
    row, beside = envs.TASKS[name], {key: scores.get(key) for key in ("random", "demonstrated")}
    words = {"suite": row.domain, "sentence": sentence, "unseen": unseen, "stand_in": envs.label(name) != name}
    return words | {"success_defined": row.success_defined, **beside}


def fingerprint(path: Path) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest()


def go_on(path: Path, begun: dict) -> dict:
    """What the file at `path` holds of the evaluation that is about to begin, or just that where there is no file.

    Raises ValueError, one line: it holds something else, or an evaluation of another agent or with other settings.
    """
    if not path.exists() or not path.stat().st_size:
        return begun
    found = load(path)
    found["settings"].setdefault("precision", "float32")  # as evaluations were that don't know the word
    other = [word for key, word in WORDS.items() if found["settings"][key] != begun["settings"][key]]
    if other:
        raise ValueError(f"{path} holds an evaluation with another value of {', '.join(other)}; it can't be continued: "
                         "name another file, or remove it")  # fmt: skip
    return found | {"ckpt": begun["ckpt"]}


def save(path: Path, record: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")


def load(path: Path) -> dict:
    """An evaluation out of a file, checked. ValueError, one line; OSError where there is none."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error!s:.100})") from error
    if not isinstance(record, dict) or record.get("newt_evaluation") != VERSION:
        raise ValueError(f"{path} holds something else than an evaluation of this program (eval.py --json)")
    try:
        _check(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!s:.200}") from error
    return record


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _number(x, low: float = -1e300, high: float = 1e300) -> bool:
    return type(x) in (int, float) and low <= x <= high


def _check(record: dict) -> None:
    """ValueError unless everything is of the right type and size: names and sentences end up in prints and pages."""
    text = [record["ckpt"], record["settings"]["agent"], record["settings"]["planner"], *record["planner"].values()]
    text += [row[key] for row in record["about"].values() for key in ("suite", "sentence")]
    text += [record["settings"]["instruction"] or ""]
    _require(all(type(word) is str and len(word) < 10_000 for word in text), "words that are none")
    _require(_number(record["step"], 0) and _number(record["settings"]["seed"], 0), "a step or a seed that is none")
    _require(all(word.isdecimal() for word in record["open_loop"]), "open loop of no number of steps")
    tables = [record["tasks"], *record["open_loop"].values()]
    for name in {name for table in tables for name in table} | {*record["planner"]} | {*record["about"]}:
        _require(len(name) <= 200 and NAME.fullmatch(name) is not None, f"a task {name!r:.60}")
    for table in tables:
        for name, rows in table.items():
            about = record["about"][name]
            _require(set(about) == set(ABOUT) and name in record["planner"], f"what is said about {name}")
            for key, kind in ABOUT.items():
                known = about[key] is None or _number(about[key]) if kind is float else type(about[key]) is kind
                _require(known, f"{key} of {name}")
            _require(all(_sound(row) for row in rows), f"an episode of {name}")
            numbers = [row["number"] for row in rows]
            _require(len({*numbers}) == len(numbers), f"an episode of {name} that is there twice")


def _sound(row: dict) -> bool:
    errors = row["model_error"]
    known = all(row[key] is None or _number(row[key]) for key in ("success", "success_any", "score"))
    known &= set(row) == set(Episode._fields) and _number(row["ret"]) and _number(row["length"], 1)
    known &= type(row["number"]) is int and 0 <= row["number"] < 2**32
    if errors is not None:
        same = {len(errors[name]) for name in ERRORS}
        known &= set(errors) == {*ERRORS, "mean_reward"} and len(same) == 1 and _number(errors["mean_reward"], 0)
        known &= all(_number(x, 0) for name in ERRORS for x in errors[name])
    return known


def episodes(record: dict, k: int = 0) -> Results:
    """task -> the episodes that are there, with looks every k steps; 0: without open loop."""
    rows = record["open_loop"].get(str(k), {}) if k else record["tasks"]
    return {
        name: [Episode(**{key: math.nan if x is None and key != "model_error" else x for key, x in row.items()})
               for row in table] for name, table in rows.items()
    }  # fmt: skip


def put(record: dict, results: Results, k: int = 0) -> None:
    """Make these the tasks' episodes; others' stay as they are."""
    rows = record["open_loop"].setdefault(str(k), {}) if k else record["tasks"]
    for name, played in results.items():
        rows[name] = [{key: None if x != x else x for key, x in e._asdict().items()} for e in played]
