"""A tiny training: what its configuration file holds, and a run of it in this process."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from schemas.strict import parse
from schemas.train_config import TrainConfig
from tests.caches import Quiet
from trainer import train
from trainer.curves import Curves

STEPS = 12
SMALL_PROXY = {"depth": 1, "embed_dim": 64, "num_heads": 2}


def settings(cache: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "cache": str(cache),
        "student": {"model": "timm:test_vit"},
        "student_grids": [2],
        "head": {"hidden": 16},
        "optim": {"lr": 1e-3, "steps": STEPS, "batch_size": 16},
        "checkpoint": {"every_steps": 4, "keep": 3},
        "loader": {"threads": 2},
        "out": str(out),
    } | changes


class Run(NamedTuple):
    out: Path
    lines: list[str]
    result: dict[str, Any]


def train_here(cache: Path, out: Path, draws: bool = False, **changes: Any) -> Run:
    """Without its curves unless they are looked at: to draw them takes longer than to train."""
    terminal = Quiet()
    config = parse(TrainConfig, settings(cache, out, **changes), "test")
    with pytest.MonkeyPatch.context() as patch:
        if not draws:
            patch.setattr(Curves, "draw", lambda self: None)
        return Run(out, terminal.lines, train.run(config, terminal).result)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
