"""What a run begins with: its own last checkpoint, the weights of another run, or none.

A run whose recipe has changed can be begun anew with the weights it has reached. Its first
checkpoint, of step 0, is then written under another name, and takes the place of the old ones in
one rename: whenever the process dies, the next one goes on from the old run or from the new.
"""

import shutil
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from safetensors.torch import load as from_safetensors

from infra.durable import remove_partials, sync_folder
from infra.models.folder import HEADS, RECORD, load_folder, read_record
from infra.terminal import Terminal
from schemas.errors import ConfigError, DamageError, ResumeError
from schemas.sealed import digest
from schemas.train_config import TrainConfig
from trainer import checkpoint
from trainer.checkpoint import HOME, STATE, Checkpoint, Trained
from trainer.parallel import Ranks
from trainer.recipe import changes

NEXT = "checkpoints.next"
MEASURED = ("metrics.jsonl", "tensorboard", "curves.png")


@dataclass(frozen=True)
class Beginning:
    """Where a run begins."""

    found: Checkpoint | None
    """Of this run, or of the one that it takes the weights of."""
    anew: bool
    """Whether `found` is of another recipe, and the run begins at step 0."""

    @property
    def resumed(self) -> Checkpoint | None:
        """The checkpoint that the run goes on from."""
        return None if self.anew else self.found

    @property
    def step(self) -> int:
        return 0 if self.resumed is None else self.resumed.state.step


def look(config: TrainConfig, out: Path, ranks: Ranks, terminal: Terminal) -> Beginning:
    """Where the run of `config` in `out` begins; the same for all ranks.

    Raises:
        ResumeError: the checkpoints there are of another recipe and `from_weights` is not set, or
            all damaged, or ranks find different ones.
    """
    if ranks.first:
        _settle(out)
        remove_partials(out)
    ranks.wait()
    found = checkpoint.latest(out, terminal.warn)
    ranks.agree(-1 if found is None else found.state.step, str(out))
    if found is None:
        return Beginning(None, anew=False)
    lines = changes(found.state.recipe, found.state.snapshots, config)
    if lines and not config.from_weights:
        raise ResumeError(
            f"cannot go on from {found.folder}: it was trained with another recipe\n"
            + "\n".join(lines)
            + "\nSet these as they were, train into another `out`, or begin anew with its weights: "
            "from_weights: true"
        )
    return Beginning(found, anew=bool(lines))


def take_up(beginning: Beginning, init: str | None, trained: Trained, terminal: Terminal) -> None:
    """Give the student, its heads and optimiser what the run begins with.

    A file of tensors is not for here: the student was built from it.

    Raises:
        ConfigError, DamageError, TeacherError: the weights to begin with cannot be used.
    """
    found = beginning.found
    if found is not None and beginning.anew:
        _take_weights(found.folder, trained, terminal)
    elif found is not None:
        checkpoint.load(found, trained)
    elif init is not None and is_run(init):
        _take_weights(_model_folder(Path(init).expanduser(), terminal), trained, terminal)


def is_run(init: str) -> bool:
    """Whether `student.init` is a folder, and not a file of tensors or its URL."""
    return Path(init).expanduser().is_dir()


def set_aside(out: Path, step: int, terminal: Terminal) -> None:
    """Put the checkpoints in NEXT into the place of a run of another recipe, which ended at `step`
    and is kept beside them."""
    names = chain([f"{HOME}.before-{step}"], (f"{HOME}.before-{step}-{n}" for n in count(2)))
    aside = next(out / name for name in names if not (out / name).exists())
    (out / HOME).rename(aside)
    (out / NEXT).rename(out / HOME)
    for name in MEASURED:
        if (out / name).exists():
            (out / name).rename(aside / name)
    sync_folder(out)
    terminal.decide("start", "anew, at step 0", f"another recipe; the old run is in {aside}")


def _settle(out: Path) -> None:
    """Finish what `set_aside` was stopped in."""
    following = out / NEXT
    if following.exists():
        if (out / HOME).exists():
            shutil.rmtree(following)
        else:
            following.rename(out / HOME)


def _model_folder(folder: Path, terminal: Terminal) -> Path:
    """The folder of the model in a run: its own when it is finished, else its last checkpoint."""
    if (folder / RECORD).exists():
        return folder
    found = checkpoint.latest(folder, terminal.warn)
    if found is None:
        raise ConfigError(
            f"student.init: {folder} is no run and no checkpoint; give the folder of one, or a "
            "file of tensors"
        )
    return found.folder


def _take_weights(folder: Path, trained: Trained, terminal: Terminal) -> None:
    if (folder / STATE).exists():
        checkpoint.read(folder)  # whose sums cover the heads as well
    record = read_record(folder)
    load_folder(folder, record, trained.encoder.model)
    terminal.decide("weights", folder, f"stage {record.stage}, step {record.step}")
    if not (folder / HEADS).exists():
        terminal.decide("heads", "all new", f"there are none in {folder}")
        return
    data = (folder / HEADS).read_bytes()
    if record.heads is not None and digest(data) != record.heads.heads_sha256:
        raise DamageError(
            f"model folder {folder}: {HEADS} is not the file that {RECORD} names; run the training "
            "again to write both anew, or use one of its checkpoints"
        )
    _take_heads(folder, data, trained, terminal)


def _take_heads(folder: Path, data: bytes, trained: Trained, terminal: Terminal) -> None:
    """Those whose name and widths are the same there."""
    theirs, mine = from_safetensors(data), trained.heads.state_dict()
    names: dict[str, list[str]] = {}
    for name in mine:
        names.setdefault(name.split(".")[1], []).append(name)
    kept = {
        head: all(name in theirs and theirs[name].shape == mine[name].shape for name in tensors)
        for head, tensors in names.items()
    }
    taken = {name: theirs[name] for head in names if kept[head] for name in names[head]}
    trained.heads.load_state_dict(taken, strict=False)
    new = ", ".join(head for head in kept if not kept[head])
    terminal.decide(
        "heads",
        ", ".join(head for head in kept if kept[head]) or "all new",
        f"as in {folder}" + (f"; not there, or of other widths: {new}" if new else ""),
    )
