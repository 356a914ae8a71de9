"""Weights that mean harm: never run, never half read."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from infra.models.weights import load_weights
from schemas.errors import TeacherError


class Runs:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def saved(value: object, **how: bool) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, **how)
    return sink.getvalue()


def zipped(**files: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return sink.getvalue()


def tarred(**files: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


def tensors(body: int = 16, **headers: object) -> bytes:
    head = json.dumps(headers).encode()
    return struct.pack("<Q", len(head)) + head + bytes(body)


def header(first: int, last: int, *shape: int, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [first, last]}


RUNS = pickle.dumps({"weight": Runs()}, protocol=2)
WEIGHTS = {
    "pickle.pt": RUNS,
    "pickle.bin": pickle.dumps(Runs()),
    "zip.pt": saved({"weight": Runs()}),
    "legacy.pt": saved({"weight": Runs()}, _use_new_zipfile_serialization=False),
    "module.pt": saved(nn.Linear(2, 2)),
    "tar.pt": tarred(pickle=RUNS, storages=RUNS, tensors=RUNS),
    "hand-made-zip.pt": zipped(a__data=RUNS, a__version=b"3"),
    "script.pt": zipped(**{"a__constants.pkl": RUNS, "a__data.pkl": RUNS, "a__version": b"3"}),
    "nothing.pt": b"",
    "pickle.safetensors": RUNS,
    "nothing.safetensors": b"",
    "endless-header.safetensors": struct.pack("<Q", 2**63),
    "huge-header.safetensors": struct.pack("<Q", 10**8 + 1) + b"{" + b" " * 100,
    "deep-header.safetensors": struct.pack("<Q", 50_000) + b"[" * 50_000,
    "overlap.safetensors": tensors(weight=header(0, 16, 2, 2), bias=header(8, 16, 2)),
    "gap.safetensors": tensors(weight=header(8, 24, 2, 2), body=24),
    "outside.safetensors": tensors(weight=header(0, 10**12, 2, 2)),
    "shape.safetensors": tensors(weight=header(0, 16, 2**40, 2**40)),
    "kind.safetensors": tensors(weight=header(0, 16, 2, 2, kind="EVIL")),
}


# torch warns of what it then refuses.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights__are_never_run_and_never_half_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(WEIGHTS[name])
    model = nn.Linear(2, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TeacherError, match=f"weights {path}"):
        load_weights(model, str(path))
    assert not Path("ran").exists()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
