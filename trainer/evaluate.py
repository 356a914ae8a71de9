"""`teachonce evaluate`: what a student is worth and what it costs.

k-NN (EUPE, arXiv 2603.22387, with both its votes: see knn.py) and a linear probe (linear.py) on its
CLS vector of the whole picture squashed to a square, as EUPE's own inference does.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: the packages stand beside this folder, not in it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infra.command import Outcome
from infra.devices import pick_device
from infra.models.encoder import Encoder
from infra.models.folder import PIXELS_PER_GRID, open_model
from infra.models.timm_encoder import build_timm
from infra.models.weights import RANDOM
from infra.pixels.decode import silence_pillow
from infra.terminal import Meter, Terminal
from schemas.errors import ConfigError
from schemas.options import EvaluateOptions
from trainer.knn import usable_ks, vote
from trainer.labelled import Part, pictures, split
from trainer.linear import linear_top1
from trainer.students import TIMM, normalise, side_pixels

WARM_UPS = 2
TIMED_FORWARDS = 5


@dataclass(frozen=True)
class Known:
    """What a student says of the pictures of one part that could be read."""

    keys: list[str]
    cls: Tensor
    """[pictures, width]."""
    labels: Tensor
    """int64 [pictures]."""


def run(config: EvaluateOptions, terminal: Terminal) -> Outcome:
    """Measure one student on one labelled data set.

    Accuracies are shares of 1. `gflops` is 2 x multiply-adds of one picture, in 1e9; `cpu_ms` the
    median of one picture's forward in float32.

    Raises:
        ConfigError: no such student or data, pictures without labels or of one class.
        DamageError, TeacherError: the student cannot be opened.
    """
    silence_pillow()
    encoder, grid = _open_student(config, terminal)
    side = side_pixels(encoder, grid)
    train, test = split(config, terminal)
    result = _cost(encoder, side)
    device = pick_device()
    terminal.decide("device", *device)
    encoder.model.to(device.value)
    result |= _accuracies(encoder, train, test, side, config.batch_size, terminal)
    terminal.say(
        f"top-1        k-NN {result['knn_top1']:.4f}, linear {result['linear_top1']:.4f} of "
        f"{result['test_images']:,} pictures, {result['train_images']:,} to learn from"
    )
    return Outcome(result)


def _open_student(config: EvaluateOptions, terminal: Terminal) -> tuple[Encoder, int]:
    """The student, on the CPU, and the grid it is evaluated at."""
    if not config.student.startswith(TIMM):
        if config.arguments:
            raise ConfigError(
                f"arguments: are for a {TIMM}NAME; {config.student} says by itself what it is"
            )
        encoder, record = open_model(Path(config.student).expanduser())
        trained = record.grid
        why = "as it was trained"
    else:
        encoder = build_timm(config.student.removeprefix(TIMM), config.arguments, config.weights)
        trained = encoder.native_pixels // PIXELS_PER_GRID
        why = "timm's size of this model"
        if config.weights.startswith(RANDOM):
            terminal.warn("the weights are random: what is measured means nothing")
    if encoder.cls_width is None:
        raise ConfigError(f"student {config.student}: has no global vector to compare pictures by")
    if config.grid is not None:
        return encoder, config.grid
    terminal.decide("grid", f"{trained} ({PIXELS_PER_GRID * trained} px)", why)
    return encoder, trained


def _cost(encoder: Encoder, side: int) -> dict[str, Any]:
    """Of one picture, on the CPU."""
    picture = torch.zeros(1, 3, side, side)
    seconds = []
    with torch.inference_mode():
        for _ in range(WARM_UPS + TIMED_FORWARDS):
            start = time.perf_counter()
            encoder(picture)
            seconds.append(time.perf_counter() - start)
        # The counter does not know the fused attention of a CPU, and would leave it out.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            encoder(picture)
    return {
        "parameters": sum(parameter.numel() for parameter in encoder.model.parameters()),
        "gflops": counter.get_total_flops() / 1e9,
        "cpu_ms": 1e3 * statistics.median(seconds[WARM_UPS:]),
    }


def _accuracies(
    encoder: Encoder, train: Part, test: Part, side: int, batch_size: int, terminal: Terminal
) -> dict[str, Any]:
    names = sorted({*train.labels, *test.labels})
    numbers = {name: number for number, name in enumerate(names)}
    count = len(train.entries) + len(test.entries)
    with terminal.progress("features", count, "pictures") as meter:
        known = _features(encoder, train, side, batch_size, numbers, meter)
        asked = _features(encoder, test, side, batch_size, numbers, meter)
    if not known.keys or not asked.keys:
        raise ConfigError(
            f"data {test.source.url}: {len(known.keys)} pictures to compare with and "
            f"{len(asked.keys)} to test could be read; at least one of each is needed"
        )
    ks = usable_ks(len(known.keys))
    tests, neighbours = (F.normalize(part.cls, dim=-1) for part in (asked, known))
    votes = vote(tests, neighbours, known.labels, len(names), ks)
    softmax = {str(k): _share(found, asked.labels) for k, found in votes.softmax.items()}
    majority = {str(k): _share(found, asked.labels) for k, found in votes.majority.items()}
    given, wanted = (known.cls, known.labels), (asked.cls, asked.labels)
    return {
        "knn_top1": next(iter(softmax.values())),
        "knn": softmax,
        "knn_majority": majority,
        "linear_top1": linear_top1(given, known.keys, wanted, len(names), terminal),
        "segmentation_miou": None,
        "depth_rmse": None,
        "correspondence_pck": None,
        "zeroshot_top1": None,
        "train_images": len(known.keys),
        "test_images": len(asked.keys),
        "bad_images": count - len(known.keys) - len(asked.keys),
    }


@torch.inference_mode()
def _features(
    encoder: Encoder,
    part: Part,
    side: int,
    batch_size: int,
    numbers: dict[str, int],
    meter: Meter,
) -> Known:
    device = next(encoder.model.parameters()).device
    features = [torch.empty(0, encoder.cls_width or 0, device=device)]
    keys: list[str] = []
    labels: list[int] = []
    for places, pixels in pictures(part, side, batch_size):
        cls, _ = encoder(normalise(pixels.to(device), encoder))
        assert cls is not None  # a student without one was refused
        features.append(cls)
        keys += [part.entries[place].key for place in places]
        labels += [numbers[str(part.entries[place].label)] for place in places]
        meter.advance(len(places))
    return Known(keys, torch.cat(features), torch.tensor(labels, dtype=torch.int64, device=device))


def _share(found: Tensor, truth: Tensor) -> float:
    return (found == truth).double().mean().item()
