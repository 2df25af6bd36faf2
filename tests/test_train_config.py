"""train_config.py: every setting of a run, where its default comes from, and that nonsense is refused.

Run: pytest tests/test_train_config.py        (seconds)
"""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from test_newt import fields_that_take_nonsense

import agent_file
import envs
import newt
import prepare
import recordings
import train
import train_config
from command import check_fields

PATHS = ("folder", "resume", "ckpt", "image_weights")


def test_presets(monkeypatch):
    monkeypatch.setattr(train_config, "on_gpu", lambda: False)
    cfg, tasks, demos = train.parse([])
    assert cfg == replace(train_config.LAPTOP, folder=Path("runs/starter"))
    assert tasks == train_config.STARTER.split(",") and list(demos) == tasks
    assert train.parse(["--preset", "published"]).cfg.agent == newt.Config()
    monkeypatch.setattr(train_config, "on_gpu", lambda: True)
    assert train.parse([]).cfg.agent == newt.Config()
    assert train.parse(["--preset=laptop", "--horizon", "4"]).cfg.agent == replace(train_config.LAPTOP.agent, horizon=4)


def test_settings_fit_own_tasks(tmp_path):
    """Sizes of a new agent grow, one more input tells of the end; an evaluation comes after a whole episode."""
    setup = train.parse(["--preset", "laptop", "--tasks", "gym:Humanoid-v5", "--demos", "none"])
    cfg = setup.cfg
    assert (cfg.agent.obs_dim, cfg.agent.action_dim, cfg.eval_every) == (349, 17, 1000)
    agent = prepare.create_agent(setup, torch.device("cpu"))
    assert agent.params["encoder.0.weight"].shape[1] == 349 + 384 and agent.mask.sum() == 17
    envs.TASKS["gym:Humanoid-v5"] = replace(envs.TASKS["gym:Humanoid-v5"], episode_length=2500)
    words = ["--preset", "laptop", "--tasks", "gym:Humanoid-v5"]
    assert train.parse(words).cfg.eval_every == 2500
    assert train.parse([*words, "--eval-every", "900"]).cfg.eval_every == 900
    own = train.parse(["--preset", "laptop", "--tasks", "my_envs:dies,walker-walk"])
    assert (own.cfg.agent.obs_dim, own.cfg.agent.action_dim, own.cfg.eval_every) == (128, 16, 1000)
    agent = prepare.create_agent(own._replace(tasks=["walker-walk"]), torch.device("cpu"))
    agent_file.save(tmp_path / "a.safetensors", agent)
    setup = train.parse([*words, "--ckpt", str(tmp_path / "a.safetensors")])
    assert (setup.cfg.agent.obs_dim, setup.cfg.agent.action_dim) == (128, 16)
    with pytest.raises(ValueError, match="obs_dim is 128, these tasks need 349; action_dim is 16, these tasks need 17"):
        prepare.create_agent(setup, torch.device("cpu"))
    for name in ("gym:Humanoid-v5", "my_envs:dies"):
        del envs.TASKS[name]


