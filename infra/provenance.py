"""Where a number or a feature came from: versions, hardware, commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

_LIBRARIES = ("torch", "timm", "open_clip_torch", "numpy", "pillow", "ray", "zarr", "pyarrow")


def versions() -> dict[str, str]:
    """Versions of the libraries that touch a feature, without importing them."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def host() -> str:
    """This machine's name in its network."""
    return platform.node()


def hardware() -> str:
    """The processor, its cores, and the GPU if torch sees one."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    text = f"{model}, {os.cpu_count()} cores"
    import torch

    return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


def commit() -> str:
    """The checkout's commit, with `+` where files differ from it; empty outside a checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        try:
            result = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return ""
        return result.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
