"""agent_file.py: what is saved is loaded; files that are damaged, foreign or nonsense are refused by file and field.

Run: pytest tests/test_agent_file.py        (about 5 s on one core)
"""

import json
import math
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_newt import act, agent, batch, changed

import agent_file
import newt


def test_save_and_load(tmp_path):
    a = agent(guided=[True, False], q_scale=2.5)
    newt.update(a, batch(), "online")
    agent_file.save(tmp_path / "a.safetensors", a, step=77, extra={"note": "x"})
    b, meta = agent_file.load(tmp_path / "a.safetensors")
    assert not changed(a.params, b.params) and a.params.keys() == b.params.keys()
    for name in ("emb", "mask", "discount", "guided", "q_scale"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (b.cfg, b.tasks, meta["step"], meta["note"]) == (a.cfg, a.tasks, 77, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert torch.equal(act(a)[0].action, act(b)[0].action)


def test_settings_younger_than_the_file_have_their_defaults(tmp_path):
    agent_file.save(tmp_path / "a.safetensors", agent())
    rewrite(tmp_path / "a.safetensors", lambda meta: meta["config"].pop("caution"))
    assert agent_file.load(tmp_path / "a.safetensors")[0].cfg == agent().cfg


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    agent_file.save(path, agent())
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        agent_file.save(path, agent(seed=1))
    assert path.read_bytes() == before


def rewrite(path, change_meta=lambda meta: None, change=lambda tensors: None):
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["newt"])
    change_meta(meta)
    change(tensors)
    save_file(tensors, path, {"newt": json.dumps(meta)})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p: p.unlink(), "no checkpoint at"),
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a complete safetensors file"),
        (lambda p: p.write_bytes(b""), "not a complete safetensors file"),
        (lambda p: save_file({"x": torch.zeros(1)}, p), "not a Newt checkpoint"),
        (lambda p: rewrite(p, lambda m: m.update(version=99)), "format 99, this program reads 1"),
        (lambda p: rewrite(p, lambda m: m["config"].update(magic=1)), "settings they know: magic"),
        (lambda p: rewrite(p, lambda m: m["config"].pop("rho")), "settings they know: rho"),
        (lambda p: rewrite(p, lambda m: m["config"].pop("caution") and m["config"].pop("tau")), "they know: tau"),
        (lambda p: rewrite(p, change=lambda t: t.pop("pi.0.weight")), "its own header describes: pi.0.weight"),
        (lambda p: rewrite(p, change=lambda t: t.pop("guided")), "its own header describes"),
        (lambda p: rewrite(p, change=lambda t: t.update(extra=torch.zeros(1))), "its own header describes"),
        (lambda p: rewrite(p, lambda m: m["config"].update(size="S")), "its own header describes"),
        (lambda p: p.write_bytes(p.read_bytes().replace(b'{\\"version', b'[\\"version', 1)), "not a Newt checkpoint"),
        (lambda p: rewrite(p, lambda m: m.update(config=None)), "no settings under config"),
        (lambda p: rewrite(p, lambda m: m.update(config=[1])), "no settings under config"),
        (lambda p: rewrite(p, lambda m: m["config"].update(size="HUGE")), "size must be one of XS, S, B, L, XL"),
        (lambda p: rewrite(p, lambda m: m["config"].update(horizon="3")), "horizon must be a number .int., got '3'"),
        (lambda p: rewrite(p, lambda m: m["config"].update(obs_dim=10**9)), "obs_dim must be at most"),
        (lambda p: rewrite(p, lambda m: m["config"].update(temperature=math.nan)), "temperature must be a number"),
        (lambda p: rewrite(p, lambda m: m["config"].update(std_min=-1.0)), "std_min must be at least 0"),
        (lambda p: rewrite(p, lambda m: m["config"].update(elite="best")), "elite must be one of sample, mean, sure"),
        (lambda p: rewrite(p, lambda m: m.update(tasks=["../x", "right"])), "tasks in its header names '../x'"),
        (lambda p: rewrite(p, lambda m: m.update(tasks=["a\nb", "right"])), "tasks in its header names 'a"),
        (lambda p: rewrite(p, lambda m: m.update(tasks=["a:../x", "right"])), "tasks in its header names"),
        (lambda p: rewrite(p, lambda m: m.update(tasks=["left", "left"])), "named twice"),
        (lambda p: rewrite(p, lambda m: m.update(tasks="left")), "no list of names"),
        (lambda p: rewrite(p, lambda m: m.update(tasks=[1, 2])), "no list of names"),
        (lambda p: rewrite(p, lambda m: m.update(tasks=["left"])), "its own header describes: task_emb"),
        (lambda p: rewrite(p, lambda m: m.update(step=-1)), "step in its header is -1"),
        (lambda p: rewrite(p, lambda m: m.update(step=None)), "step in its header is None"),
        (lambda p: rewrite(p, change=lambda t: t["q.0.weight"].fill_(math.inf)), "not finite in q.0.weight"),
        (lambda p: rewrite(p, change=lambda t: t["discount"].fill_(math.nan)), "not finite in discount"),
        (lambda p: rewrite(p, change=lambda t: t["discount"].fill_(2)), "a discount that is not between 0 and 1"),
        (lambda p: rewrite(p, change=lambda t: t["q_scale"].fill_(-1)), "q_scale must be above 0"),
        (lambda p: rewrite(p, change=lambda t: t["action_mask"].fill_(0)), "without actions"),
        (lambda p: rewrite(p, change=lambda t: t["action_mask"][:, 0].fill_(0)), "ones followed by zeros"),
        (lambda p: rewrite(p, change=lambda t: t.update(action_mask=torch.ones(2))), "header describes: action_mask"),
        (lambda p: rewrite(p, change=lambda t: t.update(action_mask=torch.tensor(1.0))), "describes: action_mask"),
        (lambda p: rewrite(p, change=lambda t: t["guided"].fill_(0.5)), "guided holds other numbers"),
        (lambda p: rewrite(p, change=lambda t: t.update(q_scale=torch.tensor(1))), "header describes: q_scale"),
        (lambda p: rewrite(p, change=lambda t: t.update({"pi.0.weight": t["pi.0.weight"].double()})), "pi.0.weight"),
    ],
)
def test_files_that_are_refused(spoil, message, tmp_path):
    path = tmp_path / "a.safetensors"
    agent_file.save(path, agent())
    spoil(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        agent_file.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
