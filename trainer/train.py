"""`teachonce train`: one stage, from a cache to a student; goes on from its last checkpoint.

The method is EUPE's (arXiv 2603.22387). No teacher is loaded: what they said is read from the
cache. A run is a function of its recipe and seed alone, so a resumed one repeats the one that was
not stopped: the same batches and, on a CPU, the same weights to the bit.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: the packages stand beside this folder, not in it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))

import time
from collections.abc import Iterator
from contextlib import closing

from infra.command import Outcome
from infra.devices import pick_device, pick_precision
from infra.models.encoder import Encoder
from infra.models.folder import ModelRecord
from infra.terminal import Terminal
from schemas.errors import CacheError
from schemas.train_config import TrainConfig
from trainer import checkpoint
from trainer.batch import Batch
from trainer.checkpoint import Checkpoint, RunState
from trainer.heads import Widths
from trainer.learner import Learner, learning_rate
from trainer.metrics import Metrics
from trainer.stream import CacheStream
from trainer.students import build_student, describe, save_model, side_pixels

LOG_STEPS = 10
"""Steps between two looks at the loss; each look waits for the GPU."""


def run(config: TrainConfig, terminal: Terminal) -> Outcome:
    """Train until `optim.steps`, or `max_steps` if that is less; leave a model folder.

    Raises:
        ConfigError, TeacherError: the student cannot be built, or not fed at this grid.
        CacheError: the cache has no such snapshot or teacher, or no usable row.
        ResumeError: the checkpoints in `out` are of another recipe, or all damaged.
        StoreError: a checkpoint cannot be written.
        TeachonceError: the loss is no longer a number.
    """
    started = time.monotonic()
    out = Path(config.out).expanduser()
    found = checkpoint.latest(out, terminal.warn)
    if found is not None:
        checkpoint.refuse_other_recipe(found, config)
    device = pick_device()
    precision = pick_precision(config.precision, device.value)
    terminal.decide("device", *device)
    terminal.decide("precision", *precision)
    encoder = build_student(config.student.model, config.seed)
    stream = _open_stream(config, encoder, found, terminal)
    widths = {
        name: Widths(told.patch_width, told.cls_width) for name, told in stream.teachers.items()
    }
    learner = Learner(config, encoder, widths, device.value, precision.value)
    if found is not None:
        checkpoint.load(found, encoder.model, learner.heads, learner.optimizer)
        stream.load_state_dict(dict(found.state.stream))
        left = "goes on" if found.state.step < config.optim.steps else "nothing is left to do"
        terminal.decide("start", f"after step {found.state.step}", f"{left}; {found.folder}")
    ended, rows_per_second = _train(config, learner, stream, found, terminal)
    save_model(out, encoder, _record(config, learner, stream, ended.state.step))
    terminal.say(f"student      {out} (step {ended.state.step}, loss {ended.state.loss:.4f})")
    return Outcome(
        {
            "stage": config.stage,
            "step": ended.state.step,
            "loss": ended.state.loss,
            "rows_per_second": rows_per_second,
            "seconds": time.monotonic() - started,
            "resumed_from": None if found is None else found.state.step,
            "checkpoint": str(ended.folder),
        }
    )


def _open_stream(
    config: TrainConfig, encoder: Encoder, found: Checkpoint | None, terminal: Terminal
) -> CacheStream:
    side = side_pixels(encoder, config.student_grids[0])
    grids = {
        name: None if term.grids is None else term.grids[0]
        for name, term in config.teachers.items()
    }
    stream = CacheStream(
        config.cache,
        snapshot=config.snapshot if found is None else found.state.snapshot,
        teachers=grids or None,
        pixels=side,
        batch_size=config.optim.batch_size,
        views=config.views,
        seed=config.seed,
        images_root=config.images.root,
        threads=config.loader.threads,
        store=config.store,
        prefetch_batches=config.loader.prefetch_batches,
    )
    if config.snapshot == "latest":
        why = "the newest" if found is None else "pinned when the run started"
        terminal.decide("snapshot", stream.snapshot, why)
    if not grids:
        terminal.decide("teachers", ", ".join(stream.teachers), "all of the snapshot")
    parameters = sum(parameter.numel() for parameter in encoder.model.parameters())
    terminal.say(
        f"student      {config.student.model}: {parameters / 1e6:.1f} M parameters, "
        f"{stream.rows:,} rows of {side} px an epoch"
    )
    return stream


def _train(
    config: TrainConfig,
    learner: Learner,
    stream: CacheStream,
    found: Checkpoint | None,
    terminal: Terminal,
) -> tuple[Checkpoint, float]:
    """The loop; returns where it ended, and the rows per second it made."""
    ended = found
    first = 0 if found is None else found.state.step
    last = min(config.optim.steps, config.max_steps or config.optim.steps)
    rows = _rows_until(last, stream.rows, config) - _rows_until(first, stream.rows, config)
    metrics = Metrics(Path(config.out).expanduser(), first)
    note = ""
    with (
        closing(iter(stream)) as source,
        terminal.progress("train", max(0, rows), "rows") as meter,
    ):
        batches = _usable(source, stream.rows, config)
        for step in range(first + 1, last + 1):
            with metrics.waiting():
                batch = next(batches)
            total, parts = learner.step(step, batch)
            metrics.count(len(batch.rows))
            saves = step % config.checkpoint.every_steps == 0 or step == last
            if saves or step % LOG_STEPS == 0:
                rate = learning_rate(step, config.optim)
                loss = metrics.line(step, total, parts, rate)
                note = f"step {step:,}  loss {loss:.4f}"
                if saves:
                    ended = _save(config, learner, stream, step, loss, batch)
            meter.advance(len(batch.rows), note)
        rows_per_second = metrics.rows_per_second
    assert ended is not None, "a run has at least one step, and its last one is saved"
    return ended, rows_per_second


def _save(
    config: TrainConfig, learner: Learner, stream: CacheStream, step: int, loss: float, batch: Batch
) -> Checkpoint:
    state = RunState(
        step=step,
        loss=loss,
        stream=batch.state,
        snapshot=stream.snapshot,
        recipe=checkpoint.recipe(config),
    )
    return checkpoint.save(
        Path(config.out).expanduser(),
        state,
        learner.encoder.model,
        learner.heads,
        learner.optimizer,
        _record(config, learner, stream, step),
        config.checkpoint.keep,
    )


def _usable(source: Iterator[Batch], epoch_rows: int, config: TrainConfig) -> Iterator[Batch]:
    """The batches of `source`, as long as there is anything to learn from them."""
    seen = good = 0
    for batch in source:
        seen += len(batch.rows)
        good += int(batch.weight.count_nonzero())
        if seen >= epoch_rows and not good:
            raise CacheError(
                f"{config.cache}: no row of an epoch is good in every teacher's set, so there is "
                "nothing to train on; `teachonce verify` counts the bad ones"
            )
        yield batch


def _rows_until(step: int, epoch_rows: int, config: TrainConfig) -> int:
    """Rows trained on after `step` steps; the last batch of an epoch may be short."""
    size = config.optim.batch_size
    epochs, steps = divmod(step, -(-epoch_rows // size))
    return epochs * epoch_rows + steps * size


def _record(config: TrainConfig, learner: Learner, stream: CacheStream, step: int) -> ModelRecord:
    return describe(
        learner.encoder,
        config.student.model,
        grid=config.student_grids[0],
        stage=config.stage,
        step=step,
        snapshot=stream.snapshot,
        teachers={name: told.fingerprint for name, told in stream.teachers.items()},
    )
