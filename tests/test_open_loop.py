"""open_loop.py: when the agent looks, what it believes in between, and how wrong that is, against a plain loop.

Run: pytest tests/test_open_loop.py        (about 20 seconds on one core)
"""

import json

import numpy as np
import pytest
import torch
from test_episodes import an_agent

import agent_file
import envs
import eval as evaluation
import newt
import open_loop
import world_model as wm
from envs.vector import episode_seed
from episodes import Episode, evaluate

TASK = "mujoco-reacher"


def plain(agent: newt.Agent, every: int) -> tuple[float, dict[str, np.ndarray]]:
    """Episode 0 by the policy's mean, one environment, one line per definition -> return, mean errors (every,)."""
    env, task = envs.make(TASK), wm.Task(agent.emb, agent.mask, torch.zeros(1, dtype=torch.long))
    obs, _ = env.reset(seed=episode_seed(0, TASK, 0, 0))
    rows, total = {name: [[] for _ in range(every)] for name in open_loop.ERRORS}, 0
    bins = wm.make_bins(agent.cfg.num_bins)
    with torch.no_grad():
        for t in range(50):
            x = torch.zeros(1, 128)
            x[0, : len(obs)] = torch.as_tensor(obs)
            seen = wm.encode(agent.params, x, task)
            if t % every == 0:
                z, promised, came = seen, [], []
            action = wm.pi(agent.params, z, task, torch.zeros(1, 16)).action
            promised.append(float(wm.decode(wm.reward(agent.params, z, action, task), bins)))
            obs, reward, *_ = env.step(action[0, :2].numpy())
            came.append(reward)
            total += np.float32(reward)
            rows["latent"][t % every].append(float((z - seen).square().mean()))
            rows["reward"][t % every].append(abs(promised[-1] - reward))
            rows["return"][t % every].append(abs(sum(promised) - sum(came)))
            z = wm.dynamics(agent.params, z, action, task)
    return total, {name: np.array([np.mean(x) for x in table]) for name, table in rows.items()}


@pytest.mark.parametrize("every", [1, 8, 50])
def test_a_plain_loop_agrees(every):
    agent = an_agent([TASK])
    (episode,) = evaluate(agent, [TASK], 1, 0, "policy", workers=1, open_loop=every)[TASK]
    ret, errors = plain(agent, every)
    assert episode.ret == pytest.approx(ret, rel=1e-4)
    for name in open_loop.ERRORS:
        np.testing.assert_allclose(episode.model_error[name], errors[name], rtol=2e-3, atol=1e-6, err_msg=name)
    assert episode.model_error["latent"][0] == 0  # at a look nothing is predicted
    assert (np.array(episode.model_error["latent"][1:]) > 0).all()


def test_looking_at_every_step_is_what_others_do():
    agent = an_agent([TASK])
    usual, looking, blind = (evaluate(agent, [TASK], 2, workers=1, open_loop=k)[TASK] for k in (0, 1, 25))
    assert usual == [e._replace(model_error=None) for e in looking]
    assert usual[0].ret != blind[0].ret and all(len(blind[0].model_error[name]) == 25 for name in open_loop.ERRORS)


def test_counts_are_read():
    assert open_loop.parse("8", 50) == [8] and open_loop.parse("4, 1,2,1", 50) == [1, 2, 4]
    for words in ("", "0", "51", "1,,2", "-1", "1.5"):
        with pytest.raises(ValueError, match="from 1 to 50"):
            open_loop.parse(words, 50)


def rows(ret: float, score: float, errors: tuple = (0.0,)) -> list[Episode]:
    error = {name: list(errors) for name in open_loop.ERRORS} | {"mean_reward": 2.0}
    return [Episode(ret, 0.0, score, 50, 0.0, i, error) for i in range(2)]


def test_table_by_hand():
    results = {1: {"a": rows(100.0, 0.8), "my:b": rows(7.0, np.nan), "c": rows(0, 0.0)},
               8: {"a": rows(50.0, 0.2), "my:b": rows(6.0, np.nan), "c": rows(0, 0.2)}}  # fmt: skip
    text = open_loop.table(results)
    parts = [part.splitlines() for part in text.split("\n\n")]
    cells = [{line.split("  ")[0]: line.split()[1:] for line in part[1:]} for part in parts]
    assert cells[0]["a"] == ["100.0", "50.0"] and cells[1]["my:b"] == ["-", "-"]
    assert parts[1][-1].split()[-2:] == ["0.400", "0.200"]  # mean of a and c
    assert cells[2]["a"] == ["1.00", "0.25"] and "c" not in cells[2]  # no share of nothing
    assert "share" not in open_loop.table({8: results[8]}) and "nan" not in text


def test_errors_as_shares():
    """A reward error of 1 where rewards are 2; a sum of two of them that is off by 1 is off by a quarter."""
    found = open_loop.mean_errors(rows(0, 0, (1.0, 1.0)) + rows(0, 0, (3.0,)))
    assert found["latent"].tolist() == [2.0, 1.0] and found["reward"].tolist() == [1.0, 0.5]
    assert found["return"].tolist() == [1.0, 0.25]


def test_table_plot_and_file_of_a_command(tmp_path, capsys):
    agent_file.save(tmp_path / "a.safetensors", an_agent([TASK]))
    path = tmp_path / "r.json"
    cfg = evaluation.Eval(tmp_path / "a.safetensors", TASK, 2, planner="off", open_loop="1,5", json=path, workers=1)
    evaluation.main(cfg)
    out, record = capsys.readouterr().out, json.loads(path.read_text())
    assert "score as share of closed loop" in out and (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    assert {k: len(table[TASK]) for k, table in record["open_loop"].items()} == {"1": 2, "5": 2}
    assert not record["tasks"]
    evaluation.main(evaluation.replace(cfg, open_loop="5"))  # what is there is not played again; the usual table
    out = capsys.readouterr().out
    assert "open loop 5" in out and "any step" in out
