"""What an extraction costs, and from when on it pays.

From the paces measured on this machine with full batches and real pictures (pipeline/pace.py):

    forwards    sum over (teacher, grid) of rows x (forward + encode seconds of a row), the rows of
                calibrations included; over the number of GPUs
    threads     pictures x reading and decoding, once for all that see them in one pass, + squares x
                cutting out and resizing + rows x writing; over the number of threads
    machine     forwards + threads on a CPU, where both need the cores; the greater of the two with
                a GPU, where one goes on beside the other
    seconds     machine / cost.workers
    price       machine hours x cost.worker_hour;  storage: 10^9 bytes x cost.storage_gb_month
    epoch       of the teachers run online: images x cost.views_per_epoch x sum over teachers of
                cost.grids_per_epoch x the mean of its grids' forward seconds. The student's own
                pictures are decoded either way and count in neither
    break-even  the first epoch by which running them online would have cost as much as extracting
                and keeping the cache for cost.months: in money where cost.worker_hour is given,
                else in machine seconds, without the storage

Seconds and price are of what is left to do; bytes and break-even of the whole cache that is asked
for, whatever of it is there. A picture that cannot be read is counted as if it could. Starting Ray
and loading the teachers are left out, and so is the disk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.forecast import Forecast, Pair, Work
from pipeline.job import TeacherTask
from pipeline.pace import Machine, PicturePace, TeacherPace
from schemas.codec import codec_label
from schemas.extract_config import Cost, ExtractConfig


@dataclass(frozen=True)
class Bill:
    """What the work takes of machines like this one."""

    seconds: float
    """Of one machine, for what is left to do."""
    whole_seconds: float
    """Of one machine, for all that is asked for."""
    epoch_seconds: float
    """Of one machine, for one epoch of the teachers run online."""
    bytes_by_codec: dict[str, int]
    """Of all that is asked for."""
    cost: Cost

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    @property
    def price(self) -> float | None:
        return None if self.cost.worker_hour is None else self.hours * self.cost.worker_hour

    @property
    def storage_per_month(self) -> float | None:
        each = self.cost.storage_gb_month
        return None if each is None else sum(self.bytes_by_codec.values()) / 1e9 * each

    @property
    def breakeven_epochs(self) -> int | None:
        """None where running the teachers online costs nothing."""
        once, epoch = self.whole_seconds, self.epoch_seconds
        if self.cost.worker_hour is not None:
            hourly = self.cost.worker_hour / 3600
            kept = (self.storage_per_month or 0) * self.cost.months
            once, epoch = once * hourly + kept, epoch * hourly
        return math.ceil(once / epoch) if epoch else None


def make_bill(
    config: ExtractConfig,
    ahead: Forecast,
    teachers: Sequence[TeacherTask],
    machine: Machine,
    paces: dict[Pair, TeacherPace],
    pictures: PicturePace,
) -> Bill:
    """The bill of what is ahead."""
    return Bill(
        seconds=_seconds(machine, paces, pictures, ahead.left, ahead.calibration),
        whole_seconds=_seconds(machine, paces, pictures, ahead.whole),
        epoch_seconds=_epoch_seconds(config.cost, ahead.listing.asked, teachers, machine, paces),
        bytes_by_codec=_bytes_by_codec(config, ahead.rows, paces),
        cost=config.cost,
    )


def _seconds(
    machine: Machine, paces: dict[Pair, TeacherPace], pictures: PicturePace, *works: Work
) -> float:
    """Of the machine, for one after the other."""
    total = 0.0
    for work in works:
        forwards = sum(
            rows * (paces[pair].forward + paces[pair].encode) for pair, rows in work.rows.items()
        )
        threads = work.pictures * pictures.read
        threads += sum(count * pictures.square[side] for side, count in work.squares.items())
        threads += sum(rows * paces[pair].write for pair, rows in work.rows.items())
        parts = forwards / machine.forwards, threads / machine.threads
        total += sum(parts) if machine.device == "cpu" else max(parts)
    return total


def _epoch_seconds(
    cost: Cost,
    images: int,
    teachers: Sequence[TeacherTask],
    machine: Machine,
    paces: dict[Pair, TeacherPace],
) -> float:
    each = sum(
        sum(paces[task.name, grid].forward for grid in task.grids) / len(task.grids)
        for task in teachers
    )
    return images * cost.views_per_epoch * cost.grids_per_epoch * each / machine.forwards


def _bytes_by_codec(
    config: ExtractConfig, rows: int, paces: dict[Pair, TeacherPace]
) -> dict[str, int]:
    stored: dict[str, int] = {}
    for name, grid in paces:
        codec = codec_label(config.codec_of(name))
        stored[codec] = stored.get(codec, 0) + round(rows * paces[name, grid].bytes)
    return stored
