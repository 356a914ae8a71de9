"""Checkpoints: everything a run needs to go on as if it had never stopped.

OUT/checkpoints/<step>/ holds `student.safetensors`, the student as it would be handed on now,
`training.safetensors`, the weights in training where those are others (the student is a mean of
them), `heads.safetensors`, `optimizer.pt` (the state of AdamW, read without unpickling code),
`model.json`, so that the student can be opened from here, and `state.json`, sealed, with the sha256
of the others. It is written under another name and renamed: a checkpoint is there whole or not at
all.
"""

import io
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, JsonValue
from safetensors.torch import load as from_safetensors
from torch import nn
from torch.optim import Optimizer

from infra.durable import sync_folder, write_through
from infra.models.encoder import Encoder
from infra.models.folder import CHECKPOINT_WEIGHTS, HEADS, RECORD, ModelRecord
from schemas.errors import DamageError, ResumeError, StoreError
from schemas.sealed import digest, seal, unseal
from schemas.strict import StrictModel
from trainer.ema import Ema
from trainer.students import record_bytes, weights_of

HOME = "checkpoints"
STATE = "state.json"
TRAINING_WEIGHTS = "training.safetensors"
OPTIMIZER = "optimizer.pt"
PARTIAL = ".partial-"


class RunState(StrictModel):
    """`state.json`."""

    step: int
    loss: float | None
    """Of this step; None before the first."""
    stream: dict[str, Any]
    """Where the data stands once this step's batch has been trained on."""
    snapshots: dict[str, int]
    """Of each cache that the run is fed from."""
    accumulate: int
    """Parts that a batch is cut into."""
    recipe: dict[str, JsonValue]
    """By dotted name."""
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of each of the other files."""


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    state: RunState


@dataclass(frozen=True)
class Trained:
    """What training changes, and a checkpoint so holds."""

    encoder: Encoder
    heads: nn.Module
    optimizer: Optimizer
    ema: Ema | None = None

    @property
    def finished(self) -> Encoder:
        """The student as it is handed on."""
        return self.encoder if self.ema is None else self.ema.encoder


def latest(out: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest sound checkpoint of a run; None where there is none at all.

    A damaged one is passed over, with a warning, for the one before it: going on from there
    reaches the same weights.

    Raises:
        ResumeError: there are checkpoints, and all are damaged.
    """
    home = out / HOME
    folders = _folders(home)
    for folder in reversed(folders):
        try:
            return read(folder)
        except DamageError as error:
            warn(f"checkpoint {folder} is passed over: {error}")
    if folders:
        raise ResumeError(
            f"cannot go on in {out}: all {len(folders)} of its checkpoints are damaged; remove "
            f"{home} to start again"
        )
    return None


def read(folder: Path) -> Checkpoint:
    """One checkpoint. Raises DamageError unless every file is there as it was written."""
    try:
        state = unseal((folder / STATE).read_bytes(), RunState, STATE)
        for name, expected in state.files.items():
            if digest((folder / name).read_bytes()) != expected:
                raise DamageError(f"{name} does not match the sha256 that {STATE} names")
    except OSError as error:
        raise DamageError(f"{Path(error.filename).name}: {error.strerror}") from None
    return Checkpoint(folder, state)


def save(
    home: Path, state: RunState, trained: Trained, model: ModelRecord, keep: int
) -> Checkpoint:
    """Write a checkpoint, durably, and remove all but the newest `keep`.

    Args:
        home: folder of the run's checkpoints.

    Raises:
        StoreError: it could not be written; the ones before it stand.
    """
    partial = home / f"{PARTIAL}{uuid.uuid4().hex}"
    folder = home / str(state.step)
    try:
        home.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(home)
        partial.mkdir()
        sums = {}
        for name, data in _contents(trained, model):
            write_through(partial / name, data)
            sums[name] = digest(data)
        state = state.model_copy(update={"files": sums})
        write_through(partial / STATE, seal(state))
        sync_folder(partial)
        _remove(folder)  # Only a damaged one can be in the way.
        partial.rename(folder)
        sync_folder(home)
        for old in _folders(home)[:-keep]:
            _remove(old)
    except OSError as error:
        raise StoreError(
            f"checkpoint {folder}: writing failed: {error}; earlier ones stand, make room or "
            "rights there and run again"
        ) from error
    return Checkpoint(folder, state)


def _contents(trained: Trained, model: ModelRecord) -> Iterator[tuple[str, bytes]]:
    """One file at a time, so that memory holds no more than the largest."""
    yield CHECKPOINT_WEIGHTS, weights_of(trained.finished.model)
    if trained.ema is not None:
        yield TRAINING_WEIGHTS, weights_of(trained.encoder.model)
    yield HEADS, weights_of(trained.heads)
    yield RECORD, record_bytes(model)
    buffer = io.BytesIO()
    torch.save(trained.optimizer.state_dict(), buffer)
    yield OPTIMIZER, buffer.getvalue()


def load(checkpoint: Checkpoint, trained: Trained) -> None:
    """Put a checkpoint's weights and optimiser state into modules built by the same recipe."""
    folder = checkpoint.folder
    finished = from_safetensors((folder / CHECKPOINT_WEIGHTS).read_bytes())
    if trained.ema is None:
        trained.encoder.model.load_state_dict(finished)
    else:
        weights = (folder / TRAINING_WEIGHTS).read_bytes()
        trained.encoder.model.load_state_dict(from_safetensors(weights))
        if checkpoint.state.step:
            trained.ema.load(finished)
    trained.heads.load_state_dict(from_safetensors((folder / HEADS).read_bytes()))
    state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    trained.optimizer.load_state_dict(state)


def _folders(home: Path) -> list[Path]:
    """Checkpoints by step; whatever else lies there is none."""
    if not home.is_dir():
        return []
    found = [path for path in home.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def _remove(folder: Path) -> None:
    """Take a checkpoint away whole: under its own name it is never seen half removed."""
    if folder.exists():
        shutil.rmtree(folder.rename(folder.with_name(f"{PARTIAL}{uuid.uuid4().hex}")))


def _remove_leftovers(home: Path) -> None:
    for path in home.glob(f"{PARTIAL}*"):
        shutil.rmtree(path)
