"""Which device and precision a process uses, each with its reason."""

from typing import NamedTuple

import torch

from schemas.errors import ConfigError


class Choice(NamedTuple):
    """A decision that was made automatically, and why."""

    value: str
    reason: str


def pick_device() -> Choice:
    if torch.cuda.is_available():
        return Choice("cuda", torch.cuda.get_device_name())
    return Choice("cpu", "torch sees no GPU")


def pick_precision(asked: str, device: str) -> Choice:
    """Resolve `auto`; refuse a precision that the device lacks."""
    has_bfloat16 = device == "cpu" or torch.cuda.is_bf16_supported()
    if asked == "bfloat16" and not has_bfloat16:
        raise ConfigError(f"precision bfloat16: {device} does not support it; use float32")
    if asked != "auto":
        return Choice(asked, "as configured")
    if device == "cpu":
        return Choice("float32", "on a CPU results then repeat to the bit")
    return (
        Choice("bfloat16", "the GPU supports it")
        if has_bfloat16
        else Choice("float32", "the GPU lacks bfloat16")
    )


def autocast(device: str, precision: str) -> torch.autocast:
    """The context in which a model's forward runs."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return torch.autocast(device, dtype=dtype[precision], enabled=precision != "float32")


def synchronise(device: str) -> None:
    """Wait for what the device was asked to do, so that a clock can be read."""
    if device == "cuda":
        torch.cuda.synchronize()
