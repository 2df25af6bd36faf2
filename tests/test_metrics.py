"""metrics.py: curves out of lines of metrics. (What runs write is tested in test_train.py.)

Run: pytest tests/test_metrics.py        (about 2 seconds on one core)
"""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import metrics


def drawn(lines: list[dict], folder: Path, monkeypatch) -> dict[str, dict]:
    """Title of each panel -> label in the legend, or "band" -> x and y of what is drawn."""
    panels = {}

    def look(figure, path, **_):
        labels = {id(line): "?" for axis in figure.axes for line in axis.lines}
        (legend,) = figure.legends
        words = [text.get_text() for text in legend.get_texts()]
        assert len(words) == len(set(words)) <= 4
        for axis in figure.axes:
            if axis.get_title():
                panels[axis.get_title()] = {
                    "lines": [np.asarray(line.get_xydata()) for line in axis.lines if id(line) in labels],
                    "bands": [band.get_datalim(axis.transData) for band in axis.collections],
                    "limits": axis.get_ylim(), "words": words,
                }  # fmt: skip

    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(Figure, "savefig", look)
    metrics.plot_curves(folder / "metrics.jsonl", folder / "curves.png")
    return panels


def test_a_file_comes_out(tmp_path):
    line = {"step": 0, "eval/mw-reach/ret": 3.0, "eval/mw-reach/score": 0.0, "eval/score": 0.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    metrics.plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_running_mean_by_hand():
    """Of the last three episodes, or of the last tenth of all."""
    steps, mean, deviation = metrics.running([(10 * i, float(i % 2)) for i in range(6)])
    assert steps.tolist() == [0, 10, 20, 30, 40, 50]
    np.testing.assert_allclose(mean, [0, 1 / 2, 1 / 3, 2 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(deviation, [0, 1 / 2, *[np.sqrt(2) / 3] * 4])
    assert metrics.running([(i, float(i)) for i in range(100)])[1][-1] == np.mean(range(90, 100))


def test_success_is_drawn_by_its_return(tmp_path, monkeypatch):
    """A score of 0 or 1 would be a sawtooth; one in between is drawn as it is. Levels and intervals are there."""
    lines = [
        {"step": 0, "demo/mw-reach/ret": 90.0, "demo/mw-reach/score": 1.0},
        {"step": 0, "eval/mw-reach/ret": 10.0, "eval/mw-reach/score": 0.0, "eval/walker-walk/ret": 30.0,
         "eval/walker-walk/score": 0.03},
        *({"step": s, "train/mw-reach/return": 10.0 * s, "train/mw-reach/score": float(s > 2),
           "train/walker-walk/return": 100.0 * s, "train/walker-walk/score": 0.1 * s} for s in (1, 2, 3)),
        {"step": 4, "eval/mw-reach/ret": 50.0, "eval/mw-reach/ret_interval": 5.0, "eval/mw-reach/score": 0.7,
         "eval/walker-walk/ret": 400.0, "eval/walker-walk/score": 0.4, "eval/walker-walk/score_interval": 0.1},
    ]  # fmt: skip
    panels = drawn(lines, tmp_path, monkeypatch)
    assert set(panels) == {"mw-reach (return)", "walker-walk (score)"}
    reach, walk = panels["mw-reach (return)"], panels["walker-walk (score)"]
    assert reach["words"] == ["training, running mean", "evaluation, 95 %", "random", "demonstrations"]
    np.testing.assert_allclose(reach["lines"][0], [[1, 10], [2, 15], [3, 20]])
    levels = sorted(line[0, 1] for line in reach["lines"] if len(line) == 2 and line[0, 1] == line[1, 1])
    assert levels == [10, 90] and any(np.array_equal(line, [[4, 50]]) for line in reach["lines"])
    assert any(np.array_equal(line, [[4, 45]]) for line in reach["lines"])  # the interval's lower end
    np.testing.assert_allclose(walk["lines"][0], [[1, 0.1], [2, 0.15], [3, 0.2]])
    assert any(np.allclose(line, [[4, 0.3]]) for line in walk["lines"]) and walk["limits"] == (-0.05, 1.05)
    assert len(walk["bands"]) >= 1


@pytest.mark.parametrize("name", ["gym:my_envs:lab/Reach-v0", "my_envs:quiet"])
def test_curves_of_own_tasks(name, tmp_path, monkeypatch):
    """Names with slashes keep their curve; a task without a score has its return drawn."""
    lines = [{"step": 0, f"eval/{name}/ret": 3.0}, {"step": 9, f"train/{name}/return": 4.0}]
    (panel,) = drawn(lines, tmp_path, monkeypatch).items()
    assert panel[0] == f"{name} (return)" and np.array_equal(panel[1]["lines"][0], [[9, 4]])
