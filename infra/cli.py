"""`teachonce COMMAND ...`: the table of commands."""

import os
import sys
from collections.abc import Sequence

from infra.command import Command, run_command

COMMANDS = {
    "plan": Command(
        "pipeline.estimate:run",
        "schemas.extract_config:ExtractConfig",
        "What an extraction would do and cost. Writes nothing.",
    ),
    "extract": Command(
        "pipeline.extract:run",
        "schemas.extract_config:ExtractConfig",
        "Run the teachers over the images once; write, commit and snapshot their features. "
        "Run again, it does only what is missing.",
    ),
    "verify": Command(
        "pipeline.verify:run",
        "schemas.options:VerifyOptions",
        "Check every checksum, count and alignment of a cache.",
        ("cache",),
    ),
    "snapshots": Command(
        "pipeline.snapshots:run",
        "schemas.options:SnapshotsOptions",
        "List a cache's snapshots; leave earlier teachers out of a new one; forget old ones.",
        ("cache",),
    ),
    "gc": Command(
        "pipeline.gc:run",
        "schemas.options:GcOptions",
        "List what no snapshot reaches and no job at work can claim; with --delete, remove it.",
        ("cache",),
    ),
    "copy": Command(
        "pipeline.copy:run",
        "schemas.options:CopyOptions",
        "Copy some teachers, grids, views or a codec of a cache into a cache of its own.",
        ("cache", "out"),
    ),
    "pack": Command(
        "pipeline.pack:run",
        "schemas.options:PackOptions",
        "Copy the pictures of a cache beside its features, in the order that training reads them.",
        ("cache",),
    ),
    "train": Command(
        "trainer.train:run",
        "schemas.train_config:TrainConfig",
        "Train a student from a cache. Goes on from its last checkpoint by itself.",
    ),
    "evaluate": Command(
        "trainer.evaluate:run",
        "schemas.options:EvaluateOptions",
        "Measure a student on labelled pictures: k-NN on its CLS vector.",
    ),
    "export": Command(
        "trainer.export:run",
        "schemas.options:ExportOptions",
        "Write a student as one file that timm or EUPE's own code loads, once it was read back.",
    ),
    "bench": Command(
        "infra.bench:run",
        "schemas.options:BenchOptions",
        "Measure, and append the rows with their provenance.",
        ("what",),
    ),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = sys.argv[1:] if words is None else words
    # Torch's idle threads otherwise spin, and starve whoever else uses the cores (the decoders,
    # another worker): 20x slower was measured. Read once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not words or words[0] in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        print("usage: teachonce COMMAND [--help] ...\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<{width}}  {command.summary}")
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(
            f"teachonce: no command {words[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr
        )
        return 2
    return run_command(words[0], COMMANDS[words[0]], words[1:])


if __name__ == "__main__":
    sys.exit(main())
