"""Credentials, signed URLs and query strings: neither told nor kept."""

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from infra.command import Command, Outcome, run_command
from infra.models.libraries import build_encoder
from infra.redact import harmless, public_url
from infra.sources import open_source
from infra.terminal import Terminal
from pipeline.teachers import load_teacher
from schemas.errors import ConfigError, SourceError, TeacherError
from schemas.extract_config import Columns, Teacher
from schemas.options import VerifyOptions
from tests.caches import VIT, Quiet, config_of, extract_here, pictures

SECRETS = ("hunter2", "AKIA0EXAMPLE", "s1gn4ture")
SIGNED = "https://me:hunter2@host:8443/w.bin?X-Amz-Credential=AKIA0EXAMPLE&sig=s1gn4ture#top"


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
    result = extract_here(config, told).result
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


def test_terminal__prints_no_secret_and_no_control_character(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for to_stderr in (False, True):
        terminal = Terminal(to_stderr)
        terminal.say(f"reads {SIGNED}\nand \x1b[2J\u202e")
        terminal.warn(f"reads {SIGNED}\x07")
    told = "".join(capsys.readouterr())
    assert not any(secret in told for secret in SECRETS)
    assert all(line.isprintable() for line in told.split("\n"))
    assert told.count("https://host:8443/w.bin?***") == 4


def fail(config: VerifyOptions, terminal: Terminal) -> Outcome:
    raise RuntimeError(f"403, url=URL('{SIGNED}')")


def test_command__a_fault_of_ours_tells_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(f"{__name__}:fail", "schemas.options:VerifyOptions", "", ("cache",))
    assert run_command("verify", command, ["c", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "403" in json.loads(out)["error"]
    assert "Traceback" in err
    assert not any(secret in out + err for secret in SECRETS)


@pytest.mark.parametrize(
    "words",
    [
        ("--images.source", f"[{SIGNED}]", "--views.per-image", "x"),
        ("--cache", SIGNED, "--images.source", "x", "--teachers.a.library", "timm"),
    ],
)
def test_command__a_configuration_that_is_refused_tells_no_secret(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command("infra.cli:main", "schemas.extract_config:ExtractConfig", "")
    assert run_command("extract", command, [*words, "--json"]) == 2
    told = "".join(capsys.readouterr())
    assert not any(secret in told for secret in SECRETS)


def test_teacher_record__has_no_secret(vault: str, tmp_path: Path) -> None:
    sink = io.BytesIO()
    torch.save(build_encoder(Teacher(**VIT)).model.state_dict(), sink)
    fsspec.filesystem("vault").pipe("/host/w.pt", sink.getvalue())
    weights = vault.replace("photos", "w.pt")
    loaded = load_teacher(Teacher(**{**VIT, "weights": weights}), "float32", "cpu")
    assert loaded.record.weights == "vault://host/w.pt"
    with pytest.raises(TeacherError) as caught:
        load_teacher(
            Teacher(**{**VIT, "weights": weights.replace("w.pt", "nowhere.pt")}), "float32", "cpu"
        )
    assert not any(secret in str(caught.value) for secret in SECRETS)
