"""Encoders from a function of the user's own, named `module:function`."""

import os
import sys
from typing import Any

from infra.command import load
from infra.models.encoder import Encoder
from infra.models.torchvision_shim import make_torchvision_importable
from infra.models.weights import is_location, load_weights, refuse_tag, seeded
from schemas.errors import TeacherError


def build_python(function: str, arguments: dict[str, Any], weights: str) -> Encoder:
    """What `function(**arguments)` returns.

    Args:
        function: `module:function`; modules of the current directory are found first.
        weights: `pretrained` for the encoder as the function returns it, a path or URL to load
            into its model, or `random:SEED`, which seeds torch before the call.

    Raises:
        TeacherError: no such function, whatever it raises, or no Encoder came back.
    """
    refuse_tag(weights)
    here = os.getcwd()
    # `python -m` and Ray's workers have it there; a console script has not.
    if here not in sys.path:
        sys.path.insert(0, here)
    make_torchvision_importable()
    try:
        with seeded(weights):
            encoder = load(function)(**arguments)
    # A program of somebody else's may end in any way, and must not end ours.
    except (Exception, SystemExit) as error:
        raise TeacherError(
            f"python teacher {function}: {type(error).__name__}: {error}; modules are looked for "
            f"in {here} and where Python finds packages"
        ) from error
    if not isinstance(encoder, Encoder):
        raise TeacherError(
            f"python teacher {function}: returned a {type(encoder).__name__}; "
            "return an infra.models.encoder.Encoder"
        )
    if is_location(weights):
        load_weights(encoder.model, weights)
    return encoder
