"""YAML as configuration: data and no objects, every key once, and no larger than it looks.

An alias costs nothing until somebody walks over what it stands for: nine levels of nine aliases
are a billion values in a validation or in an error message. So what is read is counted as if every
alias were written out.
"""

from collections.abc import Iterator
from typing import Any

import yaml

from infra.redact import harmless, printable
from schemas.errors import ConfigError

MAX_BYTES = 2**18
MAX_VALUES = 10_000
"""Of a file with its aliases written out."""


def read_yaml(path: str, origin: str) -> dict[str, Any]:
    """The mapping in a file.

    Raises:
        ConfigError: there is none, with what `origin` names and the line.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{origin}: {reason}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{origin}: is larger than {MAX_BYTES} bytes; is it a configuration?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{origin}: not YAML: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from None
    values = parse_yaml(text, origin)
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: a mapping of keys is expected")
    return values


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a text.

    Raises:
        ConfigError: it is no YAML, names an object of a program, has a key twice, or holds more
            than can be meant.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse(node, origin)
        return loader.construct_document(node)
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{origin}: not YAML: is nested too deeply") from None
    # Besides its own errors, whatever its conversions trip over: numbers, dates, keys. They quote
    # the text.
    except Exception as error:
        raise ConfigError(f"{origin}: not YAML: {harmless(str(error))}") from None


def _refuse(top: yaml.Node, origin: str) -> None:
    """Walk over everything that will be made, an alias as often as it stands there."""
    values = 0
    above: set[int] = set()
    stack: list[tuple[yaml.Node, bool]] = [(top, True)]
    while stack:
        node, begins = stack.pop()
        if not begins:
            above.remove(id(node))
            continue
        values += 1
        line = node.start_mark.line + 1
        if id(node) in above:
            raise ConfigError(f"{origin}: what begins at line {line} holds an alias of itself")
        if values > MAX_VALUES:
            raise ConfigError(
                f"{origin}: more than {MAX_VALUES} values once its aliases are written out, at "
                f"line {line}; is it a configuration?"
            )
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node, origin)
        above.add(id(node))
        stack.append((node, False))
        stack += [(inner, True) for inner in _inside(node)]


def _inside(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value


def _refuse_twice(node: yaml.MappingNode, origin: str) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if (key.tag, key.value) in lines:
            raise ConfigError(
                f"{origin}: the key {printable(key.value)} stands at line "
                f"{lines[key.tag, key.value]} and again at line {line}; leave the one that is meant"
            )
        lines[key.tag, key.value] = line
