"""The page that eval.py --report writes: out/index.html, which works from the disk, without a server or a network.

    out/index.html      summary per suite, map of scores, table, differences of checkpoints, a part for each task
    out/plots/*.svg     returns of each task, learning curves, open loop; out/films/*.mp4
    out/evaluation-*.json    what it was made of (evaluation_file.py): the page knows nothing else but films and a run

Words come from files and are escaped by the template (report.html.jinja). Only folders that are empty or hold such a
page are written to.
Test: pytest tests/test_report.py
"""

import math
import re
import shutil
from collections import defaultdict
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
from tqdm import tqdm

import envs
import evaluation_file
import metrics
import open_loop
from buffer import replacing
from episodes import Episode, defined, estimates
from intervals import Estimate, difference, mean_of

MARK = '<meta name="generator" content="newt-evaluation">'
OURS = re.compile(r"index\.html|evaluation-\w+\.(json|png)|films|films/[^/]+\.mp4|plots|plots/[^/]+\.svg")
GREY = "#808080"  # of lines and words in plots: they are seen on white and on black
COLOURS = ("#3b82c4", "#d9822b", "#3f9c5a", "#9a63c9", "#c44e52", "#8c8c3c")  # of checkpoints


def require_ours(folder: Path, also: tuple[Path, ...] = ()) -> None:
    """ValueError or OSError, one line, if the folder holds anything that no report of ours wrote. also: but these."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, not a folder for a report")
    allowed = {path.resolve() for path in also}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not OURS.fullmatch(name) and not {path.resolve(), *path.resolve().parents} & allowed:
            raise ValueError(f"the folder {folder} holds something else than a report, {name}: name another one")
    index = folder / "index.html"
    if index.is_file() and MARK not in index.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise ValueError(f"{index} is no report of this program: name another folder")


def file_of(folder: Path, ckpt: Path) -> Path:
    """Where a report keeps the evaluation of this checkpoint."""
    return folder / f"evaluation-{evaluation_file.fingerprint(ckpt)[:12]}.json"


# ---------------------------------------------------------------- what the page says, out of the evaluations


def row_of(name: str, about: dict, played: list[Episode]) -> dict:
    """A task of one evaluation: estimates of all that is told, and its episodes."""
    played = defined(played)
    row = estimates(played, about["success_defined"])
    return row | about | {"name": name, "id": f"task-{envs.file_name(name)}", "episodes": played}


def rows_of(record: dict) -> dict[str, dict]:
    """Tasks by suite, in the order of the file; where all was open loop, of the shortest such."""
    results = evaluation_file.episodes(record)
    if not results and record["open_loop"]:
        results = evaluation_file.episodes(record, min(map(int, record["open_loop"])))
    rows = {name: row_of(name, record["about"][name], played) for name, played in results.items() if played}
    return dict(sorted(rows.items(), key=lambda item: list(s["suite"] for s in rows.values()).index(item[1]["suite"])))


def suites_of(rows: dict[str, dict]) -> dict[str, dict]:
    """suite -> mean score and success of its tasks with intervals, of chance and demonstrations; at last, all tasks."""
    groups = defaultdict(list)
    for row in rows.values():
        groups[row["suite"]].append(row)
    if len(groups) > 1:
        groups["all tasks"] = list(rows.values())

    def mean(values: list) -> float:
        known = [x for x in values if x is not None]
        return float(np.mean(known)) if known else math.nan

    return {
        suite: {"tasks": len(group), "score": mean_of(row["score"] for row in group),
                "success": mean_of(row["success"] for row in group),
                "success_any": mean_of(row["success_any"] for row in group),
                **{key: mean([row[key] for row in group]) for key in ("random", "demonstrated")}}
        for suite, group in groups.items()
    }  # fmt: skip


def differences(first: dict[str, dict], other: dict[str, dict]) -> list[dict]:
    """Of tasks that both were evaluated on, other minus first, the worst regression first; sure: 0 isn't inside.

    Of scores; of returns where a task has no score.
    """
    rows = []
    for name in first.keys() & other.keys():
        key = "ret" if math.isnan(first[name]["score"].mean) else "score"
        a, b = first[name][key], other[name][key]
        by = difference(b, a)
        rows.append({"name": name, "id": first[name]["id"], "suite": first[name]["suite"], "what": key, "a": a, "b": b,
                     "by": by, "sure": by.low > 0 or by.high < 0})  # fmt: skip
    return sorted(rows, key=lambda row: (row["what"] == "ret", math.inf if row["by"].mean != row["by"].mean
                                         else row["by"].mean, row["name"]))  # fmt: skip


# ---------------------------------------------------------------- plots


def _figure(width: float, height: float):
    matplotlib.use("Agg")  # files only: no display is needed
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(width, height))
    figure.subplots_adjust(0.13, 0.22, 0.98, 0.96)
    axis.tick_params(colors=GREY, labelsize=8)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(color=GREY, fontsize=8)
    return figure, axis, plt


def _save(figure, plt, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


def draw_returns(rows: list[dict | None], path: Path) -> None:
    """Histogram of a task's returns, one for each checkpoint that has it."""
    figure, axis, plt = _figure(4.2, 2.4)
    values = [np.array([e.ret for e in row["episodes"]]) if row else np.zeros(0) for row in rows]
    every = np.concatenate(values)
    low, high = float(every.min()), float(every.max())
    pad = max(1e-9, abs(high)) * 1e-3 if high - low < 1e-9 * max(1, abs(high)) else 0
    bins = np.linspace(low - pad, high + pad, max(6, min(25, int(np.sqrt(len(every)) * 2))))
    for x, colour in zip(values, COLOURS * len(rows), strict=False):
        axis.hist(x, bins, color=colour, alpha=0.55 if len(rows) > 1 else 0.9)
    axis.set(xlabel="return", ylabel="episodes")
    axis.yaxis.get_major_locator().set_params(integer=True)
    _save(figure, plt, path)


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Key of a run's metrics -> (step, value). ValueError, one line, if that isn't one's folder."""
    try:
        return metrics.read(run / "metrics.jsonl")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{run} is no folder of a run with readable metrics.jsonl ({error!s:.100})") from error


