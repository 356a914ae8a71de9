"""The identity of a teacher: sha256 of whatever makes a feature's value, and of nothing else."""

import hashlib
import json

FINGERPRINT_DIGITS = 12
"""Hex digits of a fingerprint in a path."""

VALUE_FIELDS = (
    "library",
    "model",
    "arguments_json",
    "tensors_sha256",
    "pixel_recipe",
    "pixel_mean",
    "pixel_std",
    "precision",
    "patch_pixels",
    "patch_width",
    "cls_width",
    "cls_kind",
    "pixels_by_grid",
)
"""The fields of a TeacherRecord that are hashed; library versions and device are not."""


def fingerprint(parts: dict[str, object]) -> str:
    """sha256 in hex of the value fields as JSON with sorted keys."""
    canonical = json.dumps({name: parts[name] for name in VALUE_FIELDS}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
