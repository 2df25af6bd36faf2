"""convert.py: published files become ours and compute the recorded numbers; nothing in a pickle is ever run.

Run: pytest tests/test_convert.py        (about 10 s on one core)

The published formats are written here from their description: the checkpoint from the recorded network of
test_parity.py under its published names, the demonstrations with tensordict where that is installed, and in any case
with a class that goes by its names.
"""

import io
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_parity import BATCH, DATA, PARAMS, SIZE, STRIDE

import agent_config
import agent_file
import convert
import demo_features
import demo_format
import demos
import envs
import eval as evaluation
import newt
import prepare
import world_model as wm
from buffer import Buffer
from train_config import Setup, Train

ROOT = Path(convert.__file__).parent
TASKS = ["spinner-spin", "reacher-three-easy", "pygame-landing", "pygame-pong"]  # 5, 3, 2, 1 action dims, as recorded


@pytest.fixture(autouse=True)
def recorded_size(monkeypatch):
    """The recorded network is smaller than any that is offered."""
    monkeypatch.setitem(agent_config.RANGES, "size", wm.SIZES)
    monkeypatch.setitem(wm.SIZES, "recorded", SIZE)


def publish(params: wm.Params, emb: torch.Tensor | None, mask: torch.Tensor | None, prefix: str = "") -> OrderedDict:
    """State dict of a published agent: its names, a tensor per Q head."""
    state = OrderedDict(log_std_min=torch.tensor(-10.0), log_std_dif=torch.tensor(12.0))
    for name, value in params.items():
        part, rest = name.split(".", 1)
        if part in ("q", "q_target"):
            kind = "target" if part == "q_target" else "online"
            state |= {f"_Qs.{kind}._Qs.{k}.{rest}": head.clone() for k, head in enumerate(value)}
        else:
            state[f"_encoder.state.{rest}" if part == "encoder" else f"_{part}.{rest}"] = value
    tables = {"_task_emb.weight": emb, "_action_masks": mask}
    state |= {name: value for name, value in tables.items() if value is not None}
    return OrderedDict((prefix + name, value) for name, value in state.items())


def recorded(**kwargs) -> OrderedDict:
    return publish(PARAMS, **{"emb": DATA["task.emb"], "mask": DATA["task.mask"], **kwargs})


def small(tasks: int = 1, task_dim: int = 0, size: str = "S") -> wm.Params:
    return wm.init(wm.SIZES[size], 128, 16, task_dim, generator=torch.Generator().manual_seed(tasks))


def masks(tasks: list[str]) -> torch.Tensor:
    return torch.stack([(torch.arange(16) < envs.TASKS[name].action_dim).float() for name in tasks])


