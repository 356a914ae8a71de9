"""What a run tells of itself while it goes on: a file, TensorBoard, curves."""

from pathlib import Path
from typing import Any

from infra.terminal import Terminal
from trainer.board import Board
from trainer.curves import Curves
from trainer.metrics import Metrics


class Report:
    """Of the first rank."""

    def __init__(self, out: Path, first_step: int, terminal: Terminal) -> None:
        self._metrics = Metrics(out, first_step)
        self._board = Board(out, first_step, terminal)
        self._curves = Curves(out, terminal)
        self._lines = 0

    def line(self, record: dict[str, Any]) -> None:
        self._lines += 1
        self._metrics.line(record)
        self._board.line(record)

    def saved(self) -> None:
        """A checkpoint stands."""
        self._board.flush()
        self._curves.draw()

    def close(self) -> None:
        """The run has ended."""
        self._board.close()
        if self._lines:
            self._curves.finish()
