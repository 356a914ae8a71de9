"""Lets timm be imported beside a CPU build of torch.

PyPI's torchvision is a CUDA build; beside a CPU-only torch its compiled part cannot load, and
`import torchvision` fails when it registers fakes for operators that were never defined. Defining
the two schemas first is enough for all that timm and open_clip use.
"""

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []


def make_torchvision_importable() -> None:
    """Does nothing on a CUDA torch, or where torchvision's own operators load."""
    spec = importlib.util.find_spec("torchvision")
    done = _libraries or "torchvision" in sys.modules
    if torch.version.cuda or done or spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            library.define(schema)  # type: ignore[no-untyped-call]
        _libraries.append(library)