def saved(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def run_convert(folder: Path, *args: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, ROOT / "convert.py", *args]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


def fails(capsys, cfg) -> str:
    """The one line of a command that fails with exit code 2."""
    with pytest.raises(SystemExit) as error:
        evaluation.run(convert.main, cfg)
    out, err = capsys.readouterr()
    assert error.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("prefix, wrapped", [("", True), ("module.", True), ("", False), ("module.", False)])
def test_a_converted_agent_computes_what_was_recorded(prefix, wrapped, tmp_path):
    state = recorded(prefix=prefix)
    optim = torch.optim.Adam([torch.zeros(2, requires_grad=True)]).state_dict()
    content = {"model": state, "optim": optim, "pi_optim": optim, "scale": torch.tensor([2.5])} if wrapped else state
    file, out = saved(content, tmp_path / "soup.pt"), tmp_path / "new" / "agent.safetensors"
    convert.main(convert.Checkpoint(file, out, tasks=",".join(TASKS)))
    agent, meta = agent_file.load(out)

    assert agent.tasks == tuple(TASKS) and agent.discount.tolist() == pytest.approx([0.99, 0.99, 0.975, 0.99])
    assert float(agent.q_scale) == (2.5 if wrapped else 1.0) and meta["step"] >= 12_000_000  # where plans are free
    assert torch.equal(agent.emb, DATA["task.emb"]) and torch.equal(agent.mask, DATA["task.mask"])
    params, task = agent.params, wm.Task(agent.emb, agent.mask, BATCH.task)
    z = wm.encode(params, BATCH.obs, task)
    kept = DATA["forward.z"][:3]
    got = {
        "z": z,
        "next_z": wm.dynamics(params, kept, BATCH.action, task),
        "reward_logits": wm.reward(params, kept, BATCH.action, task).flatten()[::STRIDE],
        "pi.action": wm.pi(params, DATA["forward.z"], task, DATA["forward.pi.eps"]).action,
    }
    for part, heads in (("q", None), ("q_target", DATA["target_heads"])):
        name = {"q": "q_online", "q_target": "q_target"}[part]
        logits = wm.q(params, kept, BATCH.action, task, heads, part)
        got[name] = wm.decode(logits, wm.make_bins())
    for name, value in got.items():
        torch.testing.assert_close(value.detach(), DATA[f"forward.{name}"], rtol=1e-5, atol=1e-5)


def test_eval_runs_a_converted_agent(tmp_path, capsys):
    out = tmp_path / "agent.safetensors"
    convert.main(convert.Checkpoint(saved(recorded(), tmp_path / "soup.pt"), out, tasks=",".join(TASKS)))
    assert "4 tasks: spinner-spin" in capsys.readouterr().out
    evaluation.main(evaluation.Eval(out, tasks="pygame-landing", episodes=1, planner="off", workers=1))
    assert "pygame-landing" in capsys.readouterr().out


@pytest.mark.parametrize("tasks", ["all", "maniskill", "box2d"])
def test_a_set_of_tasks_is_found_by_its_action_dims(tasks, tmp_path):
    """And sizes by shapes: here the published 128 observations, 16 actions, 512 numbers per task."""
    names = envs.select(tasks)
    emb = torch.randn(len(names), 512, generator=torch.Generator().manual_seed(0))
    state = publish(small(task_dim=512), emb, masks(names), "module.")
    agent = convert.checkpoint(saved({"model": state}, tmp_path / "soup-S.pt"))
    assert agent.tasks == tuple(names) and torch.equal(agent.emb, emb) and agent.cfg.obs == "state"
    assert agent.cfg == newt.Config(size="S", obs_dim=128, action_dim=16, task_dim=512)
    if tasks == "all":  # the published count of size S
        assert wm.num_params(agent.params) == 2_143_284


@pytest.mark.parametrize("mask", [None, masks(["walker-walk"])])
def test_a_single_task_agent_is_named_by_its_file_and_can_be_finetuned(mask, tmp_path):
    params = small(size="B")
    out = tmp_path / "agent.safetensors"
    convert.main(convert.Checkpoint(saved(publish(params, None, mask), tmp_path / "walker-walk.pt"), out))
    agent, _ = agent_file.load(out)
    assert agent.tasks == ("walker-walk",) and agent.cfg.size == "B" and agent.emb.shape == (1, 0)
    new = prepare.create_agent(Setup(Train(ckpt=out), ["walker-run"], {}), torch.device("cpu"))
    assert new.tasks == ("walker-run",) and all(torch.equal(new.params[name], params[name]) for name in params)


def test_a_multitask_agent_is_finetuned_on_its_own_tasks(tmp_path):
    """Its embeddings can't be made here: they go with it, and other tasks or words are refused."""
    names, out = envs.select("box2d"), tmp_path / "agent.safetensors"
    emb = torch.randn(len(names), 512, generator=torch.Generator().manual_seed(0))
    state = publish(small(task_dim=512), emb, masks(names))
    convert.main(convert.Checkpoint(saved({"model": state}, tmp_path / "soup-S.pt"), out))
    setup = Setup(Train(ckpt=out), names[2:4], {})
    new = prepare.create_agent(setup, torch.device("cpu"))
    assert new.tasks == tuple(names[2:4]) and torch.equal(new.emb, emb[2:4])
    with pytest.raises(ValueError, match="512 numbers.*walker-walk"):
        prepare.create_agent(setup._replace(tasks=["walker-walk"]), torch.device("cpu"))
    with pytest.raises(ValueError, match="another instruction"):
        prepare.create_agent(Setup(Train(ckpt=out, instruction="Hop"), names[:1], {}), torch.device("cpu"))


def test_image_features_are_kept_in_our_order(tmp_path, capsys):
    """[obs, e, feature] becomes [obs, feature, e]: the same outputs. Where all are zeros, it is an agent of states."""
    for fill in (torch.zeros, torch.rand):
        columns = fill(SIZE.enc_dim, 768)
        weight = torch.cat([PARAMS["encoder.0.weight"], columns], 1)
        state = publish(PARAMS | {"encoder.0.weight": weight}, DATA["task.emb"], DATA["task.mask"])
        out = tmp_path / f"{fill.__name__}.safetensors"
        convert.main(convert.Checkpoint(saved(state, tmp_path / "soup-rgb.pt"), out, tasks=",".join(TASKS)))
        agent, _ = agent_file.load(out)
        found, sees = agent.params["encoder.0.weight"], fill is torch.rand
        assert agent.cfg.obs_dim == 16 and ("--image-weights" in capsys.readouterr().out) == sees
        if not sees:
            assert agent.cfg.obs == "state" and torch.equal(found, PARAMS["encoder.0.weight"])
            continue
        assert agent.cfg.features == "dinov2 published full" and agent.cfg.obs == "state+rgb"
        obs, feature, emb = torch.rand(16), torch.rand(768), torch.rand(agent.cfg.task_dim)
        wanted = weight @ torch.cat([obs, emb, feature])  # as published
        assert torch.allclose(found @ torch.cat([obs, feature, emb]), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "scale", [3.5, torch.tensor(3.5), {"value": torch.tensor([3.5]), "_percentiles": torch.ones(2)}]
)
def test_the_scale_of_q(scale, tmp_path):
    content = {"model": publish(small(), None, None), "scale": scale}
    assert float(convert.checkpoint(saved(content, tmp_path / "walker-walk.pt")).q_scale) == 3.5


def test_embeddings_can_be_given(tmp_path, capsys):
    file, out = saved(recorded(emb=None), tmp_path / "soup.pt"), tmp_path / "agent.safetensors"
    cfg = convert.Checkpoint(file, out, tasks=",".join(TASKS))
    assert "--embeddings" in fails(capsys, cfg) and not out.exists()
    save_file({"task_emb": DATA["task.emb"]}, tmp_path / "emb.safetensors")
    agent = convert.checkpoint(file, ",".join(TASKS), tmp_path / "emb.safetensors")
    assert torch.equal(agent.emb, DATA["task.emb"])
    save_file({"task_emb": DATA["task.emb"][:2]}, tmp_path / "emb.safetensors")
    with pytest.raises(ValueError, match="soup.pt: need 4 task embeddings of 24"):
        convert.checkpoint(file, ",".join(TASKS), tmp_path / "emb.safetensors")
    with pytest.raises(ValueError, match="soup.pt is no safetensors file with a tensor task_emb"):
        convert.checkpoint(file, ",".join(TASKS), file)


@pytest.mark.parametrize(
    "change, tasks, message",
    [
        ({}, "", "which 4 tasks it knows"),
        ({}, "walker-walk", "it knows 4 tasks, but --tasks names 1"),
        ({}, ",".join(reversed(TASKS)), "5 action dims where pygame-pong has 1"),
        ({}, ",".join([*TASKS[:3], "walker-wolk"]), "did you mean walker-walk"),
        ({}, ",".join(["walker-walk", *TASKS[1:]]), "5 action dims where walker-walk has 6"),
        ({}, ",".join(["walker-walk-twice", *TASKS[1:]]), "unknown task"),
        ({"_optim.weight": torch.ones(1)}, TASKS, "not the tensors of a published agent: _optim.weight"),
        ({"epoch": 3}, TASKS, "not the tensors of a published agent: epoch"),
        ({"log_std_min": torch.tensor(-5.0)}, TASKS, "log_std_min is -5.0"),
        ({"_action_masks": torch.ones(4)}, TASKS, "soup.pt: Dimension out of range"),
        ({"_pi.1.bias": None}, TASKS, "of another shape: pi.1.bias"),
        ({"_dynamics.0.weight": None}, TASKS, "not the tensors of a published agent"),
        ({"_reward.1.bias": torch.ones(3)}, TASKS, "of another shape: reward.1.bias"),
        ({"_Qs.online._Qs.2.1.bias": None}, TASKS, "of another shape: q.1.bias"),
        ({"_pi.1.bias": torch.full((96,), np.nan)}, TASKS, "not finite"),
        ({"_pi.0.weight": torch.ones(90, 88)}, TASKS, "of another shape: pi.0.weight"),
        ({"_encoder.state.0.weight": torch.ones(65, 40)}, TASKS, "is no size that this program has"),
    ],
)
def test_checkpoints_that_do_not_fit(change, tasks, message, tmp_path, capsys):
    state = {name: value for name, value in (recorded() | change).items() if value is not None}
    file, out = saved({"model": state}, tmp_path / "soup.pt"), tmp_path / "agent.safetensors"
    tasks = tasks if isinstance(tasks, str) else ",".join(tasks)
    assert message in fails(capsys, convert.Checkpoint(file, out, tasks))
    assert [p.name for p in tmp_path.iterdir()] == ["soup.pt"]


@pytest.mark.parametrize(
    "change, content, message",
    [
        ({"_task_emb.weight": torch.full((4, 24), np.nan)}, {}, "an embedding not finite"),
        ({"_task_emb.weight": torch.full((4, 24), np.inf)}, {}, "an embedding not finite"),
        ({}, {"scale": float("nan")}, "q_scale must be above 0 and finite, got nan"),
        ({}, {"scale": torch.tensor(np.inf)}, "q_scale must be above 0 and finite, got inf"),
        ({}, {"scale": [1]}, "scale is no number"),
        ({"_action_masks": torch.tensor(1.0)}, {}, "soup.pt: "),
        ({"_pi.1.bias": torch.tensor(1.0)}, {}, "of another shape: pi.1.bias"),
        ({"log_std_min": torch.zeros(1000)}, {}, "log_std_min is of shape (1000,)"),
    ],
)
def test_numbers_that_no_agent_has(change, content, message, tmp_path, capsys):
    file = saved({"model": recorded() | change, **content}, tmp_path / "soup.pt")
    assert message in fails(capsys, convert.Checkpoint(file, tmp_path / "out.safetensors", ",".join(TASKS)))
    assert [p.name for p in tmp_path.iterdir()] == ["soup.pt"]


def test_agents_in_half_precision(tmp_path):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        state = {name: value.to(dtype) for name, value in recorded().items()}
        agent = convert.checkpoint(saved({"model": state}, tmp_path / "soup.pt"), ",".join(TASKS))
        assert torch.equal(agent.params["pi.1.bias"], PARAMS["pi.1.bias"].to(dtype).float())


def test_what_is_there_is_kept(tmp_path, capsys):
    file, out = saved(publish(small(), None, None), tmp_path / "walker-walk.pt"), tmp_path / "agent.safetensors"
    out.write_text("mine")
    assert "--overwrite" in fails(capsys, convert.Checkpoint(file, out)) and out.read_text() == "mine"
    convert.main(convert.Checkpoint(file, out, overwrite=True))
    assert agent_file.load(out)[0].tasks == ("walker-walk",)
    (tmp_path / "folder").mkdir()
    assert "folder exists" in fails(capsys, convert.Checkpoint(file, tmp_path / "folder", overwrite=True))
    assert "File exists" in fails(capsys, convert.Checkpoint(file, file / "out.safetensors"))


def test_a_write_that_fails_leaves_nothing(tmp_path, capsys, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(agent_file.safetensors.torch, "save_file", full)
    file = saved(publish(small(), None, None), tmp_path / "walker-walk.pt")
    assert "No space left" in fails(capsys, convert.Checkpoint(file, tmp_path / "out.safetensors"))
    assert [p.name for p in tmp_path.iterdir()] == ["walker-walk.pt"]


# ---------------------------------------------------------------- hostile and broken files


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Unknown:
    pass


def hostile(path: Path) -> dict:
    """Content that would make the file `path` if it were simply unpickled, and what it should be refused for."""
    inner = io.BytesIO()
    torch.save(Call(open, str(path), "w"), inner)
    return {
        "os.system": (Call(os.system, f"touch {path}"), "posix.system"),
        "open": (Call(open, str(path), "w"), "open"),
        "eval": (Call(eval, f"open({str(path)!r}, 'w')"), "eval"),
        "subprocess": (Call(subprocess.call, ["touch", str(path)]), "call"),
        "torch.load of bytes": (Call(torch.storage._load_from_bytes, inner.getvalue()), "_load_from_bytes"),
        "class": (Unknown(), "Unknown"),
    }


@pytest.mark.parametrize("kind", hostile(Path("x")))
@pytest.mark.parametrize("plain", [0, 2, pickle.HIGHEST_PROTOCOL])  # 0: as torch.save does, else the protocol
def test_hostile_pickles_are_refused_by_name(kind, plain, tmp_path, capsys):
    proof, folder, out = tmp_path / "proof", tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    content, name = hostile(proof)[kind]
    for file, whole in (("soup.pt", {"model": {}, "optim": content}), ("walker-walk.pt", content)):
        (folder / file).write_bytes(pickle.dumps(whole, plain)) if plain else saved(whole, folder / file)
    for cfg in (convert.Checkpoint(folder / "soup.pt", out), convert.Demos(folder, out)):
        message = fails(capsys, cfg)
        assert "is refused: it asks for" in message and name in message
    assert not proof.exists() and not out.exists()
    if kind != "class":  # the trap does work
        pickle.loads(pickle.dumps(content))
        assert proof.exists()


def test_a_tensordict_cannot_smuggle_a_call(tmp_path, capsys):
    """What stands in for tensordict's functions is given anything, and calls nothing."""
    proof = tmp_path / "proof"
    with published_classes() as (cls, make):
        content = Call(make, cls, {"_tensordict": {"obs": Call(os.system, f"touch {proof}")}})
        (tmp_path / "in").mkdir()
        saved(content, tmp_path / "in" / "walker-walk.pt")
    assert "posix.system" in fails(capsys, convert.Demos(tmp_path / "in", tmp_path / "out")) and not proof.exists()


def test_a_command_refuses_in_one_line(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Call(os.system, f"touch {tmp_path / 'proof'}")))
    done = run_convert(tmp_path, "checkpoint", "a.pt", "out.safetensors")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "error: a.pt is refused: it asks for posix.system, which is no part of such a file\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def broken(kind: str, good: bytes) -> bytes:
    return {"half": good[: len(good) // 2], "most": good[:-100], "empty": b"", "text": b"<html>not found</html>"}[kind]


@pytest.mark.parametrize("kind", ["half", "most", "empty", "text"])
def test_broken_files(kind, tmp_path, capsys):
    file = saved(recorded(), tmp_path / "walker-walk.pt")
    file.write_bytes(broken(kind, file.read_bytes()))
    for cfg in (convert.Checkpoint(file, tmp_path / "out"), convert.Demos(tmp_path, tmp_path / "out")):
        assert "walker-walk.pt is damaged" in fails(capsys, cfg)
    assert [p.name for p in tmp_path.iterdir()] == ["walker-walk.pt"]


def test_foreign_files(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "walker-walk.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "is damaged" in fails(capsys, convert.Checkpoint(tmp_path / "walker-walk.pt", tmp_path / "out"))
    for content in ([1, 2], {}, {"model": 3}, {"model": {}}, torch.ones(3)):
        saved(content, tmp_path / "walker-walk.pt")
        assert "walker-walk.pt" in fails(capsys, convert.Checkpoint(tmp_path / "walker-walk.pt", tmp_path / "out"))
        assert "walker-walk" in fails(capsys, convert.Demos(tmp_path, tmp_path / "out"))
    assert "no file" in fails(capsys, convert.Checkpoint(tmp_path / "none.pt", tmp_path / "out"))
    assert "no <task>.pt" in fails(capsys, convert.Demos(tmp_path / "none", tmp_path / "out"))


# ---------------------------------------------------------------- demonstrations


@contextmanager
def published_classes():
    """Classes that pickle under tensordict's names, as its versions 0.7 to 0.15 do."""

    class TensorDict:
        def __init__(self, arrays: dict, batch_size: list[int]):
            self.__dict__ |= {"_tensordict": arrays, "_device": torch.device("cpu")}
            self.__dict__ |= {"_batch_size": torch.Size(batch_size), "_td_dim_names": None}

        def __reduce__(self):
            return _make_td, (TensorDict, dict(self.__dict__))

    def _make_td(cls, state):
        raise AssertionError("not for reading")

    TensorDict.__module__, TensorDict.__qualname__ = "tensordict._td", "TensorDict"
    _make_td.__module__, _make_td.__qualname__ = "tensordict._reductions", "_make_td"
    modules = {"tensordict": {}, "tensordict._td": {"TensorDict": TensorDict}}
    modules["tensordict._reductions"] = {"_make_td": _make_td}
    with pytest.MonkeyPatch.context() as patch:
        for name, content in modules.items():
            module = types.ModuleType(name)
            module.__dict__.update(content)
            patch.setitem(sys.modules, name, module)
        yield TensorDict, _make_td


def episodes(task: str, count: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Arrays of a published file: T + 1 rows per episode, padded, the first row's action and reward NaN."""
    row, random = envs.TASKS[task], torch.Generator().manual_seed(seed)
    n = count * (row.episode_length + 1)
    arrays = {
        "obs": torch.zeros(n, 128),
        "action": torch.zeros(n, 16),
        "reward": torch.rand(n, generator=random),
        "episode": torch.arange(count).repeat_interleave(row.episode_length + 1) + 7,
        "value": torch.full((n,), np.nan),
        "terminated": torch.zeros(n, dtype=torch.bool),
    }
    arrays["obs"][:, : row.obs_dim] = torch.randn(n, row.obs_dim, generator=random)
    arrays["action"][:, : row.action_dim] = torch.rand(n, row.action_dim, generator=random) * 2 - 1
    first = torch.arange(0, n, row.episode_length + 1)
    arrays["action"][first], arrays["reward"][first] = np.nan, np.nan
    return arrays


def write(folder: Path, task: str, arrays: dict) -> Path:
    folder.mkdir(exist_ok=True)
    with published_classes() as (cls, _):
        return saved(cls(arrays, [len(arrays["obs"])]), folder / f"{task}.pt")


def agrees(demo: demo_format.Demos, arrays: dict, task: str, count: int = 3) -> None:
    row = envs.TASKS[task]
    length = row.episode_length + 1
    np.testing.assert_array_equal(demo.obs, arrays["obs"][:, : row.obs_dim])
    np.testing.assert_array_equal(demo.action, arrays["action"][:, : row.action_dim])  # NaN equals NaN
    np.testing.assert_array_equal(demo.reward, arrays["reward"])
    assert demo.episode_start.tolist() == [length * i for i in range(count + 1)]
    returns = arrays["reward"].view(count, length)[:, 1:].double().sum(1)
    np.testing.assert_allclose(demo.ret, returns, rtol=1e-5)


def test_features_of_demonstrations_are_kept(tmp_path, capsys):
    arrays, task = episodes("mujoco-reacher"), "mujoco-reacher"
    arrays["feat"] = torch.randn(len(arrays["obs"]), 768, generator=torch.Generator().manual_seed(0))
    write(tmp_path / "in", task, arrays)
    convert.main(convert.Demos(tmp_path / "in", tmp_path / "out"))
    for weights in ("published", "0123456789ab"):  # a user's own are taken for the same
        path = tmp_path / "out" / f"{task}.safetensors"
        demo = demo_features.load(path, task, f"dinov2 {weights} full")
        np.testing.assert_array_equal(demo.feature, arrays["feat"].half())
    with pytest.raises(ValueError, match="have no features of lite0"):
        demo_features.load(path, task, "lite0 0123456789ab full")
    arrays["feat"] = arrays["feat"][:, :5]
    write(tmp_path / "in", task, arrays)
    assert "feat is no (" in fails(capsys, convert.Demos(tmp_path / "in", tmp_path / "out2"))


def test_demonstrations_come_through(tmp_path, capsys):
    tasks = ["walker-walk", "mw-reach", "mujoco-reacher", "ms-ant-walk"]
    arrays = {task: episodes(task, seed=i) for i, task in enumerate(tasks)}
    for task in tasks:
        write(tmp_path / "in", task, arrays[task])
    write(tmp_path / "in", "unheard-of", arrays["walker-walk"])
    convert.main(convert.Demos(tmp_path / "in", tmp_path / "out"))
    assert "4 tasks" in (text := capsys.readouterr().out) and "left out" in text and "unheard-of.pt" in text
    files = {task: demo_format.load(tmp_path / "out" / f"{task}.safetensors", task) for task in tasks}
    for task, demo in files.items():
        agrees(demo, arrays[task], task)
        assert (demo.seed == -1).all() and demo.meta["source"] == "published"
    np.testing.assert_allclose(files["walker-walk"].score, files["walker-walk"].ret / 1000, rtol=1e-6)
    np.testing.assert_allclose(files["mujoco-reacher"].score, np.minimum(1, 1 + files["mujoco-reacher"].ret / 50))
    assert np.isnan(files["mw-reach"].success).all() and np.isnan(files["mw-reach"].score).all()  # not recorded
    assert not files["walker-walk"].success.any() and not files["ms-ant-walk"].score.any()  # by their definition
    demos.main_list(demos.List(tmp_path / "out"))
    assert "published" in capsys.readouterr().out


def test_train_takes_them(tmp_path):
    tasks = ["walker-walk", "mw-reach"]
    for task in tasks:
        write(tmp_path / "in", task, episodes(task))
    convert.main(convert.Demos(tmp_path / "in", tmp_path / "out"))
    files = {task: demo_format.load(tmp_path / "out" / f"{task}.safetensors", task) for task in tasks}
    buffer = Buffer(10_000, 128, 16)
    prepare.fill(buffer, files, tasks, 2)
    assert buffer.steps == 2 * 500 + 2 * 100


@pytest.mark.parametrize("device", [None, "cpu"])
def test_files_of_tensordict_itself(device, tmp_path):
    tensordict = pytest.importorskip("tensordict")
    arrays = episodes("mw-reach")
    content = tensordict.TensorDict(arrays, [len(arrays["obs"])], device=device)
    demo = convert.demonstrations(saved(content, tmp_path / "mw-reach.pt"), "mw-reach")
    agrees(demo, arrays, "mw-reach")


def test_older_files_carry_the_class_itself(tmp_path):
    """Before there was _make_td: an empty object and its state."""
    arrays = episodes("mw-reach")
    with published_classes() as (cls, _):
        del cls.__reduce__
        path = saved(cls(arrays, [len(arrays["obs"])]), tmp_path / "mw-reach.pt")
    agrees(convert.demonstrations(path, "mw-reach"), arrays, "mw-reach")


@pytest.mark.parametrize(
    "formula, ret, value",
    [
        ("R/1000", 500, 0.5),
        ("R/600", 900, 1.5),
        ("clip01(R/250)", 500, 1),
        ("clip01(R/250)", -5, 0),
        ("clip01((R+100)/200)", -50, 0.25),
        ("clip01((R+3)/6)", 0, 0.5),
        ("clip01(1+R/50)", -20, 0.6),
        ("success", 3, 0.75),
    ],
)
def test_scores(formula, ret, value):
    (task, *_) = (task for task in envs.TASKS.values() if task.score_formula == formula)
    assert convert.score(task, np.array([float(ret)]), np.array([0.75])) == pytest.approx([value])


def test_every_task_has_a_score():
    for task in envs.TASKS.values():
        assert np.isfinite(convert.score(task, np.array([1.0]), np.array([1.0]))).all()


def spoiled(kind: str, arrays: dict) -> dict:
    new = {name: value.clone() for name, value in arrays.items()}
    if kind == "nan":
        new["obs"][5, 1] = np.nan
    elif kind == "nan action":
        new["action"][5, 1] = np.nan
    elif kind == "action in the first row":
        new["action"][101, 0] = 0.5
    elif kind == "reward in the first row":
        new["reward"][101] = 0.5
    elif kind == "actions of 5":
        new["action"][5, 1] = 5
    elif kind == "scalar":
        new["reward"] = new["reward"][5]
    elif kind == "no reward":
        new["reward"][5] = np.nan
    elif kind == "an episode too many":
        new["episode"][5:] += 1
    elif kind == "short":
        new = {name: value[:-1] for name, value in new.items()}
    elif kind == "wide":
        new["obs"][5, 39] = 1  # mw-reach has 39 observations: 0 to 38
    elif kind == "wide action":
        new["action"][5, 4] = 1
    elif kind == "narrow":
        new["obs"] = new["obs"][:, :38]
    elif kind == "lengths":
        new["reward"] = new["reward"][:-1]
    elif kind == "axes":
        new["reward"] = new["reward"][:, None]
    elif kind == "empty":
        new = {name: value[:0] for name, value in new.items()}
    elif kind == "lacking":
        del new["episode"]
    return new


@pytest.mark.parametrize(
    "kind, message",
    [
        ("nan", "not finite"),
        ("nan action", "not finite"),
        ("action in the first row", "not finite, or a first row"),
        ("reward in the first row", "row 101 "),
        ("actions of 5", "actions beyond"),
        ("scalar", "shapes do not fit"),
        ("no reward", "row 5 "),
        ("an episode too many", "row 5 "),
        ("short", "not all episodes have the 100 steps"),
        ("wide", "more than mw-reach's 39 observations"),
        ("wide action", "and 4 actions"),
        ("narrow", "shapes do not fit"),
        ("lengths", "shapes do not fit"),
        ("axes", "shapes do not fit"),
        ("empty", "not all episodes"),
        ("lacking", "no TensorDict with obs, action, reward, episode"),
    ],
)
def test_demonstrations_that_do_not_fit(kind, message, tmp_path, capsys):
    write(tmp_path / "in", "mw-reach", spoiled(kind, episodes("mw-reach")))
    text = fails(capsys, convert.Demos(tmp_path / "in", tmp_path / "out"))
    assert message in text and "mw-reach.pt" in text and "mw-reach" in text.replace("mw-reach.pt", "")
    assert not (tmp_path / "out").exists()


def test_unusual_tensors_are_refused_by_name(tmp_path, capsys):
    for unusual, name in (
        (torch.eye(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.zeros(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
        (torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "torch._utils._rebuild_qtensor"),
        (torch.zeros(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
    ):
        write(tmp_path / "in", "mw-reach", episodes("mw-reach") | {"obs": unusual})
        assert f"it asks for {name}," in fails(capsys, convert.Demos(tmp_path / "in", tmp_path / "out"))


def test_demonstrations_of_another_task(tmp_path, capsys):
    write(tmp_path / "in", "walker-walk", episodes("mw-reach"))
    text = fails(capsys, convert.Demos(tmp_path / "in", tmp_path / "out"))
    assert "walker-walk.pt: not all episodes have the 500 steps of walker-walk" in text
    write(tmp_path / "in", "walker-walk", episodes("cheetah-run") | {"obs": torch.ones(1503, 128)})
    assert "more than walker-walk's 24 obs" in fails(capsys, convert.Demos(tmp_path / "in", tmp_path / "out"))


def test_demonstrations_that_are_there_are_kept(tmp_path, capsys):
    for task in ("mw-reach", "mw-push"):
        write(tmp_path / "in", task, episodes(task))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mw-reach.safetensors").write_text("mine")
    assert "--overwrite" in fails(capsys, convert.Demos(tmp_path / "in", tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mw-reach.safetensors"]
    assert (tmp_path / "out" / "mw-reach.safetensors").read_text() == "mine"
    convert.main(convert.Demos(tmp_path / "in", tmp_path / "out", overwrite=True))
    assert len(demo_format.load(tmp_path / "out" / "mw-reach.safetensors", "mw-reach").ret) == 3
