"""Are the tests worth anything? Each line of FAULTS breaks the program in one place, and its tests must notice.

A fault is applied in a copy of the tree, where only the tests that belong to the broken file run. Faults that no test
could see (a change without effect) don't belong here. When a broken line is rewritten, rewrite its fault, too:
test_faults_fit_the_program says which one.

Run: pytest tests/test_mutations.py            (do the faults still fit?)
     pytest tests/test_mutations.py -m slow    (are they noticed? some ten seconds each)
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = {  # of each file: what pytest is given, without what takes longest
    "world_model.py": ["test_world_model.py", "-k", "not alone"],
    "planner.py": ["test_planner.py", "-k", "not alone"],
    "buffer.py": ["test_buffer.py", "-k", "not alone and not milliseconds"],
    **dict.fromkeys(("newt.py", "losses.py"), ["test_newt.py", "test_parity.py"]),
    "agent_file.py": ["test_agent_file.py", "-k", "not fuzz"],
    "language.py": ["test_language.py", "-k", "not fresh and not transformers"],
    "envs/vector.py": ["test_vector.py", "-k", "seeds or plain_loop or caller or anew or again_and_again or add_up "
                       "or shared_out or told or apart or own_tasks"],
    "envs/custom.py": ["test_tasks.py", "-k", "custom or gym_ids"],
    "envs/atari.py": ["test_atari.py", "-k", "ale_py or past"],
    "envs/box2d.py": ["test_box2d.py", "-k", "two_simulator or seed or ground or reward"],
    "envs/ogbench.py": ["test_ogbench.py", "-k", "maps or pairs or by_hand or inclusive"],
}  # fmt: skip
# what is broken: file, the text that is there once, the text instead
FAULTS = {
    # ---- the network
    "symlog without the sign": ("world_model.py", "x.sign() * x.abs().log1p()", "x.abs().log1p()"),
    "symexp one too large": ("world_model.py", "x.abs().expm1()", "x.abs().exp()"),
    "last bin never reached": ("world_model.py", "clamp(max=len(bins) - 2)", "clamp(max=len(bins) - 3)"),
    "two-hot shares swapped": (
        "world_model.py",
        "scatter(-1, left, 1 - share).scatter(-1, left + 1, share)",
        "scatter(-1, left, share).scatter(-1, left + 1, 1 - share)",
    ),
    "cross entropy without the minus": ("world_model.py", "return -(pair[..., 0]", "return (pair[..., 0]"),
    "SimNorm over the wrong axis": ("world_model.py", ".contiguous(), -2)", ".contiguous(), -1)"),
    "encoder without SimNorm": (
        "world_model.py",
        '"encoder", obs, None, task), simnorm)',
        '"encoder", obs, None, task), mish)',
    ),
    "gradient of mish halved": ("world_model.py", ".add_(0.5).mul_(grad)", ".add_(0.25).mul_(grad)"),
    "policy noise in masked dims": ("world_model.py", "log_std * mask, eps * mask", "log_std * mask, eps"),
    "policy mean in masked dims": ("world_model.py", "= mean * mask, log_std", "= mean, log_std"),
    "std over half its range": ("world_model.py", "LOG_STD_MIN + 0.5 *", "LOG_STD_MIN + 0.25 *"),
    "entropy: sign of log std": ("world_model.py", ".square() - policy.log_std", ".square() + policy.log_std"),
    "entropy scaled by all dims": ("world_model.py", "log_gauss * mask.sum(-1)", "log_gauss * mask.shape[-1]"),
    "chosen heads ignored": ("world_model.py", "value.index_select(0, heads)", "value[: len(heads)]"),
    "Q's last layer not zero": ("world_model.py", 'part in ("reward", "q")', 'part in ("reward",)'),
    "LayerNorm left out": (
        "world_model.py",
        "activation(F.layer_norm(x, weight.shape, weight, bias))",
        "activation(x)",
    ),
    # ---- the planner
    "warm start not moved on": ("planner.py", "torch.cat((warm[:, 1:], torch.zeros_like(warm[:, :1])), 1)", "warm"),
    "warm start kept at the first step": ("planner.py", "torch.where(first[", "torch.where(~first["),
    "NaN returns count as 0": ("planner.py", "nan=-torch.finfo(value.dtype).max", "nan=0.0"),
    "plans not discounted": (
        "planner.py",
        "factor * discount.unsqueeze(1)\n    return total",
        "factor\n    return total",
    ),
    "advantages not discounted": (
        "planner.py",
        "factor * discount.unsqueeze(1)\n    ways",
        "factor\n    ways",
    ),
    "sure without caution": ("planner.py", "ways.mean(0) - caution * doubt", "ways.mean(0)"),
    "as sure far away": ("planner.py", "(far / near.unsqueeze(1)).clamp(min=1) * ways.std(0)", "ways.std(0)"),
    "advantages over nothing": ("planner.py", "return ways - ways[..., :1]", "return ways"),
    "reward of the latent after the step": (
        "planner.py",
        "model.reward(z, action)  # the",
        "model.reward(model.next(z, action), action)  # the",
    ),
    "value of the end left out": ("planner.py", "return total + factor * model.q(", "return total + 0 * model.q("),
    "divided by the temperature": ("planner.py", "settings.temperature * (top.", "1 / settings.temperature * (top."),
    "worst plans are the elite": (
        "planner.py",
        "value.topk(settings.num_elites, dim=1)",
        "(-value).topk(settings.num_elites, dim=1)",
    ),
    "variance for deviation": ("planner.py", ".square()).sum(2).sqrt()", ".square()).sum(2)"),
    "std_min ignored": (
        "planner.py",
        "mean, std.clamp(settings.std_min, settings.std_max)",
        "mean, std.clamp(max=settings.std_max)",
    ),
    "constraint counts from step 0": ("planner.py", "(step - start) / duration", "step / duration"),
    "constraint the wrong way round": (
        "planner.py",
        "weight * pi_actions.mean(2) + (1 - weight) * mean",
        "(1 - weight) * pi_actions.mean(2) + weight * mean",
    ),
    "exploration only without exploring": ("planner.py", "noise) if explore else", "noise) if not explore else"),
    "noise while not exploring": ("newt.py", "own) if explore else plan", "own) if not explore else plan"),
    "action not cut to the box": (
        "planner.py",
        "plan.std[:, 0] * noise.final).clamp(-1, 1)",
        "plan.std[:, 0] * noise.final)",
    ),
    "sampled plans not masked": ("planner.py", ".clamp(-1, 1) * mask_h.unsqueeze(2)", ".clamp(-1, 1)"),
    "Gumbel noise negated": ("planner.py", "gumbel=-exponential.log()", "gumbel=exponential.log()"),
    "policy plans stand still": ("planner.py", "z = model.next(z, actions[-1])", "z = z"),
    # ---- replay
    "no NaN in the first row": (
        "buffer.py",
        "self._action[place[0]], self._reward[place[0]] = torch.nan, torch.nan",
        "pass",
    ),
    "slices cross the border": (
        "buffer.py",
        "terminated, rows, rows - horizon)",
        "terminated, rows, rows - horizon + 1)",
    ),
    "last slice never drawn": (
        "buffer.py",
        "terminated, rows, rows - horizon)",
        "terminated, rows, rows - horizon - 1)",
    ),
    "no slice behind a termination": (
        "buffer.py",
        "terminated, rows, rows - horizon)",
        "terminated, rows - horizon, rows - horizon)",
    ),
    "last reward before a termination lost": ("buffer.py", "masked_fill(over[:-1], 0)", "masked_fill(over[1:], 0)"),
    "absorbing state not marked": ("buffer.py", "1:].masked_fill_(over.unsqueeze(-1), 1)", "1:]"),
    "termination forgotten by a file": ("buffer.py", "if terminated.any():", "if False:"),
    "action and reward of the row before": (
        "buffer.py",
        "start[episode] + 1 + (step[1:] - 1)",
        "start[episode] + (step[1:] - 1)",
    ),
    "ends seen only in passing": ("buffer.py", "np.where(terminated, rows,", "np.where(terminated, rows - 1,"),
    "paid after the end": ("buffer.py", ".masked_fill(over[:-1], 0)", ""),
    "ends not collected": ("buffer.py", "bool(over[i]))", "False)"),
    "evicts one too early": (
        "buffer.py",
        "self._table[0, self._oldest] > self.capacity",
        "self._table[0, self._oldest] >= self.capacity",
    ),
    "evicts one too late": (
        "buffer.py",
        "self._table[0, self._oldest] > self.capacity",
        "self._table[0, self._oldest] > self.capacity + 1",
    ),
    "the seed of a batch ignored": ("buffer.py", "dtype=torch.float64, generator=generator", "dtype=torch.float64"),
    "one number for task and start": ("buffer.py", "low + (u[1] *", "low + (u[0] *"),
    "task drawn by its steps": ("buffer.py", 'if by == "task" else (before[0]', 'if by == "none" else (before[0]'),
    "single sample is a demonstration": ("buffer.py", "parts[-1].sample(", "parts[0].sample("),
    "all online, no demonstrations": ("buffer.py", "a = demo.sample(", "a = online.sample("),
    "loss by a small type accepted": ("buffer.py", "if not torch.equal(self._decode(stored), obs):", "if False:"),
    "next episode begins with the last's end": (
        "buffer.py",
        "self._obs[i, 0] = obs[i]",
        "self._obs[i, 0] = final_obs[i]",
    ),
    "dropped episodes are stored": ("buffer.py", "if not void[i]:", "if True:"),
    "return with the first row's reward": (
        "buffer.py",
        "self._reward[i, 1 : self._t[i] + 1].sum()",
        "self._reward[i, 1 : self._t[i]].sum()",
    ),
    "a loaded ring counts from 0": (
        "buffer.py",
        "self._saved = Path(folder).resolve(), total_episodes",
        "self._saved = Path(folder).resolve(), 0",
    ),
    # ---- learning and acting
    "imitation in unguided tasks": ("newt.py", "cfg.online_bc_coef * agent.guided[batch.task]", "cfg.online_bc_coef"),
    "constrained planning in unguided tasks": (
        "newt.py",
        "cfg.constraint_duration) * agent.guided[task]",
        "cfg.constraint_duration) * torch.ones_like(agent.guided[task])",
    ),
    "the policy does not explore": ("newt.py", "eps.normal_(generator=generator) if explore else eps", "eps"),
    "the largest of two heads": ("losses.py", "bins).amin(0)", "bins).amax(0)"),
    "value after the end": ("losses.py", "discount * (1 - batch.terminated)", "discount"),
    "no discount": ("losses.py", "return z, reward + discount * wm", "return z, reward + wm"),
    "discount of another task": ("newt.py", "agent.discount[batch.task]", "agent.discount[0 * batch.task]"),
    "plans with another task's discount": ("newt.py", "agent.discount[task[rows]]", "agent.discount[0 * task[rows]]"),
    "TD target of the other ensemble": (
        "losses.py",
        '"q_target" if source == "ema" else "q"',
        '"q" if source == "ema" else "q_target"',
    ),
    "target of the present, not the next step": (
        "losses.py",
        "params, batch.obs[1:], batch.reward",
        "params, batch.obs[:-1], batch.reward",
    ),
    "latents not handed on": ("losses.py", "wm.dynamics(params, zs[-1]", "wm.dynamics(params, zs[0]"),
    "gradient through the consistency target": ("losses.py", "(z_pred - z_target.detach())", "(z_pred - z_target)"),
    "gradient of Q in the policy's step": ("losses.py", "{name: value.detach() for name", "{name: value for name"),
    "time weights one late": ("losses.py", "weight[:-1] * error", "weight[1:] * error"),
    "time weights not normalised": ("losses.py", "return weights / weights.sum()", "return weights"),
    "entropy punished": (
        "losses.py",
        "(-entropy_coef * scaled_entropy - value",
        "(entropy_coef * scaled_entropy - value",
    ),
    "value times scale": ("losses.py", "value / q_scale", "value * q_scale"),
    "scale below 1": ("losses.py", "(high - low).clamp(min=1)", "(high - low)"),
    "scale of another range": ("losses.py", "linspace(0.05, 0.95,", "linspace(0.05, 0.9,"),
    "imitation over masked dims": ("losses.py", "* mask).sum(-1) / mask.sum(-1)", ").sum(-1) / mask.sum(-1)"),
    "imitation divided by all dims": ("losses.py", "mask).sum(-1) / mask.sum(-1)", "mask).sum(-1) / mask.shape[-1]"),
    "target jumps to the online ensemble": (
        "newt.py",
        "for name in targets], online, cfg.tau)",
        "for name in targets], online, 1 - cfg.tau)",
    ),
    "another part learns slowly": ("newt.py", 'if part == "encoder" else 1.0', 'if part == "pi" else 1.0'),
    "warm-up one late": ("newt.py", "(agent.updates + 1) / cfg.warmup_updates", "agent.updates / cfg.warmup_updates"),
    "gradients not clipped": ("newt.py", "(norm / clip)", "(norm / 1e9)"),
    "one head instead of two": ("losses.py", "device=generator.device)[:2]", "device=generator.device)[:1]"),
    "the caller's random stream ignored": ("newt.py", "generator or agent.generator", "agent.generator"),
    "scale forgotten in a file": ("agent_file.py", 'float(tables["q_scale"]), guided', "1.0, guided"),
    "a value after a termination": ("losses.py", "goes_on = discount * (1 - batch.terminated)", "goes_on = discount"),
    "imitation left out of pretraining": ("losses.py", "loss + cfg.bc_coef * bc", "loss"),
    "imitation of what is seen a step later": (
        "losses.py",
        "params, batch.obs[:-1], task)",
        "params, batch.obs[1:], task)",
    ),
    "imitation moves nothing but the policy": (
        "losses.py",
        "wm.pi(params, zs, task, noise.eps_bc), F",
        "wm.pi(params, zs.detach(), task, noise.eps_bc), F",
    ),
    "no step of the optimiser where a loss is NaN": (
        "newt.py",
        'if loss.device.type == "cpu" and not finite:',
        "if False:",
    ),
    # ---- sentences
    "one token for the sentence": ("language.py", "x.mean(1)", "x[:, 0]"),
    "length of the embedding": ("language.py", "F.normalize(x.mean(1), dim=-1)", "x.mean(1)"),
    "another kind of sentence": ("language.py", "kind[0])", "kind[1])"),
    "answers in the order of lengths": ("language.py", "out[index] = minilm", "out[: len(index)] = minilm"),
    "too long sentences cut in silence": ("language.py", "if len(row) > MAX_TOKENS:", "if False:"),
    # ---- many environments
    "every episode the first": ("envs/vector.py", "task.encode()), copy, k]", "task.encode()), copy, 0]"),
    "copies of a task play the same": ("envs/vector.py", "tasks[:i].count(tasks[i])", "0 * i"),
    "episode number not advanced": ("envs/vector.py", "begin(i, episode[i] + 1)\n", "begin(i, episode[i])\n"),
    "numbers may be NaN": ("envs/vector.py", "if not (undefined or np.isfinite(value).all()):", "if False:"),
    "one number fills an observation": ("envs/vector.py", "if value.shape != shape:", "if False:"),
    "terminated told as cut off": (
        "envs/vector.py",
        '"done": done, "terminated": terminated}',
        '"done": done, "terminated": False}',
    ),
    "goes on after a termination": ("envs/vector.py", "done = terminated or truncated", "done = truncated"),
    "an environment's action changes later": ("envs/vector.py", "[i, : dims[i][1]].copy()", "[i, : dims[i][1]]"),
    "cut off for over": ("envs/vector.py", '"terminated": terminated}', '"terminated": done}'),
    "results change later": ("envs/vector.py", "{name: view.copy() for", "{name: view for"),
    "dropped for finished": ("envs/vector.py", "dropped = ~done & ~unfinished", "dropped = ~done & unfinished"),
    "failures add up for ever": ("envs/vector.py", "self._failures[self.tasks[i]] = 0", "pass"),
    "most work to the busiest": ("envs/vector.py", "load.index(min(", "load.index(max("),
    # ---- tasks
    "own task: no seed": (
        "envs/custom.py",
        "self._env.reset(seed=int(self.np_random.integers(2**31)))",
        "self._env.reset()",
    ),
    "own task: success not read": (
        "envs/custom.py",
        'info.get("is_success", info.get("success", np.nan))',
        'info.get("success", np.nan)',
    ),
    "own task: termination ignored": (
        "envs/custom.py",
        "terminated, truncated = bool(terminated),",
        "terminated, truncated = False,",
    ),
    "own task: whole numbers cut, not rounded": ("envs/custom.py", "else np.rint(action)", "else action"),
    "own task: no success is failure": ("envs/custom.py", "success if np.isnan(success) else float", "float"),
    "own task: discount": (
        "envs/custom.py",
        "(horizon - 1) / horizon, 0.95), 0.995)",
        "(horizon - 1) / horizon, 0.5), 0.995)",
    ),
    "Atari: one frame per step": ("envs/atari.py", "for _ in range(self._repeat):", "for _ in range(1):"),
    "Atari: fire always pressed": ("envs/atari.py", '"FIRE" if fire > 0.5', '"FIRE" if fire > -0.5'),
    "Box2D: one simulator step": ("envs/box2d.py", "for _ in range(self._repeat):", "for _ in range(1):"),
    "Box2D: the world is used again": ("envs/box2d.py", "self.world = Box2D.b2World()\n        return", "return"),
    "OGBench: a wall moved": ("envs/ogbench.py", "##.#####   ##.#..##", "##.#####   ##..#.##"),
    "OGBench: success outside": ("envs/ogbench.py", "self._goal) <= self._tolerance", "self._goal) < self._tolerance"),
}


def broken(fault: str) -> str:
    """The text of the file with the fault."""
    file, old, new = FAULTS[fault]
    text = (ROOT / file).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{fault}: {file} has {old!r} {text.count(old)} times; write the fault anew"
    return text.replace(old, new)


def run_tests(tree: Path, file: str) -> subprocess.CompletedProcess:
    """The tests of this file, in a copy of the program at `tree`."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb", "line"]
    command += ["-n0"]
    command += [f"tests/{word}" if word.startswith("test_") else word for word in TESTS[file]]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # no bytecode of an earlier fault
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the program and its tests."""
    tree = tmp_path_factory.mktemp("mutations") / "tree"
    tree.mkdir()
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tree)
    for folder in ("envs", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


def test_faults_fit_the_program():
    for fault, (file, _, _) in FAULTS.items():
        compile(broken(fault), file, "exec")
        assert file in TESTS  # or no test would be asked whether it notices


@pytest.mark.slow
@pytest.mark.parametrize("file", TESTS)
def test_without_a_fault_all_is_well(file, tree):
    done = run_tests(tree, file)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_noticed(fault, tree):
    file, good = tree / FAULTS[fault][0], (ROOT / FAULTS[fault][0]).read_text(encoding="utf-8")
    file.write_text(broken(fault), encoding="utf-8")
    try:
        done = run_tests(tree, FAULTS[fault][0])
    finally:
        file.write_text(good, encoding="utf-8")
    assert done.returncode == 1, f"nobody noticed: {fault}\n{done.stdout[-2000:]}"  # 1: tests failed; 0: none did
