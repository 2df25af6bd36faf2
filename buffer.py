"""Replay: a ring of whole episodes, sampled in slices of H transitions. Imports torch, numpy, safetensors only.

    row t of an episode = obs_t, and the action and reward that led to it; row 0 has no action: NaN
    slice               = H+1 neighbouring rows of one episode; the action and reward of its first row are dropped

so a slice never crosses an episode border and never shows that NaN. An episode's rows are contiguous modulo the
capacity; a new episode evicts the oldest ones it would overlap. Sampling is index arithmetic over a table of episodes:
no loop over the batch, and the cost does not depend on how much is stored.

An observation may end in the feature of an image, which is kept in an array of its own, as float16.

An episode that was cut off (truncated) goes on after its last row, where nobody looked: a slice ends there at the
latest. One that is over (terminated) leads from its last step into the absorbing state: reward 0 and itself for ever,
whatever is done, seen as zeros with a 1 in the last input. That state is not stored but made while sampling: slices
begin anywhere in such an episode, its end included, and what lies behind the end is the absorbing state. So a world
model learns the end as one more thing that it can see coming, and neither network nor planner has a part for it.
What is drawn uniformly:

    by="episode"  an episode, then a start in it (published): short episodes are drawn far more often per step
    by="task"     a task, then any of its starts: every task gets the same share of the batch
    by="step"     any start: long episodes dominate

Source: Newt (arXiv 2511.19584) samples by episode and mixes demonstrations and online data half and half.

    buffer = Buffer(500_000, obs_dim=128, action_dim=16)
    buffer.add(obs, action, reward, task=3)                      # one finished episode: (T+1, O), (T+1, A), (T+1,)
    batch = buffer.sample(1024, horizon=3, generator=torch.Generator().manual_seed(0))
Test: pytest tests/test_buffer.py
"""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

By = Literal["episode", "task", "step"]


class Batch(NamedTuple):
    """B slices of H transitions, time first: action[t] and reward[t] lead from obs[t] to obs[t + 1]."""

    obs: Tensor  # (H+1, B, O) float32
    action: Tensor  # (H, B, A) float32
    reward: Tensor  # (H, B) float32
    task: Tensor  # (B,) int64
    terminated: Tensor | float = 0.0  # (H, B) float32: 1 where obs[t + 1] is the absorbing state, whose value is 0


def gigabytes(
    capacity: int, obs_dim: int, action_dim: int, obs_dtype: torch.dtype = torch.float32, feature_dim: int = 0
) -> float:
    """Memory that a Buffer of this size takes, in 10^9 bytes."""
    return capacity * (obs_dim * obs_dtype.itemsize + (action_dim + 1) * 4 + feature_dim * 2) / 1e9


