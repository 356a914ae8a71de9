"""Which libraries a teacher may come from: one hook each, imported when it is called.

A hook takes the configured model, arguments and weights and returns an `Encoder`. One more library
is one more line here, and its name in `schemas.extract_config.Teacher`.
"""

from infra.command import load
from infra.models.encoder import Encoder
from schemas.errors import TeacherError
from schemas.extract_config import Teacher

HOOKS = {
    "timm": "infra.models.timm_encoder:build_timm",
    "open_clip": "infra.models.open_clip_encoder:build_open_clip",
    "teachonce": "infra.models.folder:build_trained",
    "python": "infra.models.python_encoder:build_python",
}


def build_encoder(teacher: Teacher) -> Encoder:
    """A configured teacher on the CPU, frozen, in evaluation mode.

    Raises:
        TeacherError: no such library or model, wrong arguments, or weights that do not fit.
        ConfigError, DamageError: what `weights` names for teachonce is no model folder, or damaged.
    """
    if teacher.library not in HOOKS:
        known = ", ".join(HOOKS)
        raise TeacherError(f"library {teacher.library!r} is not known; there are {known}")
    try:
        hook = load(HOOKS[teacher.library])
        encoder: Encoder = hook(teacher.model, dict(teacher.arguments), teacher.weights)
    except ModuleNotFoundError as error:
        raise TeacherError(
            f"library {teacher.library}: {error}; pip install 'teachonce[pipeline]'"
        ) from None
    # Whatever a hook did after the encoder was made, a teacher neither learns nor draws.
    encoder.model.eval().requires_grad_(False)
    return encoder
