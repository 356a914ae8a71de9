"""Names, links, URLs, configurations and weights that mean harm: each refused with its reason, and
nothing of a secret is told or kept."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import nn

from infra.models.weights import load_weights
from infra.redact import harmless, printable, public_url
from infra.sources import open_source
from infra.store import LocalStore
from infra.yaml_file import MAX_BYTES, parse_yaml, read_yaml
from pipeline.extract import extract
from schemas.errors import ConfigError, SourceError, TeacherError
from schemas.extract_config import Columns
from tests.builders import photograph_bytes
from tests.caches import Quiet, config_of, contents, local_pool, pictures

SECRETS = ("hunter2", "AKIA0EXAMPLE", "s1gn4ture")
SIGNED = "https://me:hunter2@host:8443/w.bin?X-Amz-Credential=AKIA0EXAMPLE&sig=s1gn4ture#top"
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


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SIGNED, "https://host:8443/w.bin"),
        ("https://me:hun/ter2@host/x.bin", "https://host/x.bin"),
        ("https://host/x.bin?s1gn4ture", "https://host/x.bin"),
        ("s3://AKIA0EXAMPLE:hunter2@bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("abfs://c@account.dfs/x?sv=1&sig=s1gn4ture", "abfs://account.dfs/x"),
        ("simplecache::https://me:hunter2@h/x?sig=s1gn4ture", "simplecache::https://h/x"),
        ("zip://*.png::https://me:hunter2@h/a.zip", "zip://*.png::https://h/a.zip"),
        ("s3://bucket/part-?.parquet", "s3://bucket/part-?.parquet"),
        ("s3://bucket/a@b/c:d#e.jpg", "s3://bucket/a@b/c:d#e.jpg"),
        ("/data/a?b=c@d#e.jpg", "/data/a?b=c@d#e.jpg"),
        ("https://host:8443/a@b", "https://host:8443/a@b"),
    ],
)
def test_public_url__has_no_secrets_and_still_opens(url: str, shown: str) -> None:
    assert public_url(url) == shown
    assert public_url(shown) == shown


def test_harmless__hides_what_a_library_quotes() -> None:
    told = harmless(
        f"403, message='Forbidden', url=URL('{SIGNED}')\nretry ({SIGNED}); password=hunter2, "
        "x-amz-security-token=s1gn4ture aws_secret_access_key=hunter2\n\x1b[31mcls_token: shape"
    )
    assert not any(secret in told for secret in SECRETS)
    assert "https://host:8443/w.bin?***" in told
    assert told.endswith("\n\\x1b[31mcls_token: shape")


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
    result = extract(config, told, local_pool).result
    assert (result["ok"], result["bad"]) == (len(NAMES), 1)
    assert json.loads(json.dumps(result)) == result
    rows = contents(LocalStore(tmp_path / "cache"))["commits/plan/000000.json"]
    assert set(rows["key"].to_pylist()) > set(NAMES)
    assert extract(config, Quiet(), local_pool).result["teacher_forwards"] == 0


class Vault(MemoryFileSystem):
    """Opens whatever user and signature are given; as a remote file system, it quotes the URL."""

    protocol = "vault"
    broken = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        place = path.removeprefix("vault://").partition("?")[0]
        return "/" + place.rpartition("@")[2].strip("/")

    def cat_file(self, path: str, **options: Any) -> bytes:
        if self.broken:
            raise RuntimeError(f"403, url=URL('vault://me:hunter2@host{path}?sig=s1gn4ture')")
        return bytes(super().cat_file(path, **options))


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    fsspec.register_implementation("vault", Vault, clobber=True)
    monkeypatch.setattr(Vault, "store", {})
    monkeypatch.setattr(Vault, "pseudo_dirs", [""])
    files = fsspec.filesystem("vault")
    for path in pictures(tmp_path / "photos", 3).iterdir():
        files.pipe(f"/host/photos/{path.name}", path.read_bytes())
    files.pipe("/host/photos/cut.jpg", b"no picture")
    return "vault://me:hunter2@host/photos?X-Amz-Credential=AKIA0EXAMPLE&sig=s1gn4ture"


def test_extract__no_secret_is_told_or_kept(
    vault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = Quiet()
    config = config_of(tmp_path / "cache", vault)
    result = extract(config, told, local_pool).result
    assert (result["ok"], result["bad"]) == (3, 1)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    everything = "\n".join([*told.lines, json.dumps(result), *capfd.readouterr()])
    for secret in SECRETS:
        assert secret not in everything
        assert secret.encode() not in kept
    assert b'"vault://host/photos"' in kept


def test_source__tells_no_secret_in_an_error(vault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(vault, Columns())
    assert (source.url, source.location) == ("vault://host/photos", vault)
    monkeypatch.setattr(Vault, "broken", True)
    with pytest.raises(SourceError) as caught:
        source.read("cut.jpg")
    with pytest.raises(ConfigError) as nowhere:
        open_source(vault.replace("photos", "nowhere"), Columns())
    for secret in SECRETS:
        assert secret not in f"{caught.value} {nowhere.value}"
    assert "403" in str(caught.value)


def test_source__what_is_too_large_or_leads_out_of_a_remote_one_is_refused(vault: str) -> None:
    source = open_source(vault, Columns(), max_bytes=9)
    with pytest.raises(Exception, match="10 bytes are more than the 9 allowed"):
        source.read("cut.jpg")
    with pytest.raises(Exception, match="leads out of the data set"):
        source.read("../other/x.jpg")


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
    assert not any(secret in str(caught.value) for secret in SECRETS)


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


class Runs:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def saved(value: object, **how: bool) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, **how)
    return sink.getvalue()


def zipped(**files: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return sink.getvalue()


def tarred(**files: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


def tensors(body: int = 16, **headers: object) -> bytes:
    head = json.dumps(headers).encode()
    return struct.pack("<Q", len(head)) + head + bytes(body)


def header(first: int, last: int, *shape: int, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [first, last]}


RUNS = pickle.dumps({"weight": Runs()}, protocol=2)
WEIGHTS = {
    "pickle.pt": RUNS,
    "pickle.bin": pickle.dumps(Runs()),
    "zip.pt": saved({"weight": Runs()}),
    "legacy.pt": saved({"weight": Runs()}, _use_new_zipfile_serialization=False),
    "module.pt": saved(nn.Linear(2, 2)),
    "tar.pt": tarred(pickle=RUNS, storages=RUNS, tensors=RUNS),
    "hand-made-zip.pt": zipped(a__data=RUNS, a__version=b"3"),
    "script.pt": zipped(**{"a__constants.pkl": RUNS, "a__data.pkl": RUNS, "a__version": b"3"}),
    "nothing.pt": b"",
    "pickle.safetensors": RUNS,
    "nothing.safetensors": b"",
    "endless-header.safetensors": struct.pack("<Q", 2**63),
    "huge-header.safetensors": struct.pack("<Q", 10**8 + 1) + b"{" + b" " * 100,
    "deep-header.safetensors": struct.pack("<Q", 50_000) + b"[" * 50_000,
    "overlap.safetensors": tensors(weight=header(0, 16, 2, 2), bias=header(8, 16, 2)),
    "gap.safetensors": tensors(weight=header(8, 24, 2, 2), body=24),
    "outside.safetensors": tensors(weight=header(0, 10**12, 2, 2)),
    "shape.safetensors": tensors(weight=header(0, 16, 2**40, 2**40)),
    "kind.safetensors": tensors(weight=header(0, 16, 2, 2, kind="EVIL")),
}


# torch warns of what it then refuses.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights__are_never_run_and_never_half_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(WEIGHTS[name])
    model = nn.Linear(2, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TeacherError, match=f"weights {path}"):
        load_weights(model, str(path))
    assert not Path("ran").exists()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
