import pytest

from schemas.fingerprint import VALUE_FIELDS, fingerprint
from schemas.records import TeacherRecord

RECORD = TeacherRecord(
    fingerprint="",
    library="timm",
    model="vit_tiny_patch16_224",
    arguments_json="{}",
    tensors_sha256="00",
    pixel_recipe=1,
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.25, 0.25, 0.25),
    precision="float32",
    patch_pixels=16,
    patch_width=192,
    cls_width=192,
    cls_kind="class_token",
    pixels_by_grid=((16, 250),),
    native_pixels=224,
    weights="random:0",
    versions={"torch": "1"},
)
CHANGES: dict[str, object] = {
    "library": "open_clip",
    "model": "resnet18",
    "arguments_json": '{"depth":2}',
    "tensors_sha256": "01",
    "pixel_recipe": 2,
    "pixel_mean": (0.5, 0.5, 0.25),
    "pixel_std": (0.25, 0.25, 0.5),
    "precision": "bfloat16",
    "patch_pixels": 14,
    "patch_width": 384,
    "cls_width": None,
    "cls_kind": "mean",
    "pixels_by_grid": ((16, 250), (24, 380)),
}
NOT_VALUES: dict[str, object] = {
    "weights": "w.safetensors",
    "versions": {"device": "cuda"},
    "fingerprint": "f",
    "native_pixels": 448,
}


def of(record: TeacherRecord) -> str:
    return fingerprint(record.model_dump())


@pytest.mark.parametrize("field", VALUE_FIELDS)
def test_fingerprint__changes_with_each_field_that_makes_a_value(field: str) -> None:
    assert of(RECORD.model_copy(update={field: CHANGES[field]})) != of(RECORD)


@pytest.mark.parametrize("field", NOT_VALUES)
def test_fingerprint__does_not_change_with_what_makes_no_value(field: str) -> None:
    assert of(RECORD.model_copy(update={field: NOT_VALUES[field]})) == of(RECORD)


def test_fingerprint__every_field_of_the_record_is_one_or_the_other() -> None:
    assert set(TeacherRecord.model_fields) == set(VALUE_FIELDS) | set(NOT_VALUES)


def test_fingerprint__golden() -> None:
    assert of(RECORD) == "4ec6db05df1d5dd3267efcf7bd59a0b4ed98b3c29d558fc0d118bc25a8ee9fdb"


def test_fingerprint__is_the_same_after_storing() -> None:
    assert of(TeacherRecord.model_validate_json(RECORD.model_dump_json())) == of(RECORD)
