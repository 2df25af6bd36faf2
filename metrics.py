"""What a run writes about its learning: metrics.jsonl, one line per event, and the same for TensorBoard.

Names are as in loss/, train/, eval/<task>/, time/, memory/. Read by eval.plot_curves.
Test: pytest tests/test_train.py -k "files or resume"
"""

import json
import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

import distributed
from distributed import World


class Log:
    """Always local files of rank 0.

    `note` keeps a line until the next `write`, which all processes call: it also collects the notes of the others.
    A number that isn't defined (NaN) is left out: JSON has no word for it.
    """

    def __init__(self, folder: Path, size: int, step: int, world: World):
        self.notes: list[tuple[int, dict]] = []
        self.writes = world.rank == 0
        if self.writes:
            self.file = open(folder / "metrics.jsonl", "ab")
            # A resumed run drops what was written after its checkpoint, here and there.
            self.file.truncate(min(size, self.file.seek(0, 2)))
            self.file.seek(0, 2)
            self.board = SummaryWriter(str(folder), purge_step=step + 1 if size else None)

    def note(self, step: int, **values: float) -> None:
        self.notes.append((step, {name: float(value) for name, value in values.items()}))

    def write(self, step: int, durable: bool = False, **values: float) -> None:
        """durable: it must be on the disk before a checkpoint that says how long the file is."""
        everyone = distributed.gather(self.notes)
        self.notes = []
        if not self.writes:
            return
        lines = sorted((note for notes in everyone for note in notes), key=lambda note: note[0])
        if values:
            lines.append((step, {name: float(value) for name, value in values.items()}))
        for step, values in lines:
            values = {name: value for name, value in values.items() if value == value}
            self.file.write(json.dumps({"step": step, **values}).encode() + b"\n")
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        self.file.flush()
        if durable:
            os.fsync(self.file.fileno())

    @property
    def size(self) -> int:
        return self.file.tell() if self.writes else 0
