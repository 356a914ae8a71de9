"""Train one of the experts that an extraction names, and keep its backbone.

python -m infra.recipes.cifar10.train_expert extract_experts.yaml EXPERT

The experts are made to know different things: `classes` is told the labels; `turns` sees by which
quarter a picture was turned; `instances` tells which of two crops are of one picture. Architecture,
size of the pictures and where the weights go are read from the extraction's own configuration, so
that what is trained is what will be loaded.
"""

import argparse
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.command import read_config
from infra.devices import autocast
from infra.heap import keep_freed_memory
from infra.models.encoder import Encoder
from infra.models.timm_encoder import build_timm
from infra.models.weights import load_weights
from infra.pixels.decode import decode, silence_pillow
from infra.pixels.views import Pixels, box, render
from infra.terminal import Terminal
from schemas.extract_config import ExtractConfig

BATCH_SIZE = 256
PEAK_LR = 0.2
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
TEMPERATURE = 0.2
"""Of the softmax over the other pictures of the batch."""
SMALL_EPOCHS = 0.75
"""Share of the epochs that see pictures of three quarters of the side: almost twice as fast, and
the last ones at full size make up for it."""
PRECISION = "bfloat16"


class Expert(nn.Module):
    """The encoder's global vector, and a linear layer that is thrown away afterwards."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        if encoder.cls_width is None:
            raise SystemExit("an expert needs a global vector to be trained by")
        self.encoder = encoder
        self.backbone = encoder.model.requires_grad_(True)
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.answer = nn.Linear(encoder.cls_width, outputs)
        mean, std = (
            torch.tensor(values).reshape(-1, 1, 1)
            for values in (encoder.pixel_mean, encoder.pixel_std)
        )
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Outputs [batch, outputs] of float pixels [batch, 3, side, side] in 0..255."""
        squares = (pixels / 255 - self.mean) / self.std
        with autocast("cpu", PRECISION):
            cls, _ = self.encoder(squares.contiguous(memory_format=torch.channels_last))
            outputs: Tensor = self.answer(cls)
        return outputs.float()


@dataclass(frozen=True)
class Sample:
    """Pictures of one step, their classes, and where draws come from."""

    pixels: Tensor
    """uint8 [batch, 3, side, side]."""
    labels: Tensor
    generator: torch.Generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def crops(self, side: int, smallest: float) -> Tensor:
        """A random square crop of each picture at `side` pixels, of a share of its area from
        `smallest`; half of them mirrored. Float, in 0..255."""
        count = len(self.pixels)
        zoom = self.uniform(smallest, 1, count).sqrt()
        mirror = torch.where(self.uniform(0, 1, count) < 0.5, -1.0, 1.0)
        boxes = torch.zeros(count, 2, 3)
        boxes[:, 0, 0], boxes[:, 1, 1] = zoom * mirror, zoom
        boxes[:, 0, 2], boxes[:, 1, 2] = (self.uniform(-1, 1, count) * (1 - zoom) for _ in range(2))
        places = F.affine_grid(boxes, [count, 3, side, side], align_corners=False)
        pixels = self.pixels.float()
        return F.grid_sample(pixels, places, padding_mode="border", align_corners=False)


def classes(model: Expert, sample: Sample, side: int) -> Tensor:
    outputs = model(sample.crops(side, 0.5))
    return F.cross_entropy(outputs, sample.labels, label_smoothing=LABEL_SMOOTHING)


def turns(model: Expert, sample: Sample, side: int) -> Tensor:
    pixels = sample.crops(side, 0.5)
    quarters = torch.arange(len(pixels)) % 4
    turned = [torch.rot90(pixels[quarters == turn], turn, (2, 3)) for turn in range(4)]
    return F.cross_entropy(model(torch.cat(turned)), quarters.sort().values)


def instances(model: Expert, sample: Sample, side: int) -> Tensor:
    """Each crop is to find, among all of the batch, the other one of its picture."""
    count = len(sample.pixels)
    pairs = [recoloured(sample.crops(side, 0.25), sample) for _ in range(2)]
    outputs = F.normalize(model(torch.cat(pairs)))
    cosines = (outputs @ outputs.T).fill_diagonal_(-torch.inf)
    return F.cross_entropy(cosines / TEMPERATURE, torch.arange(2 * count).roll(count))


