"""Weights by path or URL, and the digest of the tensors a model really holds."""

import hashlib
import pickle
from collections.abc import Collection
from pathlib import Path

import fsspec
import torch
from safetensors.torch import load as load_safetensors
from torch import nn

from schemas.errors import TeacherError

_WRAPPERS = ("state_dict", "model", "teacher")
_NAMES_SHOWN = 8


def load_weights(model: nn.Module, location: str, leave_out: Collection[str] = ()) -> None:
    """Load a file of safetensors, or a state dict (never unpickling code), into `model`.

    Args:
        leave_out: modules, such as the classifier, whose tensors the file may have in excess.

    Raises:
        TeacherError: no such file, not weights, or weights that do not cover the model; with the
            names that are missing or left over.
    """
    state = _read(location)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
        unexpected = [name for name in unexpected if name.rpartition(".")[0] not in leave_out]
    except RuntimeError as error:
        raise TeacherError(f"weights {location} do not fit the model: {error}") from None
    if missing or unexpected:
        raise TeacherError(
            f"weights {location} do not cover the model: "
            f"missing {_shown(missing)}; unexpected {_shown(unexpected)}"
        )


def _read(location: str) -> dict[str, torch.Tensor]:
    try:
        with fsspec.open(location, "rb") as file:
            if Path(location).suffix == ".safetensors":
                return load_safetensors(file.read())
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TeacherError(f"weights {location}: no such file") from None
    # torch's own advice is to load such a file as a program; ours is not.
    except pickle.UnpicklingError:
        raise TeacherError(
            f"weights {location}: holds other objects than tensors, or is no state dict; "
            "such files are never run: save the state dict alone, or safetensors"
        ) from None
    # Every reader has its own errors for bytes that are not weights.
    except Exception as error:
        raise TeacherError(
            f"weights {location}: not safetensors or a state dict: {error}"
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(
        isinstance(value, torch.Tensor) for value in loaded.values()
    ):
        raise TeacherError(f"weights {location}: not a state dict")
    return loaded


def tensors_digest(model: nn.Module) -> str:
    """sha256 over name, type, shape and bytes of every parameter and buffer, sorted by name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return (", ".join(names[:_NAMES_SHOWN]) or "none") + more
