"""The formats that are damaged, what their defaults are, and an environment for each."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Format:
    """One format, written and read in one way."""

    name: str
    module: str
    """Below this package; runs in the format's own environment."""
    how: str
    """What its documented normal usage is taken to be."""
    environment: str | None = None
    """None: that of this project."""
    requirements: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    has_short_replies: bool = False


_ZARR = ("zarr==3.1.6", "numcodecs==0.16.6", "numpy==2.4.6")
_STREAMING = (
    "mosaicml-streaming==0.13.0",
    "torch==2.13.0",
    "torchvision==0.28.0",
    "numpy==2.1.3",
)

FORMATS = (
    Format("teachonce, trainer", "ours", "CacheStream, one epoch", has_short_replies=True),
    Format(
        "teachonce, verify",
        "ours",
        "`teachonce verify` alone may find",
        arguments=("verify",),
        has_short_replies=True,
    ),
    Format(
        "zarr-python",
        "zarr_python",
        "sharded array, a row a chunk, default codecs (zstd; crc32c of the index alone)",
        "zarr-python",
        _ZARR,
    ),
    Format(
        "zarr-python, crc32c chunks",
        "zarr_python",
        "the same with Crc32cCodec in place of the default compressor",
        "zarr-python",
        _ZARR,
        ("crc32c",),
    ),
    Format(
        "tensorstore",
        "tensorstore",
        "zarr3 driver, a row a chunk, default codecs (crc32c of the index alone)",
        "tensorstore",
        ("tensorstore==0.1.86", "numpy==2.4.6"),
    ),
    Format(
        "LitData",
        "litdata",
        "optimize, StreamingDataset from a local folder, no workers",
        "litdata",
        ("litdata==0.2.76", "torch==2.13.0", "numpy==2.4.6"),
    ),
    Format(
        "Streaming",
        "streaming",
        "MDSWriter, StreamingDataset with remote and local folders, no workers, no hashes",
        "streaming",
        _STREAMING,
    ),
    Format(
        "Streaming, xxh64",
        "streaming",
        "the same with hashes=['xxh64'] and validate_hash='xxh64'",
        "streaming",
        _STREAMING,
        ("xxh64",),
    ),
    Format(
        "WebDataset",
        "webdataset",
        "ShardWriter, WebDataset of a brace list with decode(), no workers",
        "webdataset",
        ("webdataset==1.0.2", "numpy==2.4.6"),
    ),
)


def python_of(form: Format, environments: Path) -> Path:
    """The interpreter that reads a format; its environment is made if it is not there."""
    if form.environment is None:
        return Path(sys.executable)
    folder = environments / form.environment
    stamp = folder / "requirements.json"
    wanted = json.dumps([sys.version, *form.requirements])
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    _install(folder, python, form.requirements)
    stamp.write_text(wanted)
    return python


def _install(folder: Path, python: Path, requirements: tuple[str, ...]) -> None:
    uv = shutil.which("uv")
    if uv is None:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", *requirements)
        return
    # uv does not read what pip is told of folders of wheels.
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    found = [word for link in links for word in ("--find-links", link)]
    _run(uv, "venv", "--quiet", "--python", sys.executable, str(folder))
    _run(uv, "pip", "install", "--quiet", "--python", str(python), *found, *requirements)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)