def recoloured(pixels: Tensor, sample: Sample) -> Tensor:
    """Other brightness and contrast, a cast, and one in five grey: what colours say of a picture is
    not to be enough to find it by."""
    count = len(pixels)
    grey = pixels.mean(dim=1, keepdim=True)
    pixels = torch.where(sample.uniform(0, 1, count, 1, 1, 1) < 0.2, grey, pixels)
    centre = pixels.mean(dim=(1, 2, 3), keepdim=True)
    contrast = sample.uniform(0.6, 1.4, count, 1, 1, 1)
    brightness = sample.uniform(-50, 50, count, 1, 1, 1)
    cast = sample.uniform(0.8, 1.2, count, 3, 1, 1)
    return (((pixels - centre) * contrast + centre + brightness) * cast).clamp(0, 255)


@dataclass(frozen=True)
class Objective:
    """What an expert is trained for."""

    loss: Callable[[Expert, Sample, int], Tensor]
    outputs: int
    epochs: int


OBJECTIVES = {
    "classes": Objective(classes, outputs=10, epochs=4),
    "turns": Objective(turns, outputs=4, epochs=4),
    "instances": Objective(instances, outputs=128, epochs=4),
}


def load(file: Path, side: int) -> tuple[Tensor, Tensor]:
    """Whole pictures of labelled Parquet, as the extractor shows view 0, and their classes.

    Returns:
        uint8 [pictures, 3, side, side], and int64 [pictures].
    """

    def square(data: bytes) -> Pixels:
        image = decode(data)
        return render(image, box(None, *image.size, (1.0, 1.0), flip=False), side)

    table = pq.read_table(file, columns=["image", "label"])
    with ThreadPoolExecutor() as pool:
        squares = np.stack(list(pool.map(square, table["image"].to_pylist())))
    labels = torch.tensor(table["label"].to_pylist(), dtype=torch.int64)
    return torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous(), labels


def train(model: Expert, objective: Objective, file: Path, side: int, epochs: int) -> None:
    """Train for `epochs`, with one cycle of the learning rate."""
    pixels, labels = load(file, side)
    steps = len(labels) // BATCH_SIZE
    optimizer = torch.optim.SGD(
        model.parameters(), PEAK_LR, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, epochs * steps, pct_start=0.2, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(0)
    model.train()
    with Terminal(to_stderr=True).progress(
        "expert", epochs * steps * BATCH_SIZE, "pictures"
    ) as meter:
        for epoch in range(1, epochs + 1):
            shown = side - side // 4 if epoch <= SMALL_EPOCHS * epochs else side
            order = torch.randperm(len(labels), generator=generator)
            for places in torch.split(order[: steps * BATCH_SIZE], BATCH_SIZE):
                sample = Sample(pixels[places], labels[places], generator)
                loss = objective.loss(model, sample, shown)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                meter.advance(len(places), f"epoch {epoch}  loss {loss.item():.3f}")
            if not math.isfinite(loss.item()):
                raise SystemExit("the loss is no longer a number")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="the extraction's configuration")
    parser.add_argument("expert", choices=OBJECTIVES)
    parser.add_argument("--epochs", type=int, help="instead of its own")
    arguments = parser.parse_args()
    silence_pillow()
    keep_freed_memory()
    config: ExtractConfig = read_config(ExtractConfig, (), ["--config", arguments.config])
    teacher, objective = config.teachers[arguments.expert], OBJECTIVES[arguments.expert]
    encoder = build_timm(teacher.model, teacher.arguments, "random:0")
    side = encoder.patch_pixels * config.grids_of(arguments.expert)[0]
    torch.manual_seed(0)
    model = Expert(encoder, objective.outputs)
    epochs = arguments.epochs or objective.epochs
    train(model, objective, Path(config.images.source), side, epochs)
    weights = Path(teacher.weights)
    weights.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed: whatever is there under its name is whole.
    half = weights.with_suffix(".part")
    state = encoder.model.state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, half)
    half.replace(weights)
    load_weights(build_timm(teacher.model, teacher.arguments, None).model, str(weights))


if __name__ == "__main__":
    main()