class Buffer:
    """The ring. `steps` and `episodes` count what is stored now, `total_episodes` what was ever added."""

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        *,
        device: str | torch.device = "cpu",
        obs_dtype: torch.dtype = torch.float32,
        feature_dim: int = 0,
    ):
        """Take the memory.

        capacity   rows: an episode of T steps takes T + 1
        obs_dim    O numbers of state; may be 0 where there are features
        device     where the rows live and batches are gathered
        obs_dtype  float32; float16 or uint8 (bytes, handed out as k / 255) where that loses nothing: `add` checks it
        feature_dim  F more numbers of an observation, behind those: kept as float16, which must lose nothing, either
        Raises ValueError, one line: a size below 1, another dtype, or not enough memory.
        """
        for name, value in (("capacity", capacity), ("obs_dim", obs_dim), ("action_dim", action_dim)):
            if value < 1 - (name == "obs_dim" and feature_dim > 0):
                raise ValueError(f"{name} must be at least 1, got {value}")
        if obs_dtype not in (torch.float32, torch.float16, torch.uint8):
            raise ValueError(f"obs_dtype is float32, float16 or uint8, not {obs_dtype}")
        self.capacity, self.device = capacity, torch.device(device)
        try:
            self._obs = torch.empty(capacity, obs_dim, dtype=obs_dtype, device=device)
            self._feature = torch.empty(capacity, feature_dim, dtype=torch.float16, device=device)
            self._action = torch.empty(capacity, action_dim, device=device)
            self._reward = torch.empty(capacity, device=device)
        except RuntimeError as error:
            need = gigabytes(capacity, obs_dim, action_dim, obs_dtype, feature_dim)
            raise ValueError(f"no memory for a buffer of {need:.1f} GB on {device}; choose a smaller one") from error
        # The table of episodes, oldest first. Rows are counted from the first one ever written; modulo capacity gives
        # the place. numpy arrays that double when full: `_table[:, _oldest:_end]` are the episodes stored now.
        self._table = np.zeros((4, 1024), dtype=np.int64)  # start row, number of rows, task, 1 if terminated
        self._oldest = self._end = 0
        self._dropped = 0  # episodes that left the table when it was compacted
        self._row = 0  # next row to write
        self._folder, self._saved = None, 0  # episodes below number `_saved` are in this folder's files
        self._index: dict = {}  # sampling tables of the present content

    @property
    def episodes(self) -> int:
        return self._end - self._oldest

    @property
    def total_episodes(self) -> int:
        return self._dropped + self._end

    @property
    def first_episode(self) -> int:
        """Number of the oldest episode that is still stored, counting all that were ever added."""
        return self._dropped + self._oldest

    @property
    def steps(self) -> int:
        """Transitions stored."""
        return int((self._table[1, self._oldest : self._end] - 1).sum())

    # ---------------------------------------------------------------- writing

    def add(self, obs: Tensor, action: Tensor, reward: Tensor, task: int, terminated: bool = False) -> None:
        """Store one finished episode of T >= 1 steps.

        obs (T+1, <=O), action (T+1, <=A), reward (T+1,): torch or numpy; narrower ones are padded with zeros. Where
        there are features: obs (T+1, O+F).
        terminated: its last step was the end of everything, not only of this episode; then obs leaves input O-1 free.
        Row 0's action and reward are ignored. Raises ValueError, one line: shapes, more rows than the capacity, numbers
        that are not finite, or an observation that obs_dtype cannot hold exactly.
        """
        obs, action, reward = (torch.as_tensor(x, dtype=torch.float32) for x in (obs, action, reward))
        rows, features = len(obs), self._feature.shape[1]
        feature = obs.new_empty(rows, 0)
        if features:
            if obs.ndim != 2 or obs.shape[1] != self._obs.shape[1] + features:
                raise ValueError(f"obs is (T+1, {self._obs.shape[1]} + {features} of features), got {tuple(obs.shape)}")
            obs, feature = obs.split([self._obs.shape[1], features], 1)
        if obs.ndim != 2 or action.ndim != 2 or reward.shape != (rows,) or len(action) != rows or rows < 2:
            shapes = f"{tuple(obs.shape)}, {tuple(action.shape)}, {tuple(reward.shape)}"
            raise ValueError(f"an episode is obs (T+1, O), action (T+1, A), reward (T+1,) with T >= 1, got {shapes}")
        if obs.shape[1] > self._obs.shape[1] or action.shape[1] > self._action.shape[1]:
            raise ValueError(f"obs or action is wider than the buffer: {tuple(obs.shape)}, {tuple(action.shape)}")
        if rows > self.capacity:
            raise ValueError(f"an episode of {rows} rows does not fit into a buffer of {self.capacity}")
        if not all(x.isfinite().all() for x in (obs, feature, action[1:], reward[1:])):
            raise ValueError(f"an episode of task {task} holds numbers that are not finite")
        if not torch.equal(feature.half().float(), feature):
            raise ValueError("features do not fit into float16 without loss; round them where they are made")
        if terminated and obs.shape[1] == self._obs.shape[1] and (obs.shape[1] == 0 or obs[:, -1].any()):
            raise ValueError(f"task {task} terminates, so it needs obs_dim {obs.shape[1] + 1}: the last input tells")
        self._write(self._encode(obs), action, reward, task, terminated, feature.half())

    def _encode(self, obs: Tensor) -> Tensor:
        """Observation as it is stored; ValueError if that would change it."""
        dtype = self._obs.dtype
        stored = (obs * 255).round().clamp(0, 255).to(dtype) if dtype == torch.uint8 else obs.to(dtype)
        if not torch.equal(self._decode(stored), obs):
            raise ValueError(f"observations do not fit into {dtype} without loss; use float32")
        return stored

    def _decode(self, stored: Tensor) -> Tensor:
        if stored.dtype != torch.uint8:
            return stored.float()
        # A tensor, not the number 255: CUDA multiplies by a number's rounded reciprocal, the last bit would differ.
        return stored.float() / torch.full((), 255.0, device=stored.device)

    def _write(
        self, stored: Tensor, action: Tensor, reward: Tensor, task: int, terminated: bool, feature: Tensor
    ) -> None:
        rows = len(stored)
        while self._oldest < self._end and self._row + rows - self._table[0, self._oldest] > self.capacity:
            self._oldest += 1
        place = torch.arange(self._row, self._row + rows, device=self.device) % self.capacity
        for target, source in ((self._obs, stored), (self._action, action)):
            target[place] = torch.nn.functional.pad(source, (0, target.shape[1] - source.shape[1])).to(self.device)
        self._reward[place] = reward.to(self.device)
        if self._feature.shape[1]:
            self._feature[place] = feature.to(self.device)
        self._action[place[0]], self._reward[place[0]] = torch.nan, torch.nan
        if self._end == self._table.shape[1]:
            live = self._table[:, self._oldest : self._end]
            self._dropped += self._oldest
            self._table = np.concatenate([live, np.zeros((4, max(1024, live.shape[1])), np.int64)], 1)
            self._oldest, self._end = 0, live.shape[1]
        self._table[:, self._end] = self._row, rows, task, terminated
        self._end += 1
        self._row += rows
        self._index = {}

    # ---------------------------------------------------------------- sampling

    def _starts(self, horizon: int, by: By) -> tuple[Tensor, ...]:
        """Tables for drawing a start, made once after the content changed.

        Episodes long enough for a slice, sorted by task if needed: row, task, number of starts, steps and whether it
        terminated (E,), the starts before each (E+1,), and for by="task" the range of starts of each task (S, 2).
        """
        if (horizon, by) not in self._index:
            start, rows, task, terminated = self._table[:, self._oldest : self._end]
            counts = np.where(terminated, rows, rows - horizon)
            keep = np.flatnonzero(counts > 0)
            if by == "task":
                keep = keep[np.argsort(task[keep], kind="stable")]
            if not len(keep):
                raise ValueError(f"nothing to sample: none of {self.episodes} episodes has {horizon} steps")
            start, task, counts, length, terminated = (
                x[keep] for x in (start, task, counts, rows - 1, terminated > 0)
            )
            before = np.concatenate([[0], counts.cumsum()])
            first = np.flatnonzero(np.diff(task, prepend=task[0] - 1))  # where the next task begins
            share = np.stack([before[first], before[np.append(first[1:], len(task))]], 1)
            tables = (start, task, counts, length, terminated, before, share)
            self._index[horizon, by] = tuple(torch.from_numpy(x).to(self.device) for x in tables)
        return self._index[horizon, by]

    def sample(
        self, batch_size: int, horizon: int, generator: torch.Generator | None = None, by: By = "episode"
    ) -> Batch:
        """Draw slices with replacement.

        batch_size B, horizon H >= 1; generator: on the buffer's device, default torch's own; by: see the file's head.
        Raises ValueError, one line: sizes below 1, or nothing long enough is stored.
        """
        if batch_size < 1 or horizon < 1:
            raise ValueError(f"batch_size and horizon must be at least 1, got {batch_size} and {horizon}")
        if by not in ("episode", "task", "step"):
            raise ValueError(f"by is episode, task or step, not {by!r}")
        start, task, counts, length, terminated, before, share = self._starts(horizon, by)
        # float64: with float32 the last of many million starts could not be told apart
        u = torch.rand(2, batch_size, dtype=torch.float64, generator=generator, device=self.device)
        if by == "episode":
            episode = (u[0] * len(start)).long()
            offset = (u[1] * counts[episode]).long()
        else:
            low, high = share[(u[0] * len(share)).long()].unbind(1) if by == "task" else (before[0], before[-1])
            number = low + (u[1] * (high - low)).long()
            episode = torch.searchsorted(before, number, right=True) - 1
            offset = number - before[episode]
        # Behind the end of a terminated episode its actions come round again: the absorbing state answers to any.
        step = offset + torch.arange(horizon + 1, device=self.device).unsqueeze(1)  # (H+1, B)
        length, over = length[episode], terminated[episode] & (step >= length[episode])
        rows = (start[episode] + step) % self.capacity
        led = (start[episode] + 1 + (step[1:] - 1) % length) % self.capacity
        obs = self._decode(self._obs.index_select(0, rows.flatten()).unflatten(0, rows.shape))
        obs.masked_fill_(over.unsqueeze(-1), 0)[..., -1:].masked_fill_(over.unsqueeze(-1), 1)
        if self._feature.shape[1]:  # what the absorbing state shows is as void as the rest of it
            feature = self._feature.index_select(0, rows.flatten()).unflatten(0, rows.shape).float()
            obs = torch.cat([obs, feature.masked_fill_(over.unsqueeze(-1), 0)], -1)
        action = self._action.index_select(0, led.flatten()).unflatten(0, (horizon, batch_size))
        reward = self._reward[led].masked_fill(over[:-1], 0)
        return Batch(obs, action, reward, task[episode], over[1:].float())

    # ---------------------------------------------------------------- files

    def save(self, folder: Path, oldest_needed: int | None = None) -> None:
        """Append the episodes that `folder` does not have yet, as one file that is complete or absent.

        oldest_needed: files that end before this episode number are deleted; default `first_episode`. Pass an older
        checkpoint's first_episode to keep that checkpoint loadable.
        Raises ValueError, one line: the folder holds episodes that this buffer has neither saved nor loaded.
        """
        folder = Path(folder).resolve()
        if folder != self._folder:
            if _chunks(folder):
                raise ValueError(f"{folder} already holds a saved buffer; load it or choose an empty folder")
            self._folder, self._saved = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        for first, end, path in _chunks(folder):
            # From a run that was killed after this file and before its checkpoint, or evicted since.
            if first >= self._saved or end <= (self.first_episode if oldest_needed is None else oldest_needed):
                path.unlink()
        for path in (*folder.glob("episodes-*.tmp"), *folder.glob(".tmp*")):  # it was killed while writing this
            path.unlink()
        first, end = max(self._saved, self.first_episode), self.total_episodes
        if first < end:
            start, rows, task, terminated = self._table[:, first - self._dropped : self._end]
            place = torch.arange(int(start[0]), self._row, device=self.device) % self.capacity
            tensors = {"obs": self._obs[place], "action": self._action[place], "reward": self._reward[place]}
            tensors |= {"table": torch.from_numpy(np.stack([start, rows, task]))}
            if self._feature.shape[1]:
                tensors["feature"] = self._feature[place]
            if terminated.any():  # tasks that never end have files without it
                tensors |= {"terminated": torch.from_numpy(terminated)}
            path = folder / f"episodes-{first:09d}-{end:09d}.safetensors"
            write_atomically(path, tensors)
        self._saved = end

    def moved(self, folder: Path) -> None:
        """The files that were saved are in this folder now."""
        self._folder = Path(folder).resolve()

    def load(self, folder: Path, first_episode: int, total_episodes: int, tasks: int = 2**31) -> None:
        """Fill an empty buffer with what a saved one held at these two counts: the same ring, bit for bit.

        tasks: how many there are; an episode of another one is damage. Other files are ignored.
        Raises ValueError, one line: not empty, a damaged or missing file, other sizes, numbers that are not finite.
        """
        if self._row:
            raise ValueError("load needs an empty buffer")
        chunks = [chunk for chunk in _chunks(Path(folder)) if first_episode < chunk[1] and chunk[0] < total_episodes]
        expected = self._dropped = chunks[0][0] if chunks else 0
        for first, end, path in chunks:
            try:
                with safetensors.safe_open(path, "pt") as file:
                    obs, action, reward, table = (file.get_tensor(x) for x in ("obs", "action", "reward", "table"))
                    none = torch.zeros(end - first, dtype=torch.int64)  # tasks that never end have files without it
                    terminated = file.get_tensor("terminated") if "terminated" in file.keys() else none
                    none = torch.empty(len(reward), 0, dtype=torch.float16)
                    feature = file.get_tensor("feature") if "feature" in file.keys() else none
            except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is not a complete file of episodes ({error!s:.200})") from error
            n = reward.numel()
            shapes = [(n, *self._obs.shape[1:]), (n, *self._action.shape[1:]), (n,), (3, end - first), (end - first,)]
            shapes += [(n, *self._feature.shape[1:])]
            fits = [tuple(x.shape) for x in (obs, action, reward, table, terminated, feature)] == shapes
            types = obs.dtype, action.dtype, reward.dtype, table.dtype, terminated.dtype, feature.dtype
            known = types == (self._obs.dtype, *[torch.float32] * 2, *[torch.int64] * 2, torch.float16)
            if not fits or not known or first != expected:
                raise ValueError(f"{path} does not fit this buffer: other sizes, or files before it are missing")
            if not self._row:
                self._row = int(table[0, 0])
            # Each episode lies behind the one before; what comes out of a file must not index anything else.
            rows, start = table[1], table[1].cumsum(0) - table[1]
            sound = ((rows >= 2) & (rows <= min(n, self.capacity))).all() and rows.sum() == n and 0 <= self._row < 2**60
            known = ((table[2] >= 0) & (table[2] < tasks) & ((terminated == 0) | (terminated == 1))).all()
            if not sound or not known or not torch.equal(table[0], self._row + start):
                raise ValueError(f"{path} is damaged or from another run: its table of episodes does not fit")
            later = torch.ones(n, dtype=torch.bool)
            later[start] = False
            if not all(x.isfinite().all() for x in (obs, feature, action[later], reward[later])):
                raise ValueError(f"{path} is damaged: it holds numbers that are not finite")
            at = 0
            for (rows, task), over in zip(table[1:].T.tolist(), terminated.tolist(), strict=True):
                part = slice(at, at + rows)
                self._write(obs[part], action[part], reward[part], task, bool(over), feature[part])
                at += rows
            expected = end
        if (self.first_episode, self.total_episodes) != (first_episode, total_episodes):
            have, need = f"{self.first_episode}..{self.total_episodes}", f"{first_episode}..{total_episodes}"
            raise ValueError(f"{folder} holds episodes {have}, needed are {need}; is the capacity the same?")
        self._folder, self._saved = Path(folder).resolve(), total_episodes


