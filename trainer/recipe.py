"""What of a configuration decides a run's weights, and so must not change between its parts."""

from pydantic import JsonValue

from infra.store import open_store
from schemas.train_config import TrainConfig
from trainer.feed import MAIN
from trainer.stages import head_hidden

FIELDS = {
    "cache",
    "mix",
    "stage",
    "student",
    "teachers",
    "student_grids",
    "views",
    "augment",
    "reframe",
    "loss",
    "head",
    "optim",
    "precision",
    "seed",
}
FREE = {"student": {"grad_checkpointing"}, "optim": {"accumulate"}}
"""Changes how much memory a step takes, not what it computes but for rounding."""
ABSENT = "not set"


def recipe(config: TrainConfig) -> dict[str, JsonValue]:
    """The fields that must not change, by dotted name."""
    chosen = config.model_dump(mode="json", include=FIELDS, exclude=FREE)
    chosen["head"]["hidden"] = head_hidden(config)
    # The same words mean another folder once the command is run from elsewhere.
    chosen["cache"] = open_store(config.cache, config.store).url
    for name, part in config.mix.items():
        url = open_store(part.cache, config.store).url
        chosen["mix"][name] = {"cache": url, "share": part.share}
    return _flat(chosen)


def changes(before: dict[str, JsonValue], pinned: dict[str, int], config: TrainConfig) -> list[str]:
    """What of `config` is not as in the run that had the recipe `before`; a line each.

    Args:
        pinned: the snapshots of that run. A configured `latest` or tag means those.
    """
    before, now = dict(before), recipe(config)
    asked = {MAIN: config.snapshot, **{name: part.snapshot for name, part in config.mix.items()}}
    for name, number in pinned.items():
        if isinstance(asked.get(name), int):
            key = "snapshot" if name == MAIN else f"mix.{name}.snapshot"
            before[key], now[key] = number, asked[name]
    return [
        f"  {name:<20} was {before.get(name, ABSENT)!r}, now {now.get(name, ABSENT)!r}"
        for name in [*before, *(name for name in now if name not in before)]
        if before.get(name, ABSENT) != now.get(name, ABSENT)
    ]


def _flat(tree: dict[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    flat: dict[str, JsonValue] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
