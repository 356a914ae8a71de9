"""OUT/curves.png: the run's losses and rates, drawn by a process of its own.

Drawing takes a second and Python's lock: beside the loop it would hold steps up.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: the packages stand beside this folder, not in it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import importlib.util
import json
import os
import subprocess
from typing import Any

from infra.terminal import Terminal

FILE = "curves.png"
MOST_POINTS = 2000
"""Of a curve; of a longer history every n-th line is drawn."""
END_S = 120


class Curves:
    """Draws from metrics.jsonl, one drawing at a time."""

    def __init__(self, out: Path, terminal: Terminal) -> None:
        self._out = out
        self._process: subprocess.Popen[bytes] | None = None
        self._can = importlib.util.find_spec("matplotlib") is not None
        if not self._can:
            terminal.decide("curves", "none", "matplotlib is not installed: teachonce[train]")

    def draw(self) -> None:
        """Begin a drawing, unless the one before is not finished: the next one shows as much."""
        if self._can and (self._process is None or self._process.poll() is not None):
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), str(self._out)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=_yielding,
            )

    def finish(self) -> None:
        """Draw the end of the run, and wait for it."""
        if self._process is not None:
            self._process.wait(END_S)
        self.draw()
        if self._process is not None:
            self._process.wait(END_S)


def _yielding() -> None:
    os.nice(10)


def draw(out: Path) -> None:
    """Draw OUT/curves.png from OUT/metrics.jsonl."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_bytes().splitlines()]
    lines = lines[:: len(lines) // MOST_POINTS + 1]
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    steps = [line["step"] for line in lines]
    panels: list[tuple[str, dict[str, tuple[list[int], list[float]]]]] = [
        ("loss", {"total": (steps, [line["loss"] for line in lines])}),
        ("loss by teacher", _by_teacher(lines)),
        (
            "gradient norm and learning rate / largest",
            {name: (steps, _shares(lines, name)) for name in ("gradient_norm", "lr")},
        ),
        ("rows a second", {"": (steps, [line["rows_per_second"] for line in lines])}),
    ]
    for axis, (title, curves) in zip(axes.flat, panels):
        for name, (x, y) in curves.items():
            axis.plot(x, y, label=name, linewidth=1)
        if len(curves) > 1:
            axis.legend(fontsize="small")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    partial = out / f".{FILE}-{os.getpid()}.png"
    figure.savefig(partial, dpi=80)
    partial.replace(out / FILE)


def _by_teacher(lines: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """A teacher may be left out of a step."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        for teacher, told in line["teachers"].items():
            for term in ("cls", "patch"):
                if term in told:
                    x, y = curves.setdefault(f"{teacher} {term}", ([], []))
                    x.append(line["step"])
                    y.append(told[term])
    return curves


def _shares(lines: list[dict[str, Any]], name: str) -> list[float]:
    values = [line[name] for line in lines]
    largest = max(values, default=0) or 1
    return [value / largest for value in values]


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
