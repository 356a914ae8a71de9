"""Triton kernels in a process of their own: whether they are interpreted is decided when they are
made. Compiled ahead of time, they need no GPU to show what they became."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from tests.builders import ROOT


@dataclass(frozen=True)
class Build:
    """Of a kernel for one GPU."""

    kernel: str
    """module:function."""
    capability: int
    """90 is an H100 or H200, 80 an A100."""
    warps: int
    types: Mapping[str, str | list[str]]
    """Of its arguments as Triton writes them, of a tuple those of its parts; what is not named is
    an i32, and a name in capitals a constant."""
    constants: dict[str, Any]
    divisible: list[str] = field(default_factory=list)
    """Numbers that 16 divides, as it does every address."""


class Compiled(NamedTuple):
    registers: int
    """Of a thread."""
    stack: int
    """Bytes: what did not fit."""
    local: int
    ptx: str


def compile_ahead(builds: Sequence[Build], cache: Path) -> list[Compiled]:
    """Each in turn; `cache` is Triton's, and empty unless one build may reuse another's."""
    told = run(
        *("-m", "tests.aot"),
        stdin=json.dumps([asdict(build) for build in builds]),
        TRITON_CACHE_DIR=str(cache),
    )
    return [Compiled(*each) for each in json.loads(told)]


def run(*arguments: str, stdin: str = "", **environment: str) -> str:
    """What Python prints, which must end well."""
    bare = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**bare, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _compile(build: Build) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = build.kernel.split(":")
    kernel = getattr(import_module(module), name)
    signature = {
        name: "constexpr" if name.isupper() else _typed(build.types.get(name, "i32"))
        for name in kernel.arg_names
    }
    constants = {name: _typed(value) for name, value in build.constants.items()}
    attributes = {place: [["tt.divisibility", 16]] for place in _divisible(build, signature)}
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", build.capability, 32),
        options={"num_warps": build.warps},
    )
    return Compiled(*_usage(made.asm["cubin"]), made.asm["ptx"])


def _typed(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def _divisible(build: Build, signature: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
    """Where what 16 divides stands among the arguments."""
    for place, (name, type_) in enumerate(signature.items()):
        if isinstance(type_, tuple):
            yield from ((place, part) for part in range(len(type_)))
        elif type_.startswith("*") or name in build.divisible:
            yield (place,)


def _usage(cubin: bytes) -> tuple[int, int, int]:
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers, stack, local = (
        int(re.search(rf"{name}:(\d+)", told)[1])  # type: ignore[index]
        for name in ("REG", "STACK", "LOCAL")
    )
    return registers, stack, local


if __name__ == "__main__":
    print(json.dumps([_compile(Build(**each)) for each in json.load(sys.stdin)]))
