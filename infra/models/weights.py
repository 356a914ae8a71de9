"""Weights by path, URL or seed, and the digest of the tensors a model really holds."""

import hashlib
import pickle
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import fsspec
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from infra.redact import harmless, public_url
from schemas.errors import TeacherError, TeachonceError

PRETRAINED = "pretrained"
TAGGED = "pretrained:"
RANDOM = "random:"

_WRAPPERS = ("state_dict", "model", "teacher")
_NAMES_SHOWN = 8

StateDict = dict[str, Tensor]


def is_location(weights: str | None) -> bool:
    """Whether weights are a path or URL; else they are the library's own, or random."""
    if weights is None or weights == PRETRAINED:
        return False
    return not weights.startswith((TAGGED, RANDOM))


def refuse_tag(weights: str | None) -> None:
    """For libraries that know one set of weights a model.

    Raises:
        TeacherError: the weights are `pretrained:TAG`.
    """
    if weights is not None and weights.startswith(TAGGED):
        raise TeacherError(
            f"weights {weights!r}: only open_clip has tags; write {PRETRAINED!r}, and for timm the "
            "tag after the model's name, as in NAME.TAG"
        )


@contextmanager
def seeded(weights: str | None) -> Iterator[None]:
    """Whatever torch draws inside depends on the seed of `random:SEED` alone (else on seed 0).

    The caller's own random state is left as it was.
    """
    seed = int(weights.removeprefix(RANDOM)) if weights and weights.startswith(RANDOM) else 0
    threads = torch.get_num_threads()
    # Random values are filled in by vectors and remainders, cut where the threads are.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def load_weights(
    model: nn.Module,
    location: str,
    leave_out: Collection[str] = (),
    convert: Callable[[StateDict], StateDict] | None = None,
) -> None:
    """Load a file of safetensors, or a state dict (never unpickling code), into `model`.

    Args:
        leave_out: modules, such as the classifier, whose tensors the file may have in excess.
        convert: from the names of another publisher to the model's, tried where the names as
            they are do not cover the model.

    Raises:
        TeacherError: no such file, not weights, or weights that do not cover the model; with the
            names that are missing or left over.
    """
    state = _read(location)
    shown = public_url(location)
    fault = _fill(model, state, leave_out)
    if fault is not None and convert is not None:
        try:
            converted = convert(state)
        except TeachonceError as error:
            raise TeacherError(f"weights {shown}: {error}") from None
        # A converter meets a file that it was not made for with whatever its first line raises.
        except Exception:
            converted = state
        again = _fill(model, converted, leave_out)
        # Of two refusals the one that came closer tells what is wrong.
        fault = None if again is None else min(fault, again)
    if fault is not None:
        raise TeacherError(f"weights {shown} {fault.text}")


class _Fault(NamedTuple):
    names: int
    """How many names are missing or left over."""
    text: str


def _fill(model: nn.Module, state: StateDict, leave_out: Collection[str]) -> _Fault | None:
    wanted = model.state_dict().keys()
    missing = [name for name in wanted if name not in state]
    unexpected = [
        name for name in state if name not in wanted and name.rpartition(".")[0] not in leave_out
    ]
    fault = _Fault(
        len(missing) + len(unexpected),
        f"do not cover the model: missing {_shown(missing)}; unexpected {_shown(unexpected)}",
    )
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        return _Fault(fault.names, f"do not fit the model: {error}")
    return fault if fault.names else None


def _read(location: str) -> StateDict:
    shown = public_url(location)
    try:
        with fsspec.open(location, "rb") as file:
            if Path(shown).suffix == ".safetensors":
                return load_safetensors(file.read())
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TeacherError(f"weights {shown}: no such file") from None
    except Exception as error:
        raise TeacherError(f"weights {shown}: {_reason(error)}") from None
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        raise TeacherError(f"weights {shown}: not a state dict")
    return loaded


def _reason(error: Exception) -> str:
    # torch's own advice is to load such a file as a program; ours is not.
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return (
            "holds other objects than tensors, or is no state dict; such files are never run: save "
            "the state dict alone, or safetensors"
        )
    # Every reader has its own errors for bytes that are not weights, and they quote the URL.
    return f"not safetensors or a state dict: {harmless(str(error))}"


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
