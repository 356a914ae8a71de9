"""`teachonce plan`: what an extraction would do and cost, timed on a few real batches here.

Writes nothing. What is to be done is what `extract` itself would find (pipeline/forecast.py); the
paces are measured (pipeline/pace.py), and pipeline/bill.py says what follows from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from infra.command import Outcome
from infra.pixels.decode import silence_pillow
from infra.sources import open_source
from infra.store import open_store
from infra.terminal import Terminal, human_bytes
from pipeline.bill import Bill, make_bill
from pipeline.describe import describe_teachers
from pipeline.difference import tell
from pipeline.forecast import Forecast, Pair, forecast
from pipeline.job import TeacherTask
from pipeline.pace import (
    Machine,
    PicturePace,
    Sample,
    TeacherPace,
    sample_pictures,
    this_machine,
    time_teacher,
)
from pipeline.predict import Prediction, predict
from pipeline.sets import rows_per_shard
from pipeline.teachers import load_teacher
from schemas.extract_config import ExtractConfig

NOT_TIMED: Mapping[str, object] = MappingProxyType({})


def run(config: ExtractConfig, terminal: Terminal) -> Outcome:
    """The command.

    Raises:
        ConfigError, CacheError, DamageError, SourceError, TeacherError: as `extract` would.
    """
    silence_pillow()
    images = config.images
    source = open_source(images.source, images.columns, images.max_bytes)
    teachers = describe_teachers(config, terminal)
    ahead = forecast(config, terminal, source, teachers)
    if not ahead.standing:
        terminal.warn(f"images {source.url}: no pictures found; nothing to do")
        return Outcome(_result(config, ahead, None))
    _tell_work(terminal, config, ahead)
    machine = this_machine(config.workers)
    keys = ahead.listing.keys[: ahead.listing.asked]
    sides = sorted({each.pixels for each in ahead.sets})
    sample = sample_pictures(source, config.views, keys, sides)
    if sample is None:
        terminal.warn(f"images {source.url}: no sound picture found; nothing to time")
        return Outcome(_result(config, ahead, None))
    terminal.decide("timed on", machine.device, machine.reason)
    paces, predictions = _time_teachers(config, terminal, ahead, teachers, machine, sample, keys)
    bill = make_bill(config, ahead, teachers, machine, paces, sample.pace)
    _tell_bill(terminal, bill)
    codecs: dict[str, dict[str, object]] = {}
    for (name, grid), told in predictions.items():
        codecs.setdefault(name, {})[str(grid)] = [asdict(each) for each in told]
    return Outcome(_result(config, ahead, bill, codecs))


def _time_teachers(
    config: ExtractConfig,
    terminal: Terminal,
    ahead: Forecast,
    teachers: Sequence[TeacherTask],
    machine: Machine,
    sample: Sample,
    names: Sequence[str],
) -> tuple[dict[Pair, TeacherPace], dict[Pair, list[Prediction]]]:
    """The paces of every teacher at every grid, and what each codec would make of its tokens; one
    teacher at a time is in memory."""
    _tell_pictures(terminal, sample.pace)
    span = max(generation.plan.span_images for generation in ahead.standing)
    store = open_store(config.cache, config.store)
    paces, predictions = {}, {}
    for task in teachers:
        loaded = load_teacher(task.teacher, task.precision, machine.device)
        for each in ahead.sets:
            if each.teacher != task.name:
                continue
            shard = rows_per_shard(each.row_form.bytes, span, config.rows_per_shard)
            batch = min(config.workers.batch_size, len(names), shard)  # never crosses a shard
            squares = sample.squares[each.pixels]
            pace = time_teacher(loaded, each, squares, batch, names, shard)
            paces[task.name, each.path.grid] = pace
            terminal.say(
                f"timed        {task.name} at grid {each.path.grid}: {_ms(pace.forward)} forward, "
                f"{_ms(pace.encode)} encode, {_ms(pace.write)} write, {human_bytes(pace.bytes)} a "
                f"row, in batches of {batch}"
            )
            place = (task.record.fingerprint12, each.path.grid)
            _, tokens = loaded(squares[:batch])
            told = predict(store, place, tokens, config.codec_of(task.name))
            predictions[task.name, each.path.grid] = told
            terminal.say(f"codecs       {'; '.join(map(str, told))}")
    return paces, predictions


def _result(
    config: ExtractConfig,
    ahead: Forecast,
    bill: Bill | None,
    codecs: Mapping[str, object] = NOT_TIMED,
) -> dict[str, object]:
    def rounded(value: float | None, digits: int) -> float | None:
        return None if value is None else round(value, digits)

    return {
        "rows": ahead.rows,
        "teacher_forwards": ahead.left.rows.total(),
        "decodes": ahead.left.pictures,
        "lacks": [asdict(lack) for lack in ahead.lacks if lack.rows],
        "bytes_by_codec": bill.bytes_by_codec if bill else {},
        "seconds_estimate": bill and rounded(bill.seconds / config.cost.workers, 1),
        "hours": bill and rounded(bill.hours, 6),
        "price": bill and rounded(bill.price, 6),
        "storage_price_per_month": bill and rounded(bill.storage_per_month, 6),
        "currency": config.cost.currency,
        "breakeven_epochs": bill and bill.breakeven_epochs,
        "codecs": dict(codecs),
    }


def _tell_work(terminal: Terminal, config: ExtractConfig, ahead: Forecast) -> None:
    """What `extract` would say and do."""
    known = len(ahead.standing) - len(ahead.growths)
    for growth, made in zip(ahead.growths, ahead.standing[known:]):
        terminal.decide(
            "plan",
            f"would get {growth.rows(config):,} new rows",
            f"{growth.why}; generation {made.plan.generation}, spans of {made.plan.span_images}",
        )
    tell(terminal, ahead.lacks)
    terminal.say(
        f"rows         {ahead.rows:,}: {ahead.left.rows.total():,} forwards to do, and "
        f"{ahead.calibration.rows.total():,} to calibrate; {ahead.left.pictures:,} pictures to "
        "decode"
    )


def _tell_pictures(terminal: Terminal, pace: PicturePace) -> None:
    squares = ", ".join(f"{_ms(seconds)} at {side} px" for side, seconds in pace.square.items())
    terminal.say(
        f"timed        a picture, on one thread: {_ms(pace.read)} to read and decode, and for a "
        f"view {squares}"
    )


def _tell_bill(terminal: Terminal, bill: Bill) -> None:
    cost = bill.cost
    for codec, size in bill.bytes_by_codec.items():
        terminal.say(f"bytes        {human_bytes(size)} as {codec}, for all that is asked for")
    machines = "a machine" if cost.workers == 1 else f"{cost.workers:g} machines"
    terminal.say(
        f"time         {bill.seconds / cost.workers:,.0f} s for what is left, on {machines} like "
        f"this once it runs: {_amount(bill.hours)} machine hours"
    )
    if bill.price is not None:
        terminal.say(f"price        {_amount(bill.price)} {cost.currency} for what is left")
    if bill.storage_per_month is not None:
        terminal.say(f"storage      {_amount(bill.storage_per_month)} {cost.currency} a month")
    if bill.breakeven_epochs is not None:
        terminal.say(
            f"break-even   epoch {bill.breakeven_epochs:,}: by then teachers run online, each on "
            f"{cost.views_per_epoch:g} x {cost.grids_per_epoch:g} (views x grids) of a picture, "
            f"have cost as much as the whole cache ({_basis(bill)})"
        )


def _basis(bill: Bill) -> str:
    cost = bill.cost
    if bill.price is None:
        return "in machine seconds, without storage, as cost.worker_hour is not set"
    if bill.storage_per_month is None:
        return f"in {cost.currency}, without storage, as cost.storage_gb_month is not set"
    return f"in {cost.currency}, with {cost.months:g} months of storage"


def _amount(value: float) -> str:
    """Of hours or money: cents of what is much, two digits of what is little."""
    return f"{value:,.2f}" if value == 0 or value >= 1 else f"{value:.2g}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.2f} ms"
