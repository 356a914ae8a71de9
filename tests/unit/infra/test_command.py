import json
from pathlib import Path

import pytest

from infra.command import Command, Outcome, read_config, run_command, usage
from schemas.errors import ConfigError
from schemas.extract_config import ExtractConfig
from schemas.options import BenchOptions, VerifyOptions
from schemas.train_config import TrainConfig

JOB = """
cache: c
images: {source: photos, columns: {key: file}}
views: {per_image: 2}
teachers:
  my-vit: {library: timm, model: vit_tiny_patch16_224}
  cnn: {library: timm, model: resnet18, arguments: {in_chans: 3}}
"""


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return str(path)


def read(job: str, *words: str) -> ExtractConfig:
    return read_config(ExtractConfig, (), ["--config", job, *words])


def test_read_config__words_override_the_file_whatever_their_order(job: str) -> None:
    config = read(job)
    assert (config.views.per_image, config.images.columns.key) == (2, "file")
    config = read_config(ExtractConfig, (), ["--views.per-image", "4", "--config", job])
    assert config.views.per_image == 4
    assert config.images.columns.key == "file"


@pytest.mark.parametrize(
    "words", [("--views.crop-scale", "[0.5, 1]"), ("--views.crop_scale=[0.5, 1]",)]
)
def test_read_config__both_spellings(job: str, words: tuple[str, ...]) -> None:
    assert read(job, *words).views.crop_scale == (0.5, 1.0)


def test_read_config__an_open_name_stays_as_it_is_written(job: str) -> None:
    config = read(
        job,
        *("--teachers.my-vit.weights", "random:7"),
        *("--teachers.my_vit.library=timm", "--teachers.my_vit.model=resnet18"),
        *("--teachers.new-one.library=timm", "--teachers.new-one.model=resnet34"),
        *("--teachers.cnn.arguments.out_indices", "[1]"),
    )
    assert list(config.teachers) == ["my-vit", "cnn", "my_vit", "new-one"]
    assert config.teachers["my-vit"].weights == "random:7"
    assert config.teachers["my-vit"].model == "vit_tiny_patch16_224"
    assert config.teachers["cnn"].arguments == {"in_chans": 3, "out_indices": [1]}


def test_read_config__an_open_name_where_the_file_has_none() -> None:
    words = ["--cache=c", "--student.model=timm:test_vit", "--out=o", "--teachers.pe-core.weight=2"]
    config = read_config(TrainConfig, (), words)
    assert config.teachers["pe-core"].weight == 2


@pytest.mark.parametrize("text", ["007", "1e5", "true", "2024-01-01", "[x", "a: b", "~"])
def test_read_config__text_stays_as_it_is_written(job: str, text: str) -> None:
    assert read(job, "--cache", text).cache == text
    assert read(job, "--teachers.my-vit.model", text).teachers["my-vit"].model == text


def test_read_config__null_unsets_an_optional_text() -> None:
    words = ["extract", "--images", "photos", "--images", "null"]
    assert read_config(BenchOptions, ("what",), words).images is None


def test_read_config__positional_words() -> None:
    assert read_config(VerifyOptions, ("cache",), ["c"]).cache == "c"
    with pytest.raises(ConfigError, match="'d' is one word too many"):
        read_config(VerifyOptions, ("cache",), ["c", "d"])


def test_read_config__a_name_without_value() -> None:
    with pytest.raises(ConfigError, match="--cache needs a value"):
        read_config(VerifyOptions, (), ["--cache"])


def test_read_config__faults_of_file_and_words_come_together(job: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(job, "--views.per-imge", "3", "--workers.batch-size=0", "--teachers.my-vit.wights=x")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{job}: 3 errors"
    assert "  views.per_imge: unknown key (did you mean views.per_image?)" in lines
    assert "  teachers.my-vit.wights: unknown key (did you mean teachers.my-vit.weights?)" in lines
    assert any(
        line.startswith("  workers.batch_size: ") and line.endswith("found 0") for line in lines
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "No such file or directory"),
        ("a: [1", "not YAML"),
        ("\x00", "not YAML"),
        ("- 1\n- 2\n", "a mapping of keys is expected"),
        ("", "a mapping of keys is expected"),
        ("cache: !!python/object/apply:os.mkdir [ran]", "not YAML"),
    ],
)
def test_read_config__a_file_that_is_no_configuration(
    content: str | None, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=found) as caught:
        read(str(path))
    assert str(caught.value).startswith(f"--config {path}: ")
    assert not Path("ran").exists()


def test_read_config__bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="not YAML"):
        read(str(tmp_path / "job.yaml"))


def test_usage__shows_every_key_with_default_and_meaning() -> None:
    text = usage("extract", Command("m:f", "m:c", "Does it."), ExtractConfig)
    assert "--teachers.NAME.weights  [default pretrained]" in text
    assert "--views.per-image  [default 1]" in text
    assert "--images.source  [required]" in text
    assert "View 0 is the whole image" in text


def succeed(config: VerifyOptions, terminal: object) -> Outcome:
    terminal.say("for people")
    return Outcome({"rows": 3}, status=1)


def interrupt(config: VerifyOptions, terminal: object) -> Outcome:
    raise KeyboardInterrupt


def run(function: str, *words: str) -> int:
    command = Command(f"{__name__}:{function}", "schemas.options:VerifyOptions", "", ("cache",))
    return run_command("verify", command, words)


def test_run_command__json_is_all_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("succeed", "c", "--json") == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"rows": 3}
    assert err == "for people\n"


def test_run_command__without_json_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("succeed", "c") == 1
    assert capsys.readouterr() == ("for people\n", "")


def test_run_command__bad_usage_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("succeed", "--json", "--cahce", "c") == 2
    out, err = capsys.readouterr()
    assert "for people" not in err
    assert "cahce: unknown key (did you mean cache?)" in err
    assert json.loads(out)["error"] in err


def test_run_command__interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("interrupt", "c") == 130
    assert "what was committed stays" in capsys.readouterr().err
