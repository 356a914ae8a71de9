"""Archives that are damaged, or were made to do damage."""

import io
import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from infra.sources import open_source
from infra.tar_archive import HEADER_BYTES
from schemas.errors import ConfigError, ImageError, SourceError
from tests.unit.infra.archives import header, member, tar_bytes, write_tar
from tests.unit.infra.reading import COLUMNS, keys, refusal

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
PICTURE = header(member("x.jpg", size=1)) + b"1".ljust(BLOCK, b"\0")


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    source = open_source(str(path), COLUMNS)
    with pytest.raises(ConfigError) as caught:
        keys(source)
    with pytest.raises(ConfigError):
        source.read(f"{path.name}/x.jpg")
    text = str(caught.value)
    assert path.name in text
    return text


def pax(records: bytes) -> bytes:
    """A header of further fields, which goes before the one that they are of."""
    info = member("pax", type=tarfile.XHDTYPE, size=len(records))
    return header(info) + records.ljust(-(-len(records) // BLOCK) * BLOCK, b"\0")


def record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    size += len(str(size + len(str(size))))
    return b"%d %s=%s\n" % (size, key, value)


def test_archive__the_builders_here_make_what_tarfile_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(pax(record(b"path", b"y.jpg")) + PICTURE + END)
    assert keys(open_source(str(path), COLUMNS)) == ["a.tar/y.jpg"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"\x1f\x8b" + bytes(range(256)) * 8, "no tar archive"),
        (b"text, and more of it " * 99, "no tar archive"),
        (PICTURE, "cut short at byte 1024"),
        (PICTURE + PICTURE[:300], "cut short at byte 1024"),
        (PICTURE + bytes(BLOCK) + PICTURE + END, "ends at byte 1024 and goes on behind that"),
        (PICTURE + END + bytes(2 << 20), "ends at byte 1024 and goes on behind that"),
        (PICTURE + b"?" * BLOCK + PICTURE + END, "the header at byte 1024 is damaged"),
        (header(member("x.jpg", size=1 << 40)) + END, "unexpected end of data"),
        (header(member("x.jpg", size=-512)) + END, "leads back"),
        (header(member("x.jpg", size=-(1 << 50))) + END, "leads back"),
        (pax(record(b"size", b"-1024")) + PICTURE + END, "leads back"),
        (pax(record(b"size", b"9" * 5000)) + PICTURE + END, "no tar archive"),
        (pax(record(b"GNU.sparse.map", b"a,b")) + PICTURE + END, "no tar archive"),
        (pax(record(b"path", b"y" * HEADER_BYTES)) + PICTURE + END, "has more than 65536 bytes"),
        (pax(b"") * 4000 + PICTURE + END, "has more than 65536 bytes"),
        (header(member("x", type=b"L", size=1 << 40)) + PICTURE + END, "more than 65536 bytes"),
        (header(member("x", type=b"L", size=-600)) + PICTURE + END, "more than 65536 bytes"),
        (
            pax(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"))
            + header(member("x.jpg", size=1 << 30))
            + b"99999999999\n"
            + b"1\n" * (1 << 20)
            + END,
            "more than 65536 bytes",
        ),
    ],
)
def test_archive__is_refused_with_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    tracemalloc.start()
    assert reason in refused(tmp_path / "a.tar", content)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_archive__cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tar_bytes(*((f"{n}.jpg", b"1" * n * 300) for n in range(5)))
    end = len(whole.rstrip(b"\0")) + BLOCK
    for size in range(0, end - end % BLOCK, 97):
        refused(tmp_path / "a.tar", whole[:size])


def test_archive__damage_is_never_a_traceback_nor_a_lost_picture(tmp_path: Path) -> None:
    """Every byte of the headers, and many of the rest."""
    members = [(f"folder/{n}.jpg", bytes([n]) * 700) for n in range(4)]
    whole = tar_bytes(*members, ("folder/" + "long" * 60 + ".png", b"9" * 99))
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    count = len(keys(open_source(str(path), COLUMNS)))
    generator = random.Random(0)
    for place in range(0, len(whole.rstrip(b"\0")), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        source = open_source(str(path), COLUMNS)
        try:
            found = keys(source)
        except ConfigError:
            continue
        # Names in a pax header have no checksum; pictures with a lost suffix are none.
        assert len(found) >= count - 1
        for key in found:
            source.read(key)


def test_archive__a_name_that_stands_twice(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", ("x/1.jpg", b"1"), ("2.jpg", b"2"), ("./x/1.jpg", b"3"))
    with pytest.raises(ConfigError, match=r"x/1\.jpg stands twice in a\.tar"):
        keys(open_source(str(path), COLUMNS))


def test_archive__a_name_that_is_not_utf8(tmp_path: Path) -> None:
    content = header(member("a.jpg", size=0)).replace(b"a.jpg", b"\xff.jpg")
    total = 256 + sum(content[:148]) + sum(content[156:BLOCK])  # the checksum, itself as blanks
    content = content[:148] + b"%06o\0 " % total + content[156:]
    (tmp_path / "a.tar").write_bytes(content + END)
    with pytest.raises(ConfigError, match="is not UTF-8; rename it"):
        keys(open_source(str(tmp_path / "a.tar"), COLUMNS))


def test_archive__a_sparse_picture_is_a_row_with_its_reason(tmp_path: Path) -> None:
    fields = [(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"1"), (b"GNU.sparse.size", b"9")]
    fields += [(b"GNU.sparse.map", b"0,1,8,1"), (b"GNU.sparse.name", b"hole.jpg")]
    records = b"".join(record(*field) for field in fields)
    path = tmp_path / "a.tar"
    path.write_bytes(pax(records) + PICTURE + PICTURE + END)
    source = open_source(str(path), COLUMNS)
    assert keys(source) == ["a.tar/hole.jpg", "a.tar/x.jpg"]
    assert "is a sparse file in its archive" in refusal(source, "a.tar/hole.jpg")
    assert source.read("a.tar/x.jpg") == b"1"


@pytest.mark.parametrize("label", [b"\xff\xfe", b"x" * 5000])
def test_archive__what_is_no_label(tmp_path: Path, label: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", ("1.jpg", b"1"), ("1.cls", label))
    with pytest.raises(ConfigError, match=r"1\.cls in a\.tar is no label"):
        keys(open_source(str(path), COLUMNS))


def test_archive__reading_one_needs_no_more_memory_than_its_index(tmp_path: Path) -> None:
    sink = io.BytesIO()
    block = header(member("0" * 40 + ".jpg", size=0))
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(5_000):
            tar.addfile(member(f"{number:040}.jpg"))
    assert len(sink.getvalue()) > 5_000 * len(block)
    (tmp_path / "a.tar").write_bytes(sink.getvalue())
    measured = []
    for _ in range(2):
        source = open_source(str(tmp_path / "a.tar"), COLUMNS)
        tracemalloc.start()
        assert source.read(f"a.tar/{7:040}.jpg") == b""
        measured.append(tracemalloc.get_traced_memory())
        tracemalloc.stop()
    # Python's table of interned strings, megabytes, may happen to grow in one of them: not in both.
    held, most = map(min, zip(*measured))
    assert held < 100 * 5_000
    assert most < 1000 * 5_000


def test_archive__a_fault_of_the_file_system_is_none_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "a.tar", ("1.jpg", b"1"))
    source = open_source(str(path), COLUMNS)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileOpener.seek", fail)
    with pytest.raises(SourceError, match="listing failed: Input/output error"):
        keys(source)
    with pytest.raises(SourceError, match=r"reading a\.tar/1\.jpg failed: Input/output error"):
        source.read("a.tar/1.jpg")
    with pytest.raises(ImageError):
        source.read("b.tar/1.jpg")
