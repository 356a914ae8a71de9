"""How tests are shared out among the processes of pytest-xdist: `pytest -n 2`.

All files that start commands go to one process, so that there is never more than one Ray, one
victim to be killed, or one time to be kept. Other files go one by one to whichever process is free,
and each whole, so that what a file makes once is made once.
"""

import functools
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.builders import ROOT

COMMANDS = "files that start commands"


@functools.cache
def share_of(path: Path) -> str:
    """What it has in common with files that must go to the same process."""
    return COMMANDS if "from tests.processes import" in path.read_text() else str(path)


def longest_first(items: list[pytest.Item]) -> None:
    """Since shares are begun in this order, all processes end at about the same time. Items come
    with the fast tiers first."""
    first = {share: -at for at, share in enumerate(share_of(item.path) for item in items)}
    first[COMMANDS] = -len(items)
    items.sort(key=lambda item: first[share_of(item.path)])


class Shares(LoadScopeScheduling):
    def __init__(self, config: pytest.Config, log: object) -> None:
        config.option.loadscopereorder = False  # not by the number of tests: by the order of items
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return share_of(ROOT / nodeid.partition("::")[0])
