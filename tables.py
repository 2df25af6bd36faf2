"""Results as text: per task, per suite and overall, with intervals, beside what chance and the demonstrations score.

Test: pytest tests/test_eval.py
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

import envs
from episodes import Results, estimates
from intervals import Estimate, mean_of

RESULTS = Path(__file__).parent / "results"
BASELINES = {"random": ("random_policy", "score_mean"), "demonstrated": ("demos", "score")}  # file and column
UNSEEN_NOTE = "+ unseen: not among the tasks that this agent was trained on"


def mean_of_defined(rows: list) -> np.ndarray:
    """Mean over the first axis, of those that aren't NaN; NaN where all are."""
    x = np.asarray(rows, dtype=np.float64)
    return np.nansum(x, 0) / np.where(np.isnan(x).all(0), np.nan, (~np.isnan(x)).sum(0))


def _cell(x: float, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if np.isnan(x) else f"{x:{width}.{digits}f}"


def _rate(x: Estimate, width: int) -> str:
    """Mean and interval."""
    ends = "" if np.isnan(x.low) else f" {x.low:.2f}-{x.high:.2f}"
    return _cell(x.mean, width - 10, 3) + f"{ends:10}"


def label(name: str, unseen: frozenset[str] | set[str]) -> str:
    return envs.label(name) + "+" * (name in unseen)


def baselines() -> dict[str, dict[str, float]]:
    """What each task's score is by chance and in its demonstrations: results/random_policy.csv, results/demos.csv."""
    known = defaultdict(dict)
    for word, (file, column) in BASELINES.items():
        if (path := RESULTS / f"{file}.csv").is_file():
            with open(path, newline="", encoding="utf-8") as rows:
                for row in csv.DictReader(rows):
                    if row.get("policy", "random") == "random" and row[column]:
                        known[row["task"].rstrip("*")][word] = float(row[column])
    return known


def table(results: Results, unseen: frozenset[str] | set[str] = frozenset()) -> str:
    """Per task, per suite and overall, as text. A suite's row is the mean over its tasks; intervals are of 95 %.

    What isn't defined is shown as "-" and in no mean. Own tasks may end early, so their episodes' length is shown.
    """
    timed, known = any(":" in name for name in results), baselines()
    width = max([len(label(name, unseen)) for name in results] + [len("mean of suites")]) + 2
    columns = {"return": 19, "success": 17, "any step": 9, "score": 18, "random": 8, "demos": 8}
    head = "".join(f"{name:>{size}}" for name, size in columns.items())
    lines = [f"{'task':{width}}{head}" + f"{'length':>16}" * timed]

    def row(title: str, cells: dict[str, Estimate], beside: dict[str, float], spread: bool = True) -> str:
        ret, half = cells["ret"].mean, cells["ret"].half
        spread = f" ±{_cell(half, 7, 1)}" if spread and not np.isnan(half) else " " * 9
        text = f"{title:{width}}{_cell(ret, 10, 1)}{spread}{_rate(cells['success'], 17)}"
        text += f"{_cell(cells['success_any'].mean, 9, 3)}{_rate(cells['score'], 18)}"
        return text + "".join(_cell(beside.get(word, np.nan), 8, 3) for word in BASELINES)

    suites, every = defaultdict(list), {}
    for name, episodes in results.items():
        cells = estimates(episodes, envs.TASKS[name].success_defined)
        length = f"{cells['length'].mean:9.1f} ±{cells['length'].half:5.1f}".replace("nan", "  -")
        lines.append(row(label(name, unseen), cells, known.get(name, {})) + length * timed)
        suites[envs.TASKS[name].domain].append(name)
        every[name] = cells

    def means(names: list[str]) -> tuple[dict[str, Estimate], dict[str, float]]:
        cells = {key: mean_of(every[name][key] for name in names) for key in ("ret", "success", "success_any", "score")}
        beside = {word: [known.get(name, {}).get(word, np.nan) for name in names] for word in BASELINES}
        return cells, {word: float(mean_of_defined(values)) for word, values in beside.items()}

    lines.append("-" * len(lines[0]))
    found = {suite: means(names) for suite, names in suites.items()}
    for suite, (cells, beside) in found.items():
        lines.append(row(f"{suite} ({len(suites[suite])})", cells, beside, spread=False))
    cells, beside = means(list(results))
    lines.append(row("mean of tasks", cells | {"ret": Estimate(*[np.nan] * 3)}, beside).replace(" -", "  ", 1))
    score = _rate(mean_of(cells["score"] for cells, _ in found.values()), 18)
    lines.append(f"{'mean of suites':{width}}{'':{19 + 17 + 9}}{score}")
    lines += [envs.STAND_IN_NOTE] * any(envs.label(name) != name for name in results)
    return "\n".join(line.rstrip() for line in lines + [UNSEEN_NOTE] * bool(unseen & {*results}))


def compare(stages: dict[str, dict[str, list]]) -> str:
    """Random policy, after pretraining, after online training side by side: score and return of every task.

    stages: name -> task -> episodes as (return, success, score, length). The rows at the end are means over the
    tasks of each suite, if there are several, and over all tasks. What isn't defined is shown as "-" and in no mean.
    """
    tasks = list(next(iter(stages.values())))
    width = max(len(envs.label(task)) for task in tasks) + 2
    timed = any(":" in task for task in tasks)  # own tasks may end early
    head = f"{'':{width}}" + "".join(
        f"{what:>{12 * len(stages)}}" for what in ["score (0 to 1)", "return"] + ["length"] * timed
    )
    lines = [f"{head}\n{'task':{width}}" + "".join(f"{stage:>12}" for stage in stages) * (2 + timed)]
    score, ret, success, *length = (
        {stage: {task: np.mean([e[field] for e in played[task]]) for task in tasks} for stage, played in stages.items()}
        for field in (2, 0, 1, 3)[: 3 + timed]
    )
    for task in tasks:
        cells = [f"{score[s][task]:12.3f}".replace("nan", "  -") for s in stages]
        cells += [f"{x[s][task]:12.1f}" for x in (ret, *length) for s in stages]
        lines.append(f"{envs.label(task):{width}}" + "".join(cells))
    lines.append("-" * len(lines[-1]))
    suites = defaultdict(list)
    for task in tasks:
        suites[envs.TASKS[task].domain].append(task)
    for suite, members in suites.items() if len(suites) > 1 else ():
        means = "".join(f"{mean_of_defined([score[s][task] for task in members]):12.3f}" for s in stages)
        lines.append(f"{f'{suite} ({len(members)})':{width}}{means.replace('nan', '  -')}")
    means = "".join(f"{mean_of_defined(list(score[s].values())):12.3f}" for s in stages)
    lines.append(f"{'mean':{width}}{means.replace('nan', '  -')}")
    defined = [task for task in tasks if not all(np.isnan(success[s][task]) for s in stages)]
    judged = [task for task in defined if envs.TASKS[task].success_defined]
    if judged:
        means = "".join(f"{mean_of_defined([success[s][task] for task in judged]):12.3f}" for s in stages)
        means = means.replace("nan", "  -")
        lines.append(f"{'success':{width}}{means}   (mean over the {len(judged)} tasks that define it)")
    return "\n".join(lines + [envs.STAND_IN_NOTE] * any(envs.label(task) != task for task in tasks))
