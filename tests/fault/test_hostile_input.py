"""Names, keys and configurations that mean harm: only names, or refused with a reason."""

import json
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.catalog import Catalog
from infra.command import read_config
from infra.redact import printable
from infra.sources import open_source
from infra.store import LocalStore
from infra.yaml_file import MAX_BYTES, parse_yaml, read_yaml
from schemas.errors import ConfigError
from schemas.extract_config import Columns, ExtractConfig
from schemas.limits import Limits
from tests.builders import photograph_bytes
from tests.caches import Quiet, config_of, contents, extract_here, pictures

NAMES = (
    "new\nline.jpg",
    "\x1b[2J\x1b[31mred.jpg",
    "right\u202egnp.jpg",
    "bell\x07 \x7f\x9b.jpg",
    "{} %s [bold] $(ls).jpg",
    "'quoted\".jpg",
    "..jpg",
    "-rf.jpg",
    " .jpg",
    "日本.jpg",
)


@pytest.mark.parametrize("name", NAMES)
def test_printable__is_one_plain_line(name: str) -> None:
    told = printable(name)
    assert told.isprintable()
    assert (told == name) == name.isprintable()


def test_extract__names_are_names_whatever_is_in_them(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for seed, name in enumerate(NAMES):
        (source / name).write_bytes(photograph_bytes(seed))
    (source / "bad\n\x1b[2Jwarning: all is well.jpg").write_bytes(b"no picture")
    told = Quiet()
    config = config_of(tmp_path / "cache", source)
    result = extract_here(config, told).result
    assert (result["ok"], result["bad"]) == (len(NAMES), 1)
    assert all(line.isprintable() for line in told.lines)
    assert "bad\\n\\x1b[2Jwarning: all is well.jpg: not a picture" in "".join(told.lines)
    assert json.loads(json.dumps(result)) == result
    rows = contents(LocalStore(tmp_path / "cache"))["commits/plan/000000.json"]
    assert set(rows["key"].to_pylist()) > set(NAMES)
    assert extract_here(config).result["teacher_forwards"] == 0


def test_parquet__text_that_is_no_text(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        1, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")
    )
    pq.write_table(pa.table({"image": [b"x"], "path": broken}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="column 'path' holds text that is not UTF-8"):
        list(open_source(str(tmp_path / "a.parquet"), Columns()).entries())


LAUGHS = "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: !!python/object/apply:os.mkdir [ran]", "python/object/apply"),
        ("a: !!python/name:os.mkdir ''", "python/name"),
        ("a: !mine {x: 1}", "could not determine a constructor"),
        ("a: 1\nb: 2\na: 3\n", "the key a stands at line 1 and again at line 3"),
        ("b: {c: {d: 1, 'd': 2}}", "the key d stands at line 1 and again at line 1"),
        ('"x\\e[31m": 1\n"x\\e[31m": 2', r"the key x\\x1b\[31m stands at line 1"),
        ("a0: &a0 [x]\n" + LAUGHS, "more than 10000 values once its aliases are written out"),
        ("a: &a [*a]", "holds an alias of itself"),
        ("a: &a {b: {c: *a}}", "holds an alias of itself"),
        ("a: " + "[" * 2000, "nested too deeply"),
        ("a: " + "9" * 10_000, "not YAML: Exceeds the limit"),
        ("a: 2024-13-45", "not YAML: month must be in 1..12"),
        ("a: !!timestamp x", "not YAML"),
        ("{[1]: 2}", "unhashable key"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: \x1b[2J", "special characters are not allowed"),
        ("source: 'https://me:hunter2@h/x?sig=s1gn4ture", "not YAML"),
    ],
)
def test_yaml__is_refused(text: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found) as caught:
        parse_yaml(text, "--config job.yaml")
    assert str(caught.value).startswith("--config job.yaml: ")
    assert not Path("ran").exists()
    assert "hunter2" not in str(caught.value)
    assert "s1gn4ture" not in str(caught.value)


def test_yaml__aliases_and_merges_that_are_meant_stay() -> None:
    text = "base: &base {library: timm, grids: [16]}\na: {<<: *base, model: x}\nb: *base\n"
    assert parse_yaml(text, "f")["a"] == {"library": "timm", "grids": [16], "model": "x"}
    assert parse_yaml("", "f") is None


def test_yaml_file__encoding_size_and_absence(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    for data, found in (
        (b"\xff\xfea\0", "byte 0 is not UTF-8"),
        (b"a: \xe9", "byte 3 is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), f"is larger than {MAX_BYTES} bytes"),
        (b"- 1", "a mapping of keys is expected"),
        (b"", "a mapping of keys is expected"),
    ):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=found):
            read_yaml(str(path), "f")
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9")
    assert read_yaml(str(path), "f") == {"a": "é"}
    for other, found in ((tmp_path, "directory"), (tmp_path / "no", "No such"), ("a\0b", "null")):
        with pytest.raises(ConfigError, match=found):
            read_yaml(str(other), "f")


def test_config__a_key_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("cache: a\nimages: {source: x}\ncache: b\n")
    with pytest.raises(ConfigError, match="the key cache stands at line 1 and again at line 3"):
        read_config(ExtractConfig, (), ["--config", str(path)])


def test_limits__are_those_of_the_plan_wherever_a_picture_is_read(tmp_path: Path) -> None:
    source = pictures(tmp_path / "photos", 3)
    (source / "large.jpg").write_bytes(photograph_bytes(9, 200, 200))
    images = {"source": str(source), "max_pixels": 30_000}
    config = config_of(tmp_path / "cache", source, images=images)
    assert extract_here(config).result["bad"] == 1
    commit = Catalog(LocalStore(tmp_path / "cache")).generations()[0]
    assert commit.limits == Limits(max_pixels=30_000)
    raised = {"images": {**images, "max_pixels": 40_000}, "retry_bad": True}
    again = extract_here(config_of(tmp_path / "cache", source, **raised))
    assert (again.result["ok"], again.result["bad"]) == (4, 0)
