"""Connecting to a Ray cluster, or starting one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infra.terminal import Terminal

MIN_LOCAL_CPUS = 4
"""Ray on two cores with two CPUs declared has no room beside its actors."""


@dataclass(frozen=True)
class Resources:
    """What the whole cluster offers."""

    cpus: int
    gpus: int
    local: bool


@contextmanager
def ray_session(terminal: Terminal, actors: int) -> Iterator[tuple[Any, Resources]]:
    """Ray and what it offers: the cluster of `RAY_ADDRESS` (as under `ray job submit`), else one
    started here and ended with the session, with room for at least so many actors of one CPU."""
    # A token that an earlier Ray left in the home directory would lock this session out.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its exporter has ended drivers with a segmentation fault, and nobody here reads it.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    # Ray starts workers ahead and waits for all of them: for ever, if one dies before it has said
    # that it is there (ray-project/ray#40131).
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = os.environ.get("RAY_ADDRESS")
    cores = os.cpu_count() or 1
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        terminal.decide("ray", address, "RAY_ADDRESS is set")
    else:
        ray.init(
            address="local",  # a cluster that runs here for somebody else is none of ours
            num_cpus=max(MIN_LOCAL_CPUS, cores, actors),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        terminal.decide("ray", "started here", "RAY_ADDRESS is not set")
    try:
        offered = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield (
            ray,
            Resources(
                cpus=int(offered.get("CPU", 0)) if address else cores,
                gpus=int(offered.get("GPU", 0)),
                local=not address,
            ),
        )
    finally:
        ray.shutdown()
