import pytest

from schemas.errors import ConfigError
from schemas.extract_config import ExtractConfig
from schemas.strict import fields, parse
from schemas.train_config import TrainConfig

MINIMAL = {
    "cache": "c",
    "images": {"source": "photos"},
    "teachers": {"vit": {"library": "timm", "model": "vit_tiny_patch16_224"}},
}


def refusal(data: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(ExtractConfig, data, "job.yaml")
    return str(caught.value).splitlines()


def test_parse__fills_in_defaults() -> None:
    config = parse(ExtractConfig, MINIMAL, "job.yaml")
    assert (config.grids, config.views.per_image, config.codec.tokens) == ((16,), 1, "fp16")
    assert config.grids_of("vit") == (16,)


def test_parse__names_every_fault_in_one_message() -> None:
    lines = refusal(
        {
            **MINIMAL,
            "images": {},
            "views": {"per_imag": 4},
            "teachers": {"vit": {"library": "timm", "model": "m", "weights": "random:x"}},
        }
    )
    assert lines[0] == "job.yaml: 3 errors"
    assert lines[1] == "  images.source: missing; it has no default"
    assert lines[2] == "  views.per_imag: unknown key (did you mean views.per_image?)"
    assert lines[3].startswith("  teachers.vit.weights: random weights are written random:SEED")
    assert lines[3].endswith("found 'random:x'")


def test_parse__suggests_a_name_under_an_open_key() -> None:
    data = {**MINIMAL, "teachers": {"my-vit": {"library": "timm", "model": "m", "wights": "w"}}}
    assert refusal(data) == [
        "job.yaml: 1 error",
        "  teachers.my-vit.wights: unknown key (did you mean teachers.my-vit.weights?)",
    ]


def test_parse__unlike_any_name_gets_no_suggestion() -> None:
    assert refusal({**MINIMAL, "zzz": 1})[1:] == ["  zzz: unknown key"]


@pytest.mark.parametrize(
    ("key", "value"), [("count", "many"), ("count", 0), ("gpus", "all"), ("decode_threads", -1)]
)
def test_parse__a_choice_of_types_is_one_fault_under_its_own_name(key: str, value: object) -> None:
    lines = refusal({**MINIMAL, "workers": {key: value}})
    assert lines[0] == "job.yaml: 1 error"
    assert lines[1].startswith(f"  workers.{key}: ")
    assert lines[1].endswith(f"found {value!r}")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ([1], "  (whole file): "),
        ({**MINIMAL, 7: 1}, "  7: "),
        ({**MINIMAL, "grids": [16, 16]}, "  grids: a grid is named twice"),
        ({**MINIMAL, "grids": [16, 0]}, "  grids.1: "),
        ({**MINIMAL, "rows_per_shard": 96}, "  rows_per_shard: a power of two is expected"),
        ({**MINIMAL, "views": {"crop_scale": [0.9, 0.3]}}, "  views.crop_scale: a pair 0 < low"),
        ({**MINIMAL, "tolerate_bad_images": float("nan")}, "  tolerate_bad_images: "),
        ({**MINIMAL, "teachers": {"a/b": MINIMAL["teachers"]["vit"]}}, "  teachers.a/b"),
        ({**MINIMAL, "teachers": {}}, "  teachers: "),
    ],
)
def test_parse__refuses_and_names_the_key(data: object, line: str) -> None:
    assert refusal(data)[1].startswith(line)


def test_fields__of_every_configuration_are_documented_or_plain() -> None:
    """Leaves only, an open key as `*`, so that help and overrides know every dotted name."""
    names = {".".join(path) for path, _ in fields(ExtractConfig)}
    assert {"cache", "images.columns.key", "teachers.*.weights", "workers.count"} <= names
    assert not {"images", "teachers", "teachers.*"} & names
    assert "teachers.*.weight" in {".".join(path) for path, _ in fields(TrainConfig)}


def test_parse__a_mapping_that_may_be_null_names_its_own_keys() -> None:
    views = {"photometric": {"blur": 3, "solarize": 7, "hue": 1}}
    assert refusal({**MINIMAL, "views": views}) == [
        "job.yaml: 3 errors",
        "  views.photometric.blur: input should be less than or equal to 1; found 3",
        "  views.photometric.solarize: input should be less than or equal to 1; found 7",
        "  views.photometric.hue: unknown key",
    ]


def test_only__takes_several_as_a_command_line_gives_them() -> None:
    two = {"vit": {"library": "timm", "model": "m"}, "cnn": {"library": "timm", "model": "n"}}
    data = {**MINIMAL, "teachers": two}
    config = parse(ExtractConfig, {**data, "only": "cnn, vit,cnn"}, "job.yaml")
    assert config.teachers_now == ("cnn", "vit")
    assert parse(ExtractConfig, data, "job.yaml").teachers_now == ("vit", "cnn")
    assert refusal({**data, "only": "vot"}) == [
        "job.yaml: 1 error",
        "  (whole file): only: no teacher vot; there are vit, cnn",
    ]
