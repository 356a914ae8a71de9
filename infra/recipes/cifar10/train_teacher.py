"""Train the teacher that an extraction names, as a classifier, and keep its backbone.

python infra/recipes/cifar10/train_teacher.py infra/recipes/cifar10/extract.yaml

Architecture, size of the pictures and where the weights go are read from the extraction's own
configuration, so that what is trained is what will be loaded. Beside images.source, a val.parquet
is expected.
"""

import argparse
import os

# Idle threads that spin take the core that the others need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.command import read_config
from infra.devices import autocast
from infra.models.encoder import Encoder
from infra.models.timm_encoder import build_timm
from infra.models.weights import load_weights
from infra.pixels.decode import silence_pillow
from infra.recipes.cifar10.labelled_tensors import load
from infra.terminal import Terminal
from schemas.extract_config import ExtractConfig

BATCH_SIZE = 256
PEAK_LR = 0.2
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
SMALLEST_CROP = 0.5
"""Share of a picture's area; the crops of the extraction are then nothing new to the teacher."""
SMALL_EPOCHS = 0.75
"""Share of the epochs that see pictures of three quarters of the side: almost twice as fast, and
the last ones at full size make up for it."""
PRECISION = "bfloat16"


class Classifier(nn.Module):
    """The encoder's global vector, and a linear layer that is thrown away afterwards."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        if encoder.cls_width is None:
            raise SystemExit("a classifier needs a teacher with a global vector")
        self.encoder = encoder
        self.backbone = encoder.model.requires_grad_(True)
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.classify = nn.Linear(encoder.cls_width, classes)
        mean, std = (
            torch.tensor(values).reshape(-1, 1, 1)
            for values in (encoder.pixel_mean, encoder.pixel_std)
        )
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [batch, classes] of float pixels [batch, 3, side, side] in 0..255."""
        squares = (pixels / 255 - self.mean) / self.std
        with autocast("cpu", PRECISION):
            cls, _ = self.encoder(squares.contiguous(memory_format=torch.channels_last))
            logits: Tensor = self.classify(cls)
        return logits.float()


def crops(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A random square crop of each picture at `side` pixels, half of them mirrored."""
    count = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    zoom = uniform(SMALLEST_CROP, 1.0).sqrt()
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    boxes = torch.zeros(count, 2, 3)
    boxes[:, 0, 0], boxes[:, 1, 1] = zoom * mirror, zoom
    boxes[:, 0, 2], boxes[:, 1, 2] = (uniform(-1, 1) * (1 - zoom) for _ in range(2))
    places = F.affine_grid(boxes, [count, 3, side, side], align_corners=False)
    return F.grid_sample(pixels.float(), places, padding_mode="border", align_corners=False)


@torch.inference_mode()
def accuracy(model: Classifier, pixels: Tensor, labels: Tensor) -> float:
    model.eval()
    found = torch.cat(
        [model(batch.float()).argmax(dim=1) for batch in torch.split(pixels, BATCH_SIZE)]
    )
    return (found == labels).double().mean().item()


def train(model: Classifier, data: Path, side: int, epochs: int, seed: int) -> None:
    """Train for `epochs`, one cycle of the learning rate; print each epoch's accuracy."""
    terminal = Terminal()
    pixels, labels = load(data, side)
    val = load(data.with_name("val.parquet"), side)
    steps = len(labels) // BATCH_SIZE
    optimizer = torch.optim.SGD(
        model.parameters(), PEAK_LR, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, epochs * steps, pct_start=0.2, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        model.train()
        small = epoch <= SMALL_EPOCHS * epochs
        shown = side - side // 4 if small else side
        order = torch.randperm(len(labels), generator=generator)
        with terminal.progress(f"epoch {epoch}", steps * BATCH_SIZE, "pictures") as meter:
            for places in torch.split(order[: steps * BATCH_SIZE], BATCH_SIZE):
                logits = model(crops(pixels[places], shown, generator))
                loss = F.cross_entropy(logits, labels[places], label_smoothing=LABEL_SMOOTHING)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                meter.advance(len(places), f"loss {loss.item():.3f}")
        if not math.isfinite(loss.item()):
            raise SystemExit("the loss is no longer a number")
        terminal.say(f"epoch {epoch:<6} val accuracy {accuracy(model, *val):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="the extraction's configuration, with one teacher")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    silence_pillow()
    config: ExtractConfig = read_config(ExtractConfig, (), ["--config", arguments.config])
    ((name, teacher),) = config.teachers.items()
    encoder = build_timm(teacher.model, teacher.arguments, f"random:{arguments.seed}")
    side = encoder.patch_pixels * config.grids_of(name)[0]
    torch.manual_seed(arguments.seed)
    model = Classifier(encoder, classes=10)
    train(model, Path(config.images.source), side, arguments.epochs, arguments.seed)
    weights = Path(teacher.weights)
    weights.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed: the next step of the chain takes a file that is there for whole.
    half = weights.with_suffix(".part")
    state = encoder.model.state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, half)
    half.replace(weights)
    load_weights(build_timm(teacher.model, teacher.arguments, None).model, str(weights))
    Terminal().say(f"teacher      {weights} after {time.monotonic() - started:,.0f} s")


if __name__ == "__main__":
    main()
