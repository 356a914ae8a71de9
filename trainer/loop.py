"""The loop: batch, step; now and then a look at the loss, and a checkpoint."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from infra.terminal import Terminal
from schemas.errors import CacheError
from schemas.train_config import TrainConfig
from trainer import begin, checkpoint
from trainer.batch import Batch, State
from trainer.begin import NEXT, Beginning
from trainer.checkpoint import HOME, RunState
from trainer.feed import Feed
from trainer.handover import record_of
from trainer.learner import Learner, Step, learning_rate
from trainer.metrics import Pace, fetch, line_of
from trainer.parallel import Ranks
from trainer.recipe import recipe
from trainer.report import Report

LOG_STEPS = 10
"""Steps between two looks at the loss; each look waits for the GPU."""


class Loop:
    """A run from where it begins to where it ends; on every rank, of which the first writes."""

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        feed: Feed,
        ranks: Ranks,
        terminal: Terminal,
    ) -> None:
        self._config, self._learner, self._feed = config, learner, feed
        self._ranks, self._terminal = ranks, terminal
        self._out = Path(config.out).expanduser()
        self._factors = {name: term.weight for name, term in learner.terms.items()}
        self.step = 0
        """The last that was taken."""
        self.loss: float | None = None
        """Of that step."""
        self.folder: Path | None = None
        """Of the last checkpoint."""
        self.rows_per_second = 0.0

    def begin(self, beginning: Beginning) -> None:
        """Where the run stands before its next step."""
        found = beginning.found
        if found is None:
            return
        if beginning.anew:
            self._begin_anew(found.state.step)
            return
        self.step, self.loss, self.folder = found.state.step, found.state.loss, found.folder
        self._feed.load_state_dict(found.state.stream)
        if self._config.optim.accumulate == "auto":
            self._learner.accumulate = found.state.accumulate
        left = "goes on" if self.step < self._config.optim.steps else "nothing is left to do"
        self._terminal.decide("start", f"after step {self.step}", f"{left}; {found.folder}")

    def run(self) -> None:
        """Take every step that is left."""
        config, first = self._config, self.step
        last = min(config.optim.steps, config.max_steps or config.optim.steps)
        pace = Pace(first, last)
        writes = self._ranks.first and last > first
        report = Report(self._out, first, self._terminal) if writes else None
        with (
            closing(iter(self._feed)) as source,
            self._terminal.progress("train", max(0, last - first), "steps") as meter,
        ):
            batches = _usable(source, self._feed.rows, config.cache)
            for step in range(first + 1, last + 1):
                with pace.waiting():
                    batch = next(batches)
                result = self._learner.step(step, batch)
                pace.count(batch)
                saves = step % config.checkpoint.every_steps == 0 or step == last
                if saves or step % LOG_STEPS == 0:
                    self._look(step, result, batch, pace, report)
                if saves and report is not None:
                    self._save(self._out / HOME, batch.state)
                    report.saved()
                meter.advance(1, f"step {self.step:,}  loss {self.loss or 0:.4f}")
            self.rows_per_second = pace.rows_per_second
        if report is not None:
            report.close()

    def _look(
        self, step: int, result: Step, batch: Batch, pace: Pace, report: Report | None
    ) -> None:
        losses = fetch(step, result, self._factors, self._ranks)
        self.step, self.loss = step, losses.total
        if report is not None:
            rate = learning_rate(step, self._config.optim)
            report.line(line_of(step, losses, batch, rate, pace.lap(step)))

    def _save(self, home: Path, state: State) -> None:
        trained = self._learner.trained
        saved = checkpoint.save(
            home,
            RunState(
                step=self.step,
                loss=self.loss,
                stream=state,
                snapshots=self._feed.snapshots,
                accumulate=self._learner.accumulate,
                recipe=recipe(self._config),
            ),
            trained,
            record_of(self._config, trained.finished, self._feed, self.step),
            self._config.checkpoint.keep,
        )
        self.folder = saved.folder

    def _begin_anew(self, before: int) -> None:
        if self._ranks.first:
            self._save(self._out / NEXT, self._feed.state_dict())
            begin.set_aside(self._out, before, self._terminal)
        self._ranks.wait()


def _usable(source: Iterator[Batch], epoch_rows: int, cache: str) -> Iterator[Batch]:
    """The batches of `source`, as long as there is anything to learn from them."""
    seen = good = 0
    for batch in source:
        seen += len(batch.rows)
        good += int(batch.weight.count_nonzero())
        if seen >= epoch_rows and not good:
            raise CacheError(
                f"{cache}: no row of an epoch is good in every teacher's set, so there is "
                "nothing to train on; `teachonce verify` counts the bad ones"
            )
        yield batch
