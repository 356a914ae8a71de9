"""From the words of a command line to a validated configuration, and from an outcome to an exit.

The configuration is read from `--config F` and overridden by any dotted key, and both go through
one validation, so that a fault in either is reported with all the others (README, "Decisions").
"""

import importlib
import json
import re
import signal
import sys
import traceback
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from infra.redact import harmless
from infra.terminal import Terminal
from infra.yaml_file import parse_yaml, read_yaml
from schemas.errors import ConfigError, TeachonceError
from schemas.strict import fields, parse

_YES_OR_NO = ("true", "false", "yes", "no", "on", "off")


@dataclass(frozen=True)
class Command:
    """One command of `teachonce`. Its function is named, not imported, until it is called."""

    function: str
    """`module:name` of a function (config, terminal) -> Outcome."""
    config: str
    """`module:name` of the model that holds its options."""
    summary: str
    positional: tuple[str, ...] = ()
    """Options that may be given without a name, in this order."""


@dataclass(frozen=True)
class Outcome:
    """What a command found: the JSON object's keys, and the exit status."""

    result: dict[str, object] = field(default_factory=dict)
    status: int = 0


def run_command(name: str, command: Command, words: Sequence[str]) -> int:
    """Parse, run, print; returns the exit status."""
    model: type[BaseModel] = load(command.config)
    if {"--help", "-h"} & set(words):
        print(usage(name, command, model))
        return 0
    as_json = "--json" in words
    # Whoever stops a job, a person or a scheduler, gets the same clean end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    terminal = Terminal(to_stderr=as_json)
    try:
        config = read_config(
            model, command.positional, [word for word in words if word != "--json"]
        )
        outcome: Outcome = load(command.function)(config, terminal)
    except TeachonceError as error:
        # Names and URLs of others stand in messages; what they could do to a terminal or give away
        # does not.
        text = harmless(str(error))
        print(f"teachonce {name}: {text}", file=sys.stderr)
        outcome = Outcome({"error": text}, error.exit_status)
    except Exception as error:
        # A fault of ours: say everything, and still answer a program that waits for the object.
        print(harmless(traceback.format_exc()), file=sys.stderr)
        outcome = Outcome({"error": harmless(f"{type(error).__name__}: {error}")}, 1)
    except KeyboardInterrupt:
        print(f"teachonce {name}: stopped; what was committed stays", file=sys.stderr)
        outcome = Outcome({"error": "interrupted"}, 130)
    if as_json:
        print(json.dumps(outcome.result), flush=True)
    return outcome.status


def load(target: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def read_config(model: type[BaseModel], positional: Sequence[str], words: Sequence[str]) -> Any:
    """A validated `model` from `--config F`, `--dotted.key value` and positional words.

    Raises:
        ConfigError: every fault of the file and of the words, in one message.
    """
    data: dict[str, Any] = {}
    overrides: list[tuple[list[str], str]] = []
    places = list(positional)
    origin = "command line"
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            if not places:
                raise ConfigError(f"command line: {word!r} is one word too many")
            overrides.append(([places.pop(0)], word))
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            if _is_switch(model, name.split(".")):
                value = left.pop(0) if left and left[0].lower() in _YES_OR_NO else "true"
            elif left:
                value = left.pop(0)
            else:
                raise ConfigError(f"command line: --{name} needs a value")
        if name == "config":
            origin, data = value, read_yaml(value, f"--config {value}")
        else:
            overrides.append((name.split("."), value))
    for path, value in overrides:
        _override(model, data, path, value)
    return parse(model, data, origin)


def usage(name: str, command: Command, model: type[BaseModel]) -> str:
    """The help text: every key with its default and meaning."""
    words = " ".join(place.upper() for place in command.positional)
    lines = [
        f"usage: teachonce {name} {words + ' ' if words else ''}"
        "[--config FILE] [--json] [--KEY VALUE ...]",
        "",
        command.summary,
        "",
        "--config FILE is YAML with the keys below; a key on the command line overrides it.",
        "--json prints one JSON object as the last line of standard output.",
        "",
    ]
    for path, info in fields(model):
        default = info.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else f"default {_yaml(default)}"
        key = ".".join(part.upper() if part == "*" else part for part in path).replace("*", "NAME")
        lines.append(f"  --{key.replace('_', '-')}  [{shown}]")
        if info.description:
            lines.append("      " + re.sub(r"\s+", " ", info.description))
    return "\n".join(lines)


def _override(model: type[BaseModel], data: dict[str, Any], path: list[str], value: str) -> None:
    patterns = [name for name, _ in fields(model)]
    for depth, part in enumerate(path):
        # An open name, such as a teacher's, is the user's own and stays as it is written.
        patterns = [name for name in patterns if name[depth:] and name[depth] in ("*", _key(part))]
        is_open = any(name[depth] == "*" for name in patterns)
        key = part if is_open or part in data else _key(part)
        if depth == len(path) - 1:
            data[key] = _value(model, path, value)
        else:
            inner = data.get(key)
            data[key] = inner = dict(inner) if isinstance(inner, dict) else {}
            data = inner


def _value(model: type[BaseModel], path: list[str], text: str) -> Any:
    """A word as YAML, except where the key holds text: there `007` stays `007`."""
    if _annotation(model, path) in (str, typing.Optional[str]):  # noqa: UP045
        return None if text == "null" else text
    try:
        return parse_yaml(text, f"--{'.'.join(path)}")
    except ConfigError:
        return text


def _is_switch(model: type[BaseModel], path: list[str]) -> bool:
    """A key that is yes or no may stand without a value, which means yes."""
    return _annotation(model, path) is bool


def _annotation(model: type[BaseModel], path: list[str]) -> Any:
    """The type of a key; None if there is no such key."""
    for name, info in fields(model):
        if len(name) == len(path) and all(a in ("*", _key(b)) for a, b in zip(name, path)):
            return info.annotation
    return None


def _key(word: str) -> str:
    """A key as the configuration spells it: `per-image` is `per_image`."""
    return word.replace("-", "_")


def _yaml(value: object) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
