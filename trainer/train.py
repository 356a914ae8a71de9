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
from pathlib import Path

from infra.command import Outcome
from infra.devices import Choice, pick_device, pick_precision
from infra.heap import keep_freed_memory
from infra.models.encoder import Encoder
from infra.terminal import Terminal
from schemas.train_config import TrainConfig
from trainer import begin
from trainer.begin import Beginning
from trainer.feed import MAIN, Feed, open_feed
from trainer.handover import hand_over
from trainer.heads import Widths
from trainer.learner import Learner
from trainer.loop import Loop
from trainer.parallel import Ranks, joined
from trainer.stages import check_stage
from trainer.students import build_student, set_up_training, side_pixels


def run(config: TrainConfig, terminal: Terminal) -> Outcome:
    """Train until `optim.steps`, or `max_steps` if that is less; leave a model folder.

    Raises:
        ConfigError, TeacherError: the stage is not asked for as it is, or the student cannot be
            built, begun, or fed at a grid.
        CacheError: the cache has no such snapshot or teacher, or no usable row.
        ResumeError: the checkpoints in `out` are of another recipe, or all damaged.
        StoreError: a checkpoint cannot be written.
        TeachonceError: the loss is no longer a number, or a step does not fit the GPU's memory.
    """
    check_stage(config)
    keep_freed_memory()
    device = pick_device()
    with joined(device.value) as ranks:
        return _run(config, terminal if ranks.first else Terminal(quiet=True), device, ranks)


def _run(config: TrainConfig, terminal: Terminal, device: Choice, ranks: Ranks) -> Outcome:
    started = time.monotonic()
    out = Path(config.out).expanduser()
    beginning = begin.look(config, out, ranks, terminal)
    precision = pick_precision(config.precision, device.value)
    terminal.decide("device", *device)
    if ranks.world > 1:
        terminal.decide("processes", ranks.world, "as torchrun started them")
    terminal.decide("precision", *precision)
    student = _student(config, beginning)
    feed = _feed(config, student, beginning, ranks, terminal)
    teachers = {
        name: Widths(told.patch_width, told.cls_width) for name, told in feed.teachers.items()
    }
    learner = Learner(
        config, student, teachers, device.value, precision.value, ranks, terminal.decide
    )
    begin.take_up(beginning, config.student.init, learner.trained, terminal)
    loop = Loop(config, learner, feed, ranks, terminal)
    loop.begin(beginning)
    loop.run()
    if ranks.first:
        hand_over(out, config, learner.trained, feed, loop.step)
        terminal.say(f"student      {out} (step {loop.step}, loss {loop.loss:.4f})")
    ranks.wait()
    resumed = beginning.resumed
    return Outcome(
        {
            "stage": config.stage,
            "step": loop.step,
            "loss": loop.loss,
            "rows_per_second": loop.rows_per_second,
            "seconds": time.monotonic() - started,
            "resumed_from": None if resumed is None else resumed.state.step,
            "checkpoint": str(loop.folder),
        }
    )


def _student(config: TrainConfig, beginning: Beginning) -> Encoder:
    """As it begins, unless a folder's weights are still to be put into it."""
    init = config.student.init
    from_file = beginning.found is None and init is not None and not begin.is_run(init)
    student = build_student(
        config.student.model,
        config.seed,
        config.student.arguments,
        init if from_file else None,
    )
    set_up_training(student, config.student)
    return student


def _feed(
    config: TrainConfig, student: Encoder, beginning: Beginning, ranks: Ranks, terminal: Terminal
) -> Feed:
    sides = [side_pixels(student, grid) for grid in config.student_grids]
    resumed = beginning.resumed
    pinned = None if resumed is None else resumed.state.snapshots
    feed = open_feed(config, sides, pinned, ranks.rank, ranks.world)
    named = {MAIN: config.snapshot, **{name: part.snapshot for name, part in config.mix.items()}}
    for name, asked in named.items():
        if not isinstance(asked, int):
            what = "snapshot" if name == MAIN else f"mix.{name}"
            why = f"what {asked} is now" if pinned is None else "pinned when the run started"
            terminal.decide(what, feed.snapshots[name], why)
    if not config.teachers:
        terminal.decide("teachers", ", ".join(feed.teachers), "all of the snapshot")
    parameters = sum(parameter.numel() for parameter in student.model.parameters())
    terminal.say(
        f"student      {config.student.model}: {parameters / 1e6:.1f} M parameters, "
        f"{feed.rows:,} rows of {' or '.join(map(str, sides))} px an epoch"
    )
    return feed
