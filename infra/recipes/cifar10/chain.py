"""The whole chain, step by step: pictures, experts, proxy, students, figures.

python -m infra.recipes.cifar10.chain TRAIN.parquet [--seeds N] [--codecs] [--quick]

A step is a command that can be given by hand in the work folder. What it found and how long it took
is kept in results/STEP.json; a step that has one is not taken again, and one that was stopped goes
on where it can.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from infra.durable import replace_file
from infra.recipes.cifar10 import table
from infra.yaml_file import read_yaml

HERE = Path(__file__).resolve().parent
RUNS = HERE.parents[2] / "runs"
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "RAY_USAGE_STATS_ENABLED": "0"}
"""Idle threads that spin take the core that the others need."""
QUICK_PICTURES = 2500
QUICK_STEPS = ("--optim.steps", 20, "--optim.warmup-steps", 5, "--checkpoint.every-steps", 10)
GRID_PIXELS = 16
GRID = 4
"""Of the stage `fixed`."""
CODECS = {
    "int8": ("--codec.tokens", "int8"),
    "int4.hadamard": ("--codec.tokens", "int4"),
    "variable3.pca": ("--codec.tokens", "variable", "--codec.bits", 3),
    "variable2.pca": ("--codec.tokens", "variable", "--codec.bits", 2),
}
_PROXY = HERE / "extract_proxy.yaml"


class Step(NamedTuple):
    name: str
    module: str
    words: tuple[object, ...]


class Chain:
    """The steps; with `quick` on few pictures and for few steps, to see that all of it runs."""

    def __init__(self, source: Path, seeds: int, codecs: bool, quick: bool) -> None:
        self._source, self._seeds, self._codecs, self._quick = source, seeds, codecs, quick
        self._experts: dict[str, Any] = _config("extract_experts")["teachers"]

    def steps(self) -> Iterator[Step]:
        """Every one, in order."""
        limit = ("--limit", QUICK_PICTURES) if self._quick else ()
        yield _recipe("split", "split", self._source, "data", *limit)
        for name in self._experts:
            yield from self._expert(name)
        yield from _extraction("experts")
        yield from self._student("proxy", "proxy")
        yield from _extraction("proxy")
        yield from self._student("direct", "direct")
        for seed in range(self._seeds):
            own = ("--seed", seed, "--out")
            yield from self._student(f"fixed-{seed}", "fixed", *own, f"fixed-{seed}")
            yield from self._student(f"online-{seed}", "fixed", *own, f"online-{seed}", online=True)
        yield from self._student("multires", "multires")
        # What the last stage is for: pictures of other sizes than the one before it saw.
        for name in ("fixed-0", "multires"):
            yield _evaluate(f"{name}-at-2", "--student", name, "--grid", 2)
        student = _config("fixed")["student"]
        yield _evaluate("untrained", *_timm(student, "random:0"), "--grid", 4)
        if self._codecs:
            yield from self._study()

    def _study(self) -> Iterator[Step]:
        """Students from what the proxy said, stored in fewer bits: made from what stands in fp16,
        without a forward. Those from fp16 and those taught online are the pairs from above."""
        for label, choice in CODECS.items():
            words = ("--grids", GRID, *choice)
            yield _teachonce(f"extract-{label}", "extract", "--config", _PROXY, *words)
        for seed in range(self._seeds):
            for label in CODECS:
                name = f"{label}-{seed}"
                own = ("--seed", seed, "--out", name, "--teachers.proxy.codec", label)
                yield from self._student(name, "fixed", *own)

    def _expert(self, name: str) -> Iterator[Step]:
        """Train it, and measure it at the size that it was trained at."""
        expert = self._experts[name]
        epochs = ("--epochs", 1) if self._quick else ()
        config = HERE / "extract_experts.yaml"
        yield _recipe(f"train-{name}", "train_expert", config, name, *epochs)
        grid = expert.get("grids", _config("extract_experts")["grids"])[0]
        side = grid * expert["arguments"]["output_stride"]
        expert = {**expert, "model": f"timm:{expert['model']}"}
        yield _evaluate(name, *_timm(expert, expert["weights"]), "--grid", side // GRID_PIXELS)

    def _student(
        self, name: str, config: str, *words: object, online: bool = False
    ) -> Iterator[Step]:
        """Train it from a cache, or with its teacher in the loop, and measure it."""
        few = QUICK_STEPS if self._quick else ()
        words = ("--config", HERE / f"{config}.yaml", *words, *few)
        if online:
            yield _recipe(f"train-{name}", "online", *words)
        else:
            yield _teachonce(f"train-{name}", "train", *words)
        yield _evaluate(name, "--student", name)


def _extraction(name: str) -> Iterator[Step]:
    config = HERE / f"extract_{name}.yaml"
    yield _teachonce(f"extract-{name}", "extract", "--config", config)
    yield _teachonce(f"verify-{name}", "verify", f"caches/{name}")


def _evaluate(name: str, *words: object) -> Step:
    return _teachonce(f"evaluate-{name}", "evaluate", "--data", "data", *words)


def _timm(model: dict[str, Any], weights: str) -> tuple[object, ...]:
    arguments = json.dumps(model["arguments"])
    return "--student", model["model"], "--arguments", arguments, "--weights", weights


def _teachonce(name: str, command: str, *words: object) -> Step:
    return Step(name, "infra.cli", (command, *words, "--json"))


def _recipe(name: str, module: str, *words: object) -> Step:
    return Step(name, f"infra.recipes.cifar10.{module}", words)


def _config(name: str) -> dict[str, Any]:
    file = str(HERE / f"{name}.yaml")
    return read_yaml(file, file)


def take(step: Step, work: Path) -> None:
    """Take a step that was not taken yet. Ends the program where it fails."""
    kept = work / "results" / f"{step.name}.json"
    if kept.exists():
        return
    words = [sys.executable, "-m", step.module, *map(str, step.words)]
    print(f"== {step.name}: {' '.join(words[1:])}", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        words, cwd=work, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{step.name} ended with status {done.returncode}: {done.stdout[-2000:]}")
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    replace_file(kept, json.dumps({"seconds": seconds, "found": found}).encode() + b"\n")
    print(f"== {step.name} took {seconds:,.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="Parquet with the columns path, image, label")
    parser.add_argument("--seeds", type=int, default=1, help="of cached and online students")
    parser.add_argument("--codecs", action="store_true", help="students from fewer bits as well")
    parser.add_argument("--quick", action="store_true", help="a try, in runs/cifar10-quick")
    arguments = parser.parse_args()
    work = RUNS / ("cifar10-quick" if arguments.quick else "cifar10")
    (work / "results").mkdir(parents=True, exist_ok=True)
    source = arguments.source.resolve()
    chain = Chain(source, arguments.seeds, arguments.codecs, arguments.quick)
    for step in chain.steps():
        take(step, work)
    print(table.collect(work))


if __name__ == "__main__":
    main()
