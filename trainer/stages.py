"""EUPE's three stages (arXiv 2603.22387, section 3), and what each asks of a configuration.

`proxy`: several experts into one large student. `fixed`: the proxy into a small student at one
grid. `multires`: the same with student and teacher grids drawn at each step, each for itself.
"""

from schemas.errors import ConfigError
from schemas.train_config import TrainConfig

PROXY_HIDDEN, HIDDEN = 1536, 3072
"""Width of the paper's adapter heads in stage `proxy`, and in the others."""


def check_stage(config: TrainConfig) -> None:
    """Refuse what the stage of `config` cannot be trained with.

    Raises:
        ConfigError: the first such thing, and what to do.
    """
    several = {
        f"teachers.{name}.grids": term.grids
        for name, term in config.teachers.items()
        if term.grids is not None and len(term.grids) > 1
    }
    drawn = dict(several)
    if len(config.student_grids) > 1:
        drawn["student_grids"] = config.student_grids
    for name, grids in drawn.items():
        if len(set(grids)) < len(grids):
            raise ConfigError(f"{name}: {list(grids)} names a grid twice; name each once")
    if config.stage != "multires" and drawn:
        name, grids = next(iter(drawn.items()))
        raise ConfigError(
            f"{name}: stage {config.stage} has one grid, found {list(grids)}; give one, or set "
            "stage: multires"
        )
    if config.stage == "multires" and not drawn:
        raise ConfigError(
            "stage multires draws grids, and there is nothing to draw from; give several in "
            "student_grids or in a teacher's grids, or set stage: fixed"
        )
    if len({tuple(sorted(grids)) for grids in several.values()}) > 1:
        found = ", ".join(f"{name} {list(grids)}" for name, grids in several.items())
        raise ConfigError(
            f"each step draws one teacher grid for all teachers that have several, so these must "
            f"be the same; found {found}"
        )
    _check_terms(config)


def _check_terms(config: TrainConfig) -> None:
    terms = config.teachers
    if terms and not any(term.weight for term in terms.values()):
        raise ConfigError("teachers: every weight is 0, so there is nothing to learn; raise one")
    if len(terms) == 1:
        (name,) = terms
        if terms[name].drop:
            raise ConfigError(
                f"teachers.{name}.drop: the only teacher cannot be left out; remove it"
            )


def head_hidden(config: TrainConfig) -> int:
    """Width between the two linear layers of an adapter head, `auto` resolved."""
    if config.head.hidden != "auto":
        return config.head.hidden
    return PROXY_HIDDEN if config.stage == "proxy" else HIDDEN