def draw_curve(points: dict[str, list], task: str, path: Path) -> bool:
    """Score (or return, where there is none) against environment steps; False if the run has nothing of this task."""
    word = "score" if f"eval/{task}/score" in points else "ret"
    train = points.get(f"train/{task}/{'score' if word == 'score' else 'return'}", [])
    evaluated = points.get(f"eval/{task}/{word}", [])
    if not train and not evaluated:
        return False
    figure, axis, plt = _figure(4.2, 2.4)
    if train:
        steps, mean, deviation = metrics.running(train)
        axis.plot(steps, mean, color=COLOURS[0], linewidth=1)
        axis.fill_between(steps, mean - deviation, mean + deviation, color=COLOURS[0], alpha=0.25, linewidth=0)
    if evaluated:
        axis.plot(*zip(*evaluated, strict=True), "o", color=COLOURS[1], markersize=4)
    axis.set(xlabel="environment steps (line: training; dots: evaluations)", ylabel={"ret": "return"}.get(word, word))
    if word == "score":
        axis.set_ylim(-0.05, 1.05)
    _save(figure, plt, path)
    return True


def colour(score: float) -> tuple[str, str]:
    """Of a cell in the map of scores, and of the words on it."""
    if math.isnan(score):
        return "transparent", "inherit"
    red, green, blue, _ = matplotlib.colormaps["viridis"](0.08 + 0.9 * min(1.0, max(0.0, score)))
    bright = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return matplotlib.colors.to_hex((red, green, blue)), "#000" if bright > 0.18 else "#fff"


# ---------------------------------------------------------------- the page


def number(x: float | None, digits: int = 3) -> str:
    return "–" if x is None or math.isnan(x) else f"{x:.{digits}f}".replace("-", "−")


def span(x: Estimate, digits: int = 2) -> str:
    return "" if math.isnan(x.low) else f"{number(x.low, digits)} to {number(x.high, digits)}"


def write(folder: Path, records: list[dict], films: Path | None = None, run: Path | None = None) -> Path:
    """The page about these evaluations -> index.html. films: folder with <task>.mp4; run: a run's, for its curves.

    The first evaluation is the one that others are compared with. Raises ValueError, OSError: one line.
    """
    curves = read_curves(run) if run else {}
    rows = [rows_of(record) for record in records]
    names = list(dict.fromkeys(name for table in rows for name in table))
    for part in ("plots", "films"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    tasks = []
    for name in tqdm(names, desc="page", unit="task", leave=False, disable=None):
        file, found = envs.file_name(name), [table.get(name) for table in rows]
        draw_returns(found, folder / f"plots/returns-{file}.svg")
        film = folder / f"films/{file}.mp4"
        if films and (films / film.name).is_file() and (films / film.name).resolve() != film.resolve():
            shutil.copyfile(films / film.name, film)
        first = next(row for row in found if row)
        back, words = colour(first["score"].mean)
        learned = draw_curve(curves, name, folder / f"plots/curve-{file}.svg")
        links = {"film": f"films/{file}.mp4" if film.is_file() else None, "returns": f"plots/returns-{file}.svg",
                 "curve": f"plots/curve-{file}.svg" if learned else None}  # fmt: skip
        tasks.append(first | links | {"of": found, "back": back, "words": words})
    looks = []
    for i, record in enumerate(records):
        results = {int(k): {name: defined(played) for name, played in evaluation_file.episodes(record, int(k)).items()
                            if played} for k in sorted(record["open_loop"], key=int)}  # fmt: skip
        common = set.intersection(*({*table} for table in results.values())) if len(results) > 1 else set()
        if common:
            results = {k: {name: table[name] for name in table if name in common} for k, table in results.items()}
            open_loop.plot(results, folder / f"plots/open-loop-{i}.svg")
            looks.append({"plot": f"plots/open-loop-{i}.svg", "table": open_loop.table(results), "letter": chr(65 + i)})
    agents = [
        {"letter": chr(65 + i), "ckpt": record["ckpt"], "step": record["step"], "colour": COLOURS[i % len(COLOURS)],
         "settings": record["settings"], "suites": suites_of(table), "file": file.name if (file := folder / (
             f"evaluation-{record['settings']['agent'][:12]}.json")).is_file() else None,
         "differences": differences(rows[0], table) if i else []}
        for i, (record, table) in enumerate(zip(records, rows, strict=True))
    ]  # fmt: skip
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"number": number, "span": span}
    suites = list(dict.fromkeys(task["suite"] for task in tasks))
    scale = [colour(x / 10)[0] for x in range(11)]
    text = page.get_template("report.html.jinja").render(
        agents=agents, tasks=tasks, suites=suites, looks=looks, scale=scale, run=run, mark=MARK, nan=math.isnan,
    )  # fmt: skip
    index = folder / "index.html"
    with replacing(index) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return index