def write_atomically(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """safetensors file that is either complete or not there."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write under the name that this gives; at the end of the block the file is flushed to disk and takes its place.

    The name is used by nobody else, and the file may be read by whoever may read other new files.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777  # as umask says; safetensors' file would be its owner's alone
        yield temporary
        os.chmod(temporary, mode)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError):  # the disk is full: half a file helps nobody
        temporary.unlink(missing_ok=True)
        raise


def _chunks(folder: Path) -> list[tuple[int, int, Path]]:
    """First episode, one past the last, and path of every file, in order."""
    name = re.compile(r"episodes-(\d+)-(\d+)\.safetensors")
    found = [(name.fullmatch(path.name), path) for path in folder.glob("episodes-*")]
    return sorted((int(match[1]), int(match[2]), path) for match, path in found if match)


def sample_mixed(
    demo: Buffer | None,
    online: Buffer | None,
    batch_size: int,
    horizon: int,
    generator: torch.Generator | None = None,
    by: By = "episode",
) -> Batch:
    """Half demonstrations, half online data (odd: one more online); all from the other if one is None or empty."""
    parts = [buffer for buffer in (demo, online) if buffer is not None and buffer.episodes]
    if not parts:
        raise ValueError("nothing to sample: neither demonstrations nor online episodes are stored")
    if len(parts) == 1 or batch_size == 1:
        return parts[-1].sample(batch_size, horizon, generator, by)
    a = demo.sample(batch_size // 2, horizon, generator, by)
    b = online.sample(batch_size - batch_size // 2, horizon, generator, by)
    return Batch(*(torch.cat([x, y], dim=-1 if x.ndim == 1 else 1) for x, y in zip(a, b, strict=True)))


class Collector:
    """Episodes in the making of n environments that step together but end at different times.

    Each environment has its own rows and its own clock, so a step can only land in its own episode (in the published
    code unequal lengths mix them up).
    """

    def __init__(self, n: int, max_steps: int, obs_dim: int, action_dim: int, task: np.ndarray):
        """max_steps: of the longest episode; task (n,): number of each environment's task."""
        if min(n, max_steps, obs_dim, action_dim) < 1 or len(task) != n:
            raise ValueError(f"sizes must be at least 1 with a task for each of {n} environments, got {len(task)}")
        self._obs = np.zeros((n, max_steps + 1, obs_dim), np.float32)
        self._action = np.zeros((n, max_steps + 1, action_dim), np.float32)
        self._reward = np.zeros((n, max_steps + 1), np.float32)
        self._t = np.full(n, -1)  # row that was written last; -1 before `start`
        self._task = np.asarray(task)

    def start(self, obs: np.ndarray) -> None:
        """All environments were reset to obs (n, O); unfinished episodes are dropped."""
        self._t[:] = 0
        self._obs[:, 0] = obs

    def add(
        self,
        buffer: Buffer,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        final_obs: np.ndarray,
        obs: np.ndarray,
        dropped: np.ndarray | None = None,
        terminated: np.ndarray | None = None,
    ) -> list[tuple[int, float, int]]:
        """One step of all environments; episodes that end go to the buffer.

        action (n, A), reward, done (n,); final_obs (n, O) what the action led to; obs (n, O) the same, or where done
        the next episode's first observation; dropped (n,) bool, the unfinished episode is void and obs begins another;
        terminated (n,) bool, where done: it is over, and not only cut off.
        -> finished ones as (environment, return, steps).
        """
        if (self._t < 0).any():
            raise ValueError("call start(obs) before add: the first row of an episode is what reset returned")
        every = np.arange(len(self._t))
        self._t += 1
        if (self._t >= self._reward.shape[1]).any():
            late = int(np.argmax(self._t))
            raise ValueError(f"environment {late} did not end within max_steps {self._reward.shape[1] - 1}")
        self._obs[every, self._t], self._action[every, self._t] = final_obs, action
        self._reward[every, self._t] = reward
        none = np.zeros(len(every), bool)
        finished, void, over = [], none if dropped is None else dropped, none if terminated is None else terminated
        for i in np.flatnonzero(done | void).tolist():
            if not void[i]:
                rows = slice(0, self._t[i] + 1)
                episode = self._obs[i, rows], self._action[i, rows], self._reward[i, rows]
                buffer.add(*episode, int(self._task[i]), bool(over[i]))
                finished.append((i, float(self._reward[i, 1 : self._t[i] + 1].sum()), int(self._t[i])))
            self._t[i] = 0
            self._obs[i, 0] = obs[i]
        return finished

    def rewards(self, i: int, steps: int) -> np.ndarray:
        """Of the episode of so many steps that environment i finished in the last `add`: (steps,)."""
        return self._reward[i, 1 : steps + 1]
