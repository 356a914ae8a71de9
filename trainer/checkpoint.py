"""Checkpoints: everything a run needs to go on as if it had never stopped.

OUT/checkpoints/<step>/ holds `student.safetensors`, `heads.safetensors`, `optimizer.pt` (the state
of AdamW, read without unpickling code), `model.json`, so that the student can be opened from here,
and `state.json`, sealed, with the sha256 of the others. It is written under another name and
renamed: a checkpoint is there whole or not at all.
"""

import io
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, JsonValue
from safetensors.torch import load as from_safetensors
from torch import nn
from torch.optim import Optimizer

from infra.durable import sync_folder, write_through
from infra.models.folder import CHECKPOINT_WEIGHTS, RECORD, ModelRecord
from infra.store import open_store
from schemas.errors import DamageError, ResumeError, StoreError
from schemas.sealed import digest, seal, unseal
from schemas.strict import StrictModel
from schemas.train_config import TrainConfig
from trainer.students import record_bytes, weights_of

STATE = "state.json"
HEADS = "heads.safetensors"
OPTIMIZER = "optimizer.pt"
PARTIAL = ".partial-"

RECIPE_FIELDS = {
    "cache",
    "stage",
    "student",
    "teachers",
    "student_grids",
    "views",
    "loss",
    "head",
    "optim",
    "precision",
    "seed",
}
"""What decides the weights, and so must not change between the parts of a run."""


class RunState(StrictModel):
    """`state.json`."""

    step: int
    loss: float
    """Of this step."""
    stream: dict[str, int | str]
    """Where the stream stands once this step's batch has been trained on."""
    snapshot: int
    recipe: dict[str, JsonValue]
    """By dotted name."""
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of each of the other files."""


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    state: RunState


def recipe(config: TrainConfig) -> dict[str, JsonValue]:
    """The fields that must not change, by dotted name."""
    chosen = config.model_dump(mode="json", include=RECIPE_FIELDS)
    # The same words mean another folder once the command is run from elsewhere.
    chosen["cache"] = open_store(config.cache, config.store).url
    return _flat(chosen)


def _flat(tree: dict[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    flat: dict[str, JsonValue] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def refuse_other_recipe(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Check that `config` may go on from `checkpoint`.

    A configured `snapshot: latest` may: it means the snapshot that the run has pinned.

    Raises:
        ResumeError: every field that differs, with both values.
    """
    before, now = dict(checkpoint.state.recipe), recipe(config)
    if config.snapshot != "latest":
        before["snapshot"], now["snapshot"] = checkpoint.state.snapshot, config.snapshot
    absent = "not set"
    changes = [
        (name, before.get(name, absent), now.get(name, absent))
        for name in [*before, *(name for name in now if name not in before)]
        if before.get(name, absent) != now.get(name, absent)
    ]
    if changes:
        lines = [f"  {name:<20} was {old!r}, now {new!r}" for name, old, new in changes]
        raise ResumeError(
            f"cannot go on from {checkpoint.folder}: it was trained with another recipe\n"
            + "\n".join(lines)
            + "\nSet these as they were, or train into another `out`"
        )


def latest(out: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest sound checkpoint of a run; None where there is none at all.

    A damaged one is passed over, with a warning, for the one before it: going on from there
    reaches the same weights.

    Raises:
        ResumeError: there are checkpoints, and all are damaged.
    """
    folders = _folders(out)
    for folder in reversed(folders):
        try:
            return Checkpoint(folder, _check(folder))
        except DamageError as error:
            warn(f"checkpoint {folder} is passed over: {error}")
    if folders:
        raise ResumeError(
            f"cannot go on in {out}: all {len(folders)} of its checkpoints are damaged; remove "
            f"{_home(out)} to start again"
        )
    return None


def save(
    out: Path,
    state: RunState,
    student: nn.Module,
    heads: nn.Module,
    optimizer: Optimizer,
    model: ModelRecord,
    keep: int,
) -> Checkpoint:
    """Write a checkpoint, durably, and remove all but the newest `keep`.

    Raises:
        StoreError: it could not be written; the ones before it stand.
    """
    home = _home(out)
    partial = home / f"{PARTIAL}{uuid.uuid4().hex}"
    folder = home / str(state.step)
    try:
        home.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(home)
        partial.mkdir()
        sums = {}
        for name, data in _contents(student, heads, optimizer, model):
            write_through(partial / name, data)
            sums[name] = digest(data)
        state = state.model_copy(update={"files": sums})
        write_through(partial / STATE, seal(state))
        sync_folder(partial)
        _remove(folder)  # Only a damaged one can be in the way.
        partial.rename(folder)
        sync_folder(home)
        for old in _folders(out)[:-keep]:
            _remove(old)
    except OSError as error:
        raise StoreError(
            f"checkpoint {folder}: writing failed: {error}; earlier ones stand, make room or "
            "rights there and run again"
        ) from error
    return Checkpoint(folder, state)


def _contents(
    student: nn.Module, heads: nn.Module, optimizer: Optimizer, model: ModelRecord
) -> Iterator[tuple[str, bytes]]:
    """One file at a time, so that memory holds no more than the largest."""
    yield CHECKPOINT_WEIGHTS, weights_of(student)
    yield HEADS, weights_of(heads)
    yield RECORD, record_bytes(model)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    yield OPTIMIZER, buffer.getvalue()


def load(
    checkpoint: Checkpoint, student: nn.Module, heads: nn.Module, optimizer: Optimizer
) -> None:
    """Put a checkpoint's weights and optimiser state into modules built by the same recipe."""
    folder = checkpoint.folder
    student.load_state_dict(from_safetensors((folder / CHECKPOINT_WEIGHTS).read_bytes()))
    heads.load_state_dict(from_safetensors((folder / HEADS).read_bytes()))
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))


def _check(folder: Path) -> RunState:
    """Raises DamageError unless every file is there as it was written."""
    try:
        state = unseal((folder / STATE).read_bytes(), RunState, STATE)
        for name, expected in state.files.items():
            if digest((folder / name).read_bytes()) != expected:
                raise DamageError(f"{name} does not match the sha256 that {STATE} names")
    except OSError as error:
        raise DamageError(f"{Path(error.filename).name}: {error.strerror}") from None
    return state


def _home(out: Path) -> Path:
    return out / "checkpoints"


def _folders(out: Path) -> list[Path]:
    """Checkpoints by step; whatever else lies there is none."""
    home = _home(out)
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