@pytest.mark.parametrize("words, name, why", [
    ("", "LAPTOP", "preset laptop (no CUDA GPU), demonstrations"),
    ("--tasks walker-walk", "FROM_SCRATCH", "from-scratch form: neither demonstrations nor --ckpt"),
    ("--tasks walker-walk,cheetah-run --preset laptop", "FROM_SCRATCH", "preset laptop (as asked), its from-scratch"),
    ("--demos none", "FROM_SCRATCH", "from-scratch form"),
    ("--tasks walker-walk,mw-reach", "LAPTOP", "demonstrations"),
    ("--tasks walker-walk --demos shown", "LAPTOP", "demonstrations"),
    ("--tasks walker-walk --ckpt some.safetensors", "LAPTOP", "--ckpt"),
    ("--tasks mw-reach --demos none --ckpt some.safetensors --preset auto", "LAPTOP", "(no CUDA GPU), --ckpt"),
    ("--preset published", "PUBLISHED", "preset published (as asked), demonstrations"),
    ("--preset published --demos none", "PUBLISHED", "no demonstrations"),
    ("--preset published --demos none --tasks walker-walk", "SINGLE", "its single-task form: one task, no demonstr"),
    ("--preset=published --tasks=mw-reach", "SINGLE", "one task, demonstrations"),
])  # fmt: skip
def test_settings_follow_from_what_there_is(words, name, why, tmp_path, monkeypatch):
    monkeypatch.setattr(train_config, "on_gpu", lambda: False)
    monkeypatch.setattr(train_config, "made_here", lambda demos, task: demos == "auto" and task.startswith("mw-"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "walker-walk.safetensors").touch()
    cfg, default = train.parse(words.split()).cfg, getattr(train_config, name)
    given = {"tasks": cfg.tasks, "folder": cfg.folder, "demos": cfg.demos, "ckpt": cfg.ckpt}
    assert cfg == replace(default, **given) and why in cfg.why and cfg.preset in ("laptop", "published")
    assert cfg.demos == "none" or name != "FROM_SCRATCH"
    assert train.parse([*words.split(), "--utd", "0.25", "--std-min", "0.07"]).cfg.utd == 0.25  # a user's word counts


def test_settings_by_definition():
    """From scratch: wider search, twice the updates, to the end. Published for one task: size B, ten environments, and
    a pull to the policy that ends within the run."""
    scratch, single = train_config.FROM_SCRATCH, train_config.SINGLE
    assert (scratch.utd, scratch.lr_end, scratch.agent.std_min) == (1.0, 1.0, 0.1)
    assert (single.agent.size, single.envs_per_task) == ("B", 10)
    ends = single.agent.constraint_start + single.agent.constraint_duration
    assert 0 < ends < single.steps * single.envs_per_task / 2
    assert replace(single, envs_per_task=1, agent=newt.Config()) == train_config.PUBLISHED


def test_names_of_run_folders():
    """One folder below runs/, with a name that every system takes."""
    names = ["all", "a,b", "gym:Pendulum-v1", "gym:my_envs:lab/Reach-v0", "my_robot:make_reach", "../x", "a" * 300]
    folders = [train_config.run_folder_of(name) for name in names]
    assert len(set(folders)) == len(names) and train_config.run_folder_of(train_config.STARTER) == Path("runs/starter")
    assert all(str(folder.parent) == "runs" and not set(folder.name) & set('/\\:*?"<>|') for folder in folders)


def test_published_numbers():
    """The schedule of the paper for 200 tasks: 100M steps, 0.075 updates per step, evaluation every 20 * 500 steps."""
    cfg = train_config.PRESETS["published"]
    assert cfg.steps * 200 == 100_000_000 and cfg.utd == 0.075 and cfg.eval_every == 20 * 500
    assert (cfg.pretrain_updates, cfg.buffer_steps, cfg.seed_episodes) == (200_000, 10_000_000, 5)
    assert (cfg.sampling, cfg.eval_episodes, cfg.agent.batch_size) == ("episode", 2, 1024)


@pytest.mark.parametrize("name", [f.name for f in fields(train_config.Train) if f.name not in ("agent", *PATHS)])
def test_every_setting_is_checked(name):
    """A new number without a range fails here."""
    ranges = train_config.RANGES
    assert fields_that_take_nonsense(train_config.Train(), lambda cfg: check_fields(cfg, ranges), name) == []


def test_demonstrations_of_some_tasks(tmp_path, monkeypatch):
    """auto: what is recorded or a script can do in seconds is made, the rest is used if it is there. A folder: what it
    holds. More gets recorded with time, so it is said here what is."""
    monkeypatch.chdir(tmp_path)
    tasks = ["mw-reach", "walker-walk", "cheetah-run", "pygame-cowboy"]
    monkeypatch.setattr(recordings, "of", lambda task: object() if task == "walker-walk" else None)
    assert sorted(train_config.demo_files("auto", tasks)) == ["mw-reach", "pygame-cowboy", "walker-walk"]
    monkeypatch.setattr(recordings, "of", lambda task: None)
    assert sorted(train_config.demo_files("auto", tasks)) == ["mw-reach", "pygame-cowboy"]
    (tmp_path / "demos").mkdir()
    (tmp_path / "demos" / "cheetah-run.safetensors").touch()
    assert sorted(train_config.demo_files("auto", tasks)) == ["cheetah-run", "mw-reach", "pygame-cowboy"]
    given = train_config.demo_files("demos", tasks)
    assert given == {"cheetah-run": Path("demos/cheetah-run.safetensors")}
    assert train_config.demo_files("none", tasks) == {}
