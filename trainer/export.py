"""`teachonce export`: a finished student as one file that timm or EUPE's own code loads.

What was written is read back by timm, EUPE's names through timm's own converter, and must say of
random pictures what the student says, to the bit. Only then does the file take its place.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: the packages stand beside this folder, not in it
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.cli import main

    sys.exit(main(["export", *sys.argv[1:]]))

import inspect
import io
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from infra.command import Outcome
from infra.durable import make_folders, sync_folder, write_through
from infra.models.encoder import Encoder
from infra.models.folder import ModelRecord, open_model, read_record
from infra.models.timm_encoder import build_timm
from infra.terminal import Terminal, human_bytes
from schemas.errors import ConfigError, DamageError, TeacherError
from schemas.options import ExportOptions
from trainer.eupe_names import HUB_ENTRIES, eupe_state

PICTURES = 2


@torch.inference_mode()
def run(config: ExportOptions, terminal: Terminal) -> Outcome:
    """Write one student as a file for others.

    Raises:
        ConfigError: no such student, EUPE has no such model, or the file cannot be written.
        DamageError: the student is not what its record says, or what was read back is another.
        TeacherError: the student cannot be opened, or gives NaN.
    """
    folder, out = Path(config.student).expanduser(), Path(config.out).expanduser().absolute()
    record = read_record(folder)
    architecture = record.library_model.partition(".")[0]
    if config.to == "eupe" and architecture not in HUB_ENTRIES:
        raise ConfigError(
            f"student {folder}: EUPE has no {architecture}; it has {', '.join(HUB_ENTRIES)}. Use "
            "--to timm"
        )
    encoder, _ = open_model(folder)
    side = encoder.native_pixels
    pictures = torch.randn(PICTURES, 3, side, side, generator=torch.Generator().manual_seed(0))
    if not all(part.isfinite().all() for part in _features(encoder, pictures)):
        raise TeacherError(f"student {folder}: gives NaN or infinity for a picture; train it anew")
    if config.to == "eupe":
        state = eupe_state(encoder.model)
        size = _write(out, state, lambda file: _check_eupe(file, encoder, record, pictures))
        how = _eupe_call(architecture, out)
    else:
        state = encoder.model.state_dict()
        arguments = _timm_arguments(encoder, record)
        size = _write(out, state, lambda file: _check_timm(file, encoder, arguments, pictures))
        words = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        how = f"timm.create_model({words}, checkpoint_path={str(out)!r})"
    terminal.say(f"{out}  {len(state)} tensors, {human_bytes(size)}; read back, and the same")
    terminal.say(f"to load it: {how}")
    return Outcome(
        {
            "out": str(out),
            "to": config.to,
            "tensors": len(state),
            "bytes": size,
            "model": record.library_model,
        }
    )


def _write(out: Path, state: dict[str, Tensor], check: Callable[[Path], None]) -> int:
    """Write a file beside its place and, if `check` raises nothing, put it there; its bytes."""
    if out.suffix == ".safetensors":
        data = bytes(to_safetensors({name: value.contiguous() for name, value in state.items()}))
    else:
        sink = io.BytesIO()
        torch.save(dict(state), sink)
        data = sink.getvalue()
    try:
        make_folders(out.parent)
        with TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
            written = Path(folder) / out.name
            write_through(written, data)
            check(written)
            written.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise ConfigError(f"out {out}: cannot be written ({error.strerror})") from None
    return len(data)


def _check_eupe(file: Path, encoder: Encoder, record: ModelRecord, pictures: Tensor) -> None:
    """Raises ConfigError if the student is not EUPE's network with the tensors in the file."""
    name = record.library_model.partition(".")[0]
    reason = "it says something else of a picture"
    try:
        theirs = build_timm(name, {}, str(file))
        same = all(map(torch.equal, _features(theirs, pictures), _features(encoder, pictures)))
        if (theirs.pixel_mean, theirs.pixel_std) != (encoder.pixel_mean, encoder.pixel_std):
            same, reason = False, "its pictures are normalised otherwise"
    except TeacherError as error:
        same, reason = False, str(error)
    if not same:
        raise ConfigError(
            f"export to eupe: {record.library_model} with arguments {record.arguments} is not "
            f"EUPE's {HUB_ENTRIES[name]}: {reason}. Use --to timm"
        )


def _check_timm(file: Path, encoder: Encoder, arguments: dict[str, Any], pictures: Tensor) -> None:
    """Raises DamageError if timm's model of these arguments and this file is not the student."""
    import timm

    mine: Any = encoder.model
    theirs: Any = timm.create_model(**arguments, checkpoint_path=str(file)).eval()
    if not (
        torch.equal(theirs.forward_features(pictures), mine.forward_features(pictures))
        and torch.equal(theirs(pictures), mine(pictures))
    ):
        raise DamageError(
            f"export to timm: what was written, read back into timm's model of {arguments}, says "
            "something else of a picture than the student; nothing was put in place"
        )


def _eupe_call(architecture: str, out: Path) -> str:
    """Python that loads a file of EUPE's names, with what nobody says where it goes wrong."""
    if out.suffix == ".safetensors":  # which EUPE's own code does not read
        overlay = {"file": str(out)}
        words = f"{architecture!r}, num_classes=0, pretrained=True"
        return f"timm.create_model({words}, pretrained_cfg_overlay={overlay})"
    # EUPE's ViT-T stays random unless `pretrained` is given.
    words = f"{HUB_ENTRIES[architecture]!r}, source='local', pretrained=True, weights={str(out)!r}"
    return (
        f"torch.hub.load(CHECKOUT_OF_EUPE, {words}); torch.hub keeps one file of each name, so "
        "give every student its own"
    )


def _timm_arguments(encoder: Encoder, record: ModelRecord) -> dict[str, Any]:
    """Of `timm.create_model`: the record's, and what a model of ours is built with besides."""
    arguments = {
        "model_name": record.library_model,
        "num_classes": encoder.model.num_classes,
        **record.arguments,
    }
    if "dynamic_img_size" in inspect.signature(type(encoder.model).__init__).parameters:
        arguments.setdefault("dynamic_img_size", True)
    return arguments


def _features(encoder: Encoder, pictures: Tensor) -> list[Tensor]:
    return [part for part in encoder(pictures) if part is not None]
