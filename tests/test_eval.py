"""eval.py: the same command gives the same numbers, from anywhere, with one file; tables; bad input.

Run: pytest tests/test_eval.py        (about a minute on one core)
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

import agent_file
import envs
import eval as evaluation
import language
import newt
import tables
from episodes import Episode

ROOT = Path(evaluation.__file__).parent
TASKS = ["mw-reach", "mw-drawer-close"]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory) -> Path:
    """An untrained agent with a small planner."""
    cfg = newt.Config(size="XS", num_samples=16, num_elites=4, num_pi=2, iterations=2)
    rows = [envs.TASKS[name] for name in TASKS]
    emb = language.embed([row.sentence for row in rows])
    agent = newt.create(cfg, TASKS, emb, [row.action_dim for row in rows], [row.discount for row in rows], seed=3)
    path = tmp_path_factory.mktemp("ckpt") / "agent.safetensors"
    agent_file.save(path, agent, step=1234)
    return path


def run_eval(folder: Path, *args: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, ROOT / "eval.py", *args]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


def test_one_file_in_another_folder_and_the_same_numbers_twice(ckpt, tmp_path):
    shutil.copy(ckpt, tmp_path / "only.safetensors")
    args = ("--ckpt", "only.safetensors", "--episodes", "3", "--seed", "5", "--json", "out.json")
    done = [run_eval(tmp_path, *args, "--workers", workers) for workers in ("1", "2")]
    assert done[0].returncode == 0, done[0].stderr
    assert done[0].stdout == done[1].stdout and "step 1234" in done[0].stdout
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["tasks"]) == TASKS and report["settings"]["seed"] == 5
    for name, episodes in report["tasks"].items():
        assert len(episodes) == 3 and len({e["ret"] for e in episodes}) == 3  # each starts from its own state
        mean = np.mean([e["ret"] for e in episodes])
        assert re.search(rf"^{name} +{mean:.1f} ", done[0].stdout, re.M)


def test_random_policy_is_what_a_plain_loop_gives(ckpt):
    """Episode seeds and auto-reset leave the tasks as they are: returns agree with a loop over envs.make."""
    from envs.vector import episode_seed

    agent, _ = agent_file.load(ckpt)
    played = evaluation.evaluate(agent, ["mw-reach"], 2, seed=7, policy="random", workers=1)["mw-reach"]
    for i in range(2):
        rng = np.random.default_rng(episode_seed(7, "mw-reach", 1, i))
        env = envs.make("mw-reach")
        env.reset(seed=episode_seed(7, "mw-reach", 0, i))
        steps = [env.step(rng.uniform(-1, 1, 4).astype(np.float32)) for _ in range(100)]
        np.testing.assert_allclose(played[i].ret, sum(np.float32(s[1]) for s in steps), rtol=1e-6)
        assert (played[i].success, played[i].score) == (steps[-1][4]["success"], steps[-1][4]["score"])


def test_many_episodes_come_in_rounds(ckpt, monkeypatch):
    agent, _ = agent_file.load(ckpt)
    monkeypatch.setattr("episodes.ENVS_AT_ONCE", 4)
    played = evaluation.evaluate(agent, TASKS, 5, seed=0, policy="policy", workers=1)
    assert {name: len(episodes) for name, episodes in played.items()} == dict.fromkeys(TASKS, 5)
    assert len({e.ret for episodes in played.values() for e in episodes}) == 10


def test_evaluation_leaves_training_alone(ckpt):
    agent, _ = agent_file.load(ckpt)
    state, params = agent.generator.get_state(), {k: v.clone() for k, v in agent.params.items()}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    evaluation.evaluate(agent, ["mw-reach"], 1, workers=1)
    assert torch.equal(agent.generator.get_state(), state) and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(agent.params[k], v) for k, v in params.items())


def test_tables_by_hand():
    results = {
        "mw-reach": [Episode(10, 1, 1, 100, 1), Episode(30, 0, 0, 100, 1)],
        "mw-push": [Episode(5, 1, 1, 100, 1)] * 2,
        "walker-walk": [Episode(400, 0, 0.4, 500, 0)] * 2,
    }
    text = tables.table(results)
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    # return and half of Student's interval: 12.706 * sqrt(200) / sqrt(2); success at the end and ever; score
    assert lines["mw-reach"][1:6] == ["20.0", "±", "127.1", "0.500", "0.09-0.91"]
    assert lines["mw-reach"][6:9] == ["1.000", "0.500", "0.09-0.91"]
    assert lines["walker-walk"][4:] == ["-", "-", "0.400", "0.40-0.40", "0.041", "0.891"]  # results/*.csv
    assert lines["metaworld"][2:4] == ["12.5", "0.750"] and lines["metaworld"][5:7] == ["1.000", "0.750"]
    assert re.search(r"^mean of tasks +0\.750 \S+ +1\.000 +0\.633 ", text, re.M)  # (0.5 + 1 + 0.4) / 3
    assert re.search(r"^mean of suites +0\.575 ", text, re.M)  # (0.75 + 0.4) / 2
    stages = {"random": dict.fromkeys(results, [(0, 0, 0)]), "online": results}
    text = tables.compare(stages)
    assert re.search(r"^walker-walk +0\.000 +0\.400 +0\.0 +400\.0$", text, re.M)
    assert re.search(r"^metaworld \(2\) +0\.000 +0\.750$", text, re.M)  # (0.5 + 1) / 2
    assert re.search(r"^mean +0\.000 +0\.633$", text, re.M)
    assert re.search(r"^success +0\.000 +0\.750 +\(mean over the 2 tasks", text, re.M)


OWN = ["my_envs:dies", "my_envs:cut", "gym:my_envs:lab/Reach-v0", "my_envs:quiet"]


@pytest.fixture(scope="module")
def own():
    cfg = newt.Config(size="XS", num_samples=16, num_elites=4, num_pi=2, iterations=1)
    yield newt.create(cfg, OWN, torch.zeros(4, 384), [1] * 4, [0.95] * 4)
    for name in OWN:
        envs.TASKS.pop(name, None)


def test_episodes_of_own_tasks_end_when_they_end(own):
    played = evaluation.evaluate(own, OWN, 3, policy="random", workers=1)
    nan = np.nan
    wanted = [(7, 0, 0, 7, 1), (5, 0, 0, 5, 1), (5, 0, 0, 5, 1), (4, nan, nan, 4, nan)]  # success: the second step's
    for name, want in zip(OWN, wanted, strict=True):
        np.testing.assert_array_equal([e[:5] for e in played[name]], [want] * 3)


def test_what_is_not_defined_is_null_in_json(own, tmp_path, capsys):
    agent_file.save(tmp_path / "a.safetensors", own)
    cfg = evaluation.Eval(tmp_path / "a.safetensors", OWN[3], 2, planner="off", json=tmp_path / "a.json", workers=1)
    evaluation.main(cfg)
    report = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    row = {"ret": 4, "success": None, "score": None, "length": 4, "success_any": None, "model_error": None}
    assert report["tasks"] == {OWN[3]: [row | {"number": i} for i in range(2)]}
    assert re.search(r"^my_envs:quiet +4\.0 ± +0\.0 +- +- +- +- +- +4\.0 ±  0\.0$", capsys.readouterr().out, re.M)


def test_what_is_not_defined_is_shown_as_such():
    results = {OWN[2]: [Episode(10, 1, 1, 7), Episode(30, 0, 0, 9)], OWN[3]: [Episode(5, np.nan, np.nan, 4)] * 2,
               "mw-reach": [Episode(3, 1, 1, 100)] * 2}  # fmt: skip
    text = tables.table(results)
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert lines["task"] == "return success any step score random demos length".split() and "nan" not in text
    rate = ["0.500", "0.09-0.91"]
    assert lines[OWN[2]] == ["20.0", "±", "127.1", *rate, "-", *rate, "-", "-", "8.0", "±", "12.7"]
    assert [word for word in lines[OWN[3]] if word != "±"] == ["5.0", "0.0", "-", "-", "-", "-", "-", "4.0", "0.0"]
    assert re.search(r"^own \(2\) +12\.5 +0\.500 \S+ +- +0\.500 ", text, re.M)  # of what is defined
    assert re.search(r"^mean of tasks +0\.750 \S+ +- +0\.750 ", text, re.M)
    text = tables.compare({"random": results, "online": results})
    assert re.search(r"^my_envs:quiet +- +- +5\.0 +5\.0 +4\.0 +4\.0$", text, re.M) and "nan" not in text
    assert re.search(r"^mean +0\.750 +0\.750$", text, re.M)
    assert re.search(r"^success +0\.750 +0\.750 +\(mean over the 2 tasks", text, re.M)
    alone = {OWN[3]: results[OWN[3]]}
    assert "nan" not in tables.table(alone) + tables.compare({"online": alone})
    assert "length" not in tables.table({"mw-reach": results["mw-reach"]})


def test_video(tmp_path):
    """Two tasks of other lengths, quickly drawn: the shorter one holds its last frame."""
    import imageio.v2 as imageio

    tasks = ["mujoco-reacher", "pygame-landing"]  # 50 steps and 200
    agent = newt.create(newt.Config(size="XS"), tasks, torch.zeros(2, 384), [2, 2], [0.95, 0.95])
    try:
        evaluation.record(agent, tasks, tmp_path / "grid.mp4", planner=False)
    except RuntimeError as error:
        pytest.skip(f"no OpenGL here: {error}")
    frames = np.array(imageio.mimread(tmp_path / "grid.mp4", memtest=False)).astype(int)
    assert frames.shape == (200, 112, 224, 3)  # side by side, half size
    halves = frames[:, :, :112], frames[:, :, 112:]
    # Compression changes every pixel a little; what moves changes some of them by much.
    for half, last in zip(halves, (49, 199), strict=True):
        assert np.ptp(half[0]) > 50  # shows something
        assert (np.abs(half[0] - half[last]) > 60).any()  # and something moves
    assert not (np.abs(halves[0][60] - halves[0][199]) > 60).any()  # stands still


def test_a_file_runs_no_code_unasked(ckpt, tmp_path, monkeypatch, capsys):
    """A task with a colon is a module: made if the user names it, and in no other case."""
    monkeypatch.syspath_prepend(tmp_path)
    proof = tmp_path / "proof"
    (tmp_path / "evilmod.py").write_text(f"open({str(proof)!r}, 'w')")
    agent, _ = agent_file.load(ckpt)
    for name in ("evilmod:f", "gym:evilmod:X-v0"):
        path = tmp_path / "agent.safetensors"
        agent_file.save(path, replace(agent, tasks=("mw-reach", name)))
        with pytest.raises(SystemExit):
            evaluation.run(evaluation.main, evaluation.Eval(path, episodes=1, workers=1))
        err = capsys.readouterr().err
        assert name in err and "--tasks" in err and err.count("\n") == 1
        measured = [sys.executable, ROOT / "results/planning.py", path, "--name", "nothing"]
        done = subprocess.run(measured, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
        assert done.returncode == 2 and name in done.stderr and not (ROOT / "results/nothing.csv").exists()
        evaluation.main(evaluation.Eval(path, tasks="mw-reach", episodes=1, workers=1, planner="off"))
        assert "mw-reach" in capsys.readouterr().out and not proof.exists() and "evilmod" not in sys.modules
        with pytest.raises(ValueError, match="cannot be made"):
            evaluation.main(evaluation.Eval(path, tasks=name, episodes=1))
        assert proof.exists()  # as asked
        proof.unlink()
        del sys.modules["evilmod"]


def test_an_agent_of_other_sizes_than_the_task(ckpt, tmp_path):
    """What the file says of a task may not be so."""
    agent, _ = agent_file.load(ckpt)
    agent_file.save(tmp_path / "agent.safetensors", replace(agent, tasks=("mw-reach", "walker-walk")))
    with pytest.raises(ValueError, match="4 actions of walker-walk, which has 24 and 6"):
        evaluation.main(evaluation.Eval(tmp_path / "agent.safetensors", episodes=1))


@pytest.fixture
def files(ckpt, tmp_path, monkeypatch) -> Path:
    """Where a good checkpoint and half of one lie, and nothing else."""
    good = ckpt.read_bytes()
    (tmp_path / "good.safetensors").write_bytes(good)
    (tmp_path / "half.safetensors").write_bytes(good[: len(good) // 2])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_refused(folder: Path, code: int, out: str, err: str, message: str) -> None:
    assert code == 2 and err.count("\n") == 1 and not out, err
    assert err.startswith("error: ") and message in err
    assert sorted(p.name for p in folder.iterdir()) == ["good.safetensors", "half.safetensors"]


@pytest.mark.parametrize(
    "args, message",
    [
        ("--ckpt good.safetensors --seed -1", "seed must be at least 0"),
        ("--ckpt nowhere.safetensors", "no checkpoint at nowhere.safetensors"),
        ("--ckpt half.safetensors", "not a complete safetensors file"),
        ("--ckpt good.safetensors --tasks mw-pusch", "did you mean mw-push"),
        ("--ckpt good.safetensors --episodes 0", "episodes must be at least 1"),
        ("--ckpt good.safetensors --json missing/out.json", "missing"),
    ],
)
def test_bad_input(args, message, files, capsys):
    """By the function that the program ends with; one of them in a process of its own, below."""
    with pytest.raises(SystemExit) as stopped:
        evaluation.run(evaluation.main, tyro.cli(evaluation.Eval, args=args.split()))
    check_refused(files, stopped.value.code, *capsys.readouterr(), message)


def test_bad_input_from_a_shell(files):
    done = run_eval(files, "--ckpt", "good.safetensors", "--open-loop", "0")
    check_refused(files, done.returncode, done.stdout, done.stderr, "from 1 to 100")


def test_results_are_on_disk_before_they_are_printed_and_films_cost_only_themselves(
    ckpt, tmp_path, monkeypatch, capsys
):
    episodes = {name: [Episode(1.0, 1.0, 0.5, 100)] for name in TASKS}
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, keep, **__: keep(episodes) or episodes)
    report = tmp_path / "r.json"

    def no_printer(*_, **__):
        raise UnicodeEncodeError("ascii", "\xb1", 0, 1, "no such letter")

    with monkeypatch.context() as patch, pytest.raises(UnicodeEncodeError):
        patch.setattr("builtins.print", no_printer)
        evaluation.main(evaluation.Eval(ckpt, episodes=1, json=report))
    assert list(json.loads(report.read_text())["tasks"]) == TASKS

    class FatalError(Exception):  # MuJoCo's own is no RuntimeError
        pass

    def record(_, names, path, *__):
        if names == TASKS[:1]:
            raise FatalError("OpenGL is gone")
        path.parent.mkdir(exist_ok=True)
        path.write_text("film")

    monkeypatch.setattr(evaluation, "record", record)
    with pytest.raises(RuntimeError, match=f"^no film of {TASKS[0]}: OpenGL is gone$"):
        evaluation.main(evaluation.Eval(ckpt, episodes=1, video=tmp_path / "films"))
    assert [path.name for path in (tmp_path / "films").iterdir()] == [f"{TASKS[1]}.mp4"]
    assert "mean of tasks" in capsys.readouterr().out


def test_the_json_is_tried_first(ckpt, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("hours of work"))
    for cfg in (evaluation.Eval(ckpt, json=tmp_path), evaluation.Eval(ckpt, video=ckpt)):
        with pytest.raises(OSError, match="^cannot write "):
            evaluation.main(cfg)


def test_auto_takes_the_way_that_did_best(ckpt, tmp_path, monkeypatch, capsys):
    """By score, then by return; the policy alone where all are equal. Then only that way is evaluated."""
    said = {  # way -> (return, score) of each task
        "off": {"mw-reach": (10.0, 0.5), "mw-drawer-close": (7.0, 1.0)},
        "sample": {"mw-reach": (90.0, 0.25), "mw-drawer-close": (7.0, 1.0)},
        "sure": {"mw-reach": (11.0, 0.5), "mw-drawer-close": (6.0, 1.0)},
    }
    asked = []

    def evaluate(agent, tasks, episodes, seed, policy, step, workers, title, **_):
        way = "off" if policy == "policy" else agent.cfg.elite
        asked.append((way, tuple(tasks), episodes, seed))
        return {task: [Episode(said[way][task][0], 0.0, said[way][task][1], 100)] * episodes for task in tasks}

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    path = tmp_path / "r.json"
    evaluation.main(evaluation.Eval(ckpt, episodes=9, seed=3, planner="auto", json=path, workers=1))
    assert asked[:3] == [(way, tuple(TASKS), 4, 4) for way in said]  # all begin alike, and not as the episodes below
    assert asked[3:] == [("sure", ("mw-reach",), 9, 3), ("off", ("mw-drawer-close",), 9, 3)]
    assert json.loads(path.read_text())["planner"] == {"mw-reach": "sure", "mw-drawer-close": "off"}
    assert "of each before: off: mw-drawer-close; sure: mw-reach" in capsys.readouterr().out
