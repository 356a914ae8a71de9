"""A picture whose decoding never ends: real workers, which cannot stop a thread either."""

from pathlib import Path

from tests.caches import pictures, settings
from tests.processes import by_module, config_file, descendants, is_running, start, until

TEACHER = """
import threading
from infra.models.timm_encoder import build_timm
from pipeline import pictures

decode = pictures.decode
pictures.PATIENCE_S = 1.0

def decode_or_block(data, limits):
    if data.endswith(b"stuck"):
        threading.Event().wait()
    return decode(data, limits)

pictures.decode = decode_or_block

def build():
    return build_timm("test_vit", {}, "random:1")
"""


def test_extract__names_a_picture_that_is_stuck_and_ends(tmp_path: Path) -> None:
    source = pictures(tmp_path / "pictures", 8)
    with open(source / "0003.jpg", "ab") as file:
        file.write(b"stuck")
    (tmp_path / "my_encoders.py").write_text(TEACHER)
    teachers = {"mine": {"library": "python", "model": "my_encoders:build"}}
    values = settings(tmp_path / "cache", source, teachers=teachers)
    config = config_file(tmp_path / "extract.yaml", values)
    with start(by_module("extract"), "--config", config, folder=tmp_path) as process:
        workers = until(lambda: descendants(process.pid))
        _, told = process.communicate(timeout=90)
        assert process.returncode == 1, told
        assert "reading and decoding 0003.jpg has not ended in" in told
        assert "take that picture out, and run again" in told
        assert "Traceback" not in told
        until(lambda: not any(map(is_running, workers)), 20)
