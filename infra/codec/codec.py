"""One set's codec: standardised tokens to the bytes of their rows, and back."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.catalog import get_checked
from infra.codec import uniform
from infra.codec.rotation import Int32s, Rotation
from infra.codec.variable import Variable
from infra.store import ObjectStore
from schemas import tables
from schemas.measured import CodecRecord
from schemas.shard import RowForm

_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Coded:
    """Rows of tokens as they are stored, and what that costs them."""

    stored: Tensor
    """Of the codec's `row_form`."""
    decoded: Tensor
    """float32 [rows, tokens, channels] in the codec's basis, as `exact`."""
    exact: Tensor
    saturated: Tensor
    """[rows]: share of values beyond the last code; of `variable`, of tokens made coarser."""


@dataclass(frozen=True)
class _OnDevice:
    rotation: Rotation | None
    variable: Variable | None


class TokenCodec:
    """A codec that is ready to be used, on any device.

    Args:
        axes: int32 [channels, channels] of its rotation, if it has one.
    """

    def __init__(self, record: CodecRecord, axes: Int32s | None = None) -> None:
        self.record, self._axes = record, axes
        self._devices: dict[torch.device, _OnDevice] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return TokenCodec, (self.record, self._axes)

    @property
    def channels(self) -> int:
        return len(self.record.tokens.mean)

    def row_form(self, tokens: int) -> RowForm:
        """What a row of so many tokens is in a shard."""
        match self.record.tokens_codec:
            case "fp16":
                return RowForm("float16", tokens, self.channels)
            case "variable":
                return RowForm("uint8", 1, self._variable(torch.device("cpu")).row_bytes(tokens))
            case name:
                size = uniform.row_bytes(tokens, self.channels, _BITS[name])
                return RowForm("uint8", 1, size)

    def encode(self, tokens: Tensor) -> Coded:
        """Rows [rows, tokens, channels], float32, standardised and finite in float16, as they are
        stored. The same bytes on every device."""
        ready = self._on(tokens.device)
        count, name = tokens.shape[1], self.record.tokens_codec
        if name == "fp16":
            stored = tokens.half()
            return Coded(stored, stored.float(), tokens, torch.zeros(len(tokens)))
        rotated = tokens if ready.rotation is None else ready.rotation.forward(tokens)
        exact = rotated.float()
        if name == "variable":
            assert ready.variable is not None
            stored, coarse = ready.variable.encode(rotated.double())
            share = coarse / count
        else:
            clip = name == "int4" and ready.rotation is not None
            stored, beyond = uniform.encode(exact, _BITS[name], clip)
            share = beyond / exact[0].numel()
        return Coded(stored, self.rotated(stored, count), exact, share)

    def rotated(self, stored: Tensor, tokens: int) -> Tensor:
        """float32 [rows, tokens, channels] in the codec's basis: the same bits on every device."""
        name = self.record.tokens_codec
        if name == "fp16":
            return stored.float()
        if name == "variable":
            return self._variable(stored.device).decode(stored, tokens)
        return uniform.decode(stored, tokens, self.channels, _BITS[name])

    def decode(self, stored: Tensor, tokens: int) -> Tensor:
        """float32 [rows, tokens, channels], standardised."""
        ready = self._on(stored.device)
        values = self.rotated(stored, tokens)
        return values if ready.rotation is None else ready.rotation.back(values)

    def codes(self, stored: Tensor, tokens: int) -> tuple[Tensor, Tensor] | None:
        """Codes and scales as `uniform.parts` gives them, where they are all that a value is made
        of: in int8 and int4 without a rotation."""
        if self.record.tokens_codec not in _BITS or self._axes is not None:
            return None
        return uniform.parts(stored, tokens, self.channels, _BITS[self.record.tokens_codec])

    def _variable(self, device: torch.device) -> Variable:
        variable = self._on(device).variable
        assert variable is not None
        return variable

    def _on(self, device: torch.device) -> _OnDevice:
        if device not in self._devices:
            rotation = variable = None
            if self._axes is not None:
                rotation = Rotation.of(self._axes, device)
            record = self.record
            if record.bits is not None and record.spreads and record.frequencies:
                variable = Variable.of(record.bits, record.spreads, record.frequencies, device)
            self._devices[device] = _OnDevice(rotation, variable)
        return self._devices[device]


def open_codec(store: ObjectStore, record: CodecRecord) -> TokenCodec:
    """A set's codec, its axes read from the cache.

    Raises:
        DamageError: they are missing or damaged.
    """
    if record.axes is None:
        return TokenCodec(record)
    width = len(record.tokens.mean)
    data = get_checked(store, record.axes)
    table = tables.from_parquet(data, record.axes.key, tables.axes_schema(width))
    axes = np.asarray(table[record.rotation].combine_chunks().flatten()).reshape(width, width)
    return TokenCodec(record, axes)
