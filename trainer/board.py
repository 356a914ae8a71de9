"""OUT/tensorboard: the lines of metrics.jsonl for TensorBoard."""

import importlib.util
from pathlib import Path
from typing import Any

from infra.terminal import Terminal

FOLDER = "tensorboard"


class Board:
    """TensorBoard's event files of a run; nothing where it is not installed."""

    def __init__(self, out: Path, first_step: int, terminal: Terminal) -> None:
        """What an earlier process wrote after `first_step` is not shown."""
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            terminal.decide("tensorboard", "none", "it is not installed: teachonce[train]")
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / FOLDER), purge_step=first_step + 1)

    def line(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl; written by a thread of TensorBoard's own."""
        if self._writer is None:
            return
        numbers = {
            name: value for name, value in record.items() if name not in ("step", "teachers")
        }
        for teacher, told in record["teachers"].items():
            numbers |= {f"{teacher}/{name}": value for name, value in told.items()}
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, record["step"])

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
