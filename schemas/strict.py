"""The base of every configuration and record, and the one place that words a validation fault."""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from schemas.errors import ConfigError


class StrictModel(BaseModel):
    """Frozen; unknown keys are refused; the docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


Model = TypeVar("Model", bound=BaseModel)


def one_or_several(values: object) -> object:
    """For a tuple: `a, b` as a command line gives it is several, one thing alone is one."""
    if isinstance(values, str):
        return tuple(
            int(word) if word.strip().isdigit() else word.strip() for word in values.split(",")
        )
    return (values,) if isinstance(values, int) else values


def parse(model: type[Model], data: object, origin: str) -> Model:
    """Validate `data`, read from `origin`, as a `model`.

    Raises:
        ConfigError: lists every fault with its dotted name and, for an unknown key, the nearest
            valid one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = _faults(model, error)
    count = f"{len(faults)} error" + ("s" if len(faults) > 1 else "")
    raise ConfigError("\n".join([f"{origin}: {count}", *(f"  {fault}" for fault in faults)]))


def _faults(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One line for each key; what each alternative of its type expected stands in that line."""
    expected: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for detail in error.errors():
        path = _own_names(model, detail["loc"])
        name = ".".join(path) or "(whole file)"
        expected.setdefault(name, []).append(_expected(model, path, detail))
        if path and detail["type"] not in ("extra_forbidden", "missing"):
            found.setdefault(name, f"; found {detail['input']!r}")
    return [
        f"{name}: {' or '.join(texts)}{found.get(name, '')}" for name, texts in expected.items()
    ]


def _expected(model: type[BaseModel], path: list[str], detail: Mapping[str, Any]) -> str:
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], _siblings(model, path), n=1, cutoff=0.5)
        hint = f" (did you mean {'.'.join([*path[:-1], near[0]])}?)" if near else ""
        return f"unknown key{hint}"
    if detail["type"] == "missing":
        return "missing; it has no default"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def _own_names(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """A fault's location without what pydantic calls the alternatives of a leaf's type."""
    path = [str(part) for part in location]
    for leaf, info in fields(model):
        depth = len(leaf)
        if (
            _inner_model(info.annotation)[0] is None
            and _matches(leaf, path[:depth])
            and any(isinstance(p, str) for p in location[depth:])
        ):
            return path[:depth]
    return path


def _matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
    return len(pattern) == len(path) and all(a in ("*", b) for a, b in zip(pattern, path))


def _siblings(model: type[BaseModel], path: list[str]) -> list[str]:
    """Valid names at the place of the last part of `path`."""
    depth = len(path) - 1
    return [
        name[depth]
        for name, _ in fields(model)
        if len(name) > depth and _matches(name[:depth], path[:-1])
    ]


def fields(
    model: type[BaseModel], prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every leaf of a configuration as (path, field); an open mapping's keys appear as `*`. A
    mapping that may be null comes itself as well, before its leaves."""
    for name, field in model.model_fields.items():
        inner, star = _inner_model(field.annotation)
        if inner is None or _may_be_null(field.annotation):
            yield (*prefix, name), field
        if inner is not None:
            yield from fields(inner, (*prefix, name, *star))


def _inner_model(annotation: Any) -> tuple[type[BaseModel] | None, tuple[str, ...]]:
    if _is_model(annotation):
        return annotation, ()
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict and _is_model(arguments[1]):
        return arguments[1], ("*",)
    if _may_be_null(annotation) and _is_model(arguments[0]):
        return arguments[0], ()
    return None, ()


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _may_be_null(annotation: Any) -> bool:
    arguments = typing.get_args(annotation)
    return len(arguments) == 2 and arguments[1] is type(None)
