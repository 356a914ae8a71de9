"""How long the loss takes, forward and backward, beside the speed at which memory can be copied.

The bytes counted are those of one pass: predictions and codes read once, gradients written once.
What the GPU can copy in the same run, read and written, is what they are held to. Each way's error
against float64, on some of the rows, stands beside its time; all ways are timed in turn in each
repeat, over three sets of inputs so that no cache holds them.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from infra.devices import pick_device, synchronise
from infra.terminal import Terminal
from schemas.options import BenchOptions
from trainer.loss_cases import Case, Given, cases, made_up
from trainer.loss_providers import TERMS, Provider, providers
from trainer.losses import twin
from trainer.losses.cls_op import cls_losses
from trainer.losses.meet import meet
from trainer.losses.op import Impl
from trainer.losses.told import Told

GPU_CHANNELS, CPU_CHANNELS = (1024, 1280, 1536), (256,)
GPU_ROWS, CPU_ROWS = 256, 2
GRID = 16
"""The smaller one."""
SETS = 3
RUN_MS = 100
"""Each repeat takes at least so long on a GPU."""
CHECKED_ROWS = 2
COPY_BYTES = 2**30
MASKING = ("compile_lossgrad", "ours_twin", "ours")
"""Ways that know of masks."""


def measure(options: BenchOptions, terminal: Terminal) -> list[dict[str, object]]:
    """A row for each case and way, after one for the copy."""
    device = pick_device().value
    bench = LossBench(device, options, terminal, providers(device))
    rows = [bench.copy_row()]
    channels = options.channels or (GPU_CHANNELS if device == "cuda" else CPU_CHANNELS)
    for case in cases(channels, options.grid or GRID):
        rows += bench.rows(case)
    return [*rows, *bench.cls_rows()]


class LossBench:
    """Inputs and clocks of one device."""

    def __init__(
        self,
        device: str,
        options: BenchOptions,
        terminal: Terminal,
        ways: Mapping[str, Provider],
    ) -> None:
        self._device, self._terminal, self._providers = device, terminal, ways
        self._repeats = options.repeats
        self._rows = options.batch_size or (GPU_ROWS if device == "cuda" else CPU_ROWS)
        self._dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._copied = 0.0

    def copy_row(self) -> dict[str, object]:
        """Bytes read and written a second by a copy on the device."""
        source = torch.empty(
            COPY_BYTES // (1 if self._device == "cuda" else 16),
            dtype=torch.uint8,
            device=self._device,
        )
        target = torch.empty_like(source)
        times = [self._time(lambda: target.copy_(source)) for _ in range(self._repeats)]
        self._copied = 2 * source.numel() / statistics.median(times)
        return {"case": "copy", "gb_per_s": round(self._copied / 1e9, 1)}

    def rows(self, case: Case) -> list[dict[str, object]]:
        """A row for each way that there is."""
        # Another shape of the same code would be compiled for any shape, and the ninth not at all.
        torch.compiler.reset()
        sets = [made_up(case, self._rows, self._dtype, self._device, seed) for seed in range(SETS)]
        names = self._taking_part(case)
        errors = {name: self._error(self._providers[name], sets[0]) for name in names}
        torch.compiler.reset()
        times: dict[str, list[float]] = {name: [] for name in names}
        for _, name in itertools.product(range(self._repeats), names):
            turns = _turns(self._providers[name], sets, case.backward)
            times[name].append(self._time(partial(next, turns)))
        rows = []
        for name in names:
            seconds = sorted(times[name])
            speed = case.bytes(sets[0]) / statistics.median(seconds)
            rows.append(
                {
                    "case": str(case),
                    "way": name,
                    "rows": self._rows,
                    "ms": round(1e3 * statistics.median(seconds), 4),
                    "fastest_ms": round(1e3 * seconds[0], 4),
                    "slowest_ms": round(1e3 * seconds[-1], 4),
                    "share_of_copy": float(f"{speed / self._copied:.4g}"),
                    "peak_mb": self._peak_mb(self._providers[name], case, sets[0]),
                    **errors[name],
                }
            )
            self._terminal.say("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
        return rows

    def cls_rows(self) -> list[dict[str, object]]:
        """The CLS losses of three teachers at once, and a backward that has nothing to scale."""
        widths = GPU_CHANNELS if self._device == "cuda" else (64, 128, 256)
        predictions = [
            torch.randn((self._rows, 1, w), device=self._device, dtype=self._dtype).requires_grad_()
            for w in widths
        ]
        told = [Told("float", p.detach().half().flip(0), p.shape[2]) for p in predictions]
        ones = torch.ones(self._rows, device=self._device)
        total, scales = ones.sum(), torch.ones(len(widths), device=self._device)
        impl: Impl = "triton" if "ours" in self._providers else "twin"

        def losses() -> Tensor:
            return cls_losses(predictions, told, ones, total, scales, False, impl)[0]

        def both_ways() -> None:
            for each in predictions:
                each.grad = None
            losses().sum().backward()  # type: ignore[no-untyped-call]

        with torch.no_grad():
            forward = self._time(losses)
        both = self._time(both_ways)
        return [
            {
                "case": f"CLS of 3 teachers{what}",
                "way": impl,
                "rows": self._rows,
                "ms": round(1e3 * s, 4),
            }
            for what, s in ((", forward alone", forward), ("", both))
        ]

    def _taking_part(self, case: Case) -> list[str]:
        """The kernel of two grids is for those alone."""
        names = list(self._providers)
        if case.mine == case.theirs and "ours_fused" in names:
            names.remove("ours_fused")
        if case.masked:
            names = [name for name in names if name in MASKING]
        return names

    def _error(self, provider: Provider, given: Given) -> dict[str, object]:
        """Of the loss and, in relative root mean square, of its gradient, against float64."""
        some = slice(CHECKED_ROWS)
        told, weight = given.told, given.weight[some]
        scales = None if told.scales is None else told.scales[some]
        few = Given(
            given.prediction.detach()[some].clone().requires_grad_(),
            replace(told, values=told.values[some], scales=scales),
            weight,
            weight.sum() / weight.shape[1],
            given.scale,
        )
        loss = provider(few)
        loss.backward()  # type: ignore[no-untyped-call]
        share = 1 / (few.total.double() * weight.shape[1])
        exact = meet(
            twin.loss_and_gradient, few.prediction.detach().double(), few.told,
            *(weight.double(), share, few.scale.double(), TERMS, True),
        )  # fmt: skip
        found = few.prediction.grad
        assert found is not None
        off = (found.double() - exact.gradient).norm() / exact.gradient.norm()
        return {
            "loss_error": float(f"{abs(loss.item() / exact.loss.item() - 1):.2g}"),
            "gradient_error": float(f"{off.item():.2g}"),
        }

    def _time(self, call: Callable[[], object]) -> float:
        """Seconds of one call, the median of as many as a repeat takes."""
        if self._device == "cuda":
            from triton.testing import do_bench_cudagraph

            # From a graph, because starting so short kernels one by one takes longer than they do.
            return float(do_bench_cudagraph(call, rep=RUN_MS, return_mode="median")) / 1e3
        call()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def _peak_mb(self, provider: Provider, case: Case, given: Given) -> float | None:
        """Beyond what it is given."""
        if self._device != "cuda":
            return None
        given.prediction.grad = None
        synchronise(self._device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _once(provider, given, case.backward)
        return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)


def _turns(provider: Provider, sets: Sequence[Given], backward: bool) -> Iterator[None]:
    for given in itertools.cycle(sets):
        _once(provider, given, backward)
        yield


def _once(provider: Provider, given: Given, backward: bool) -> None:
    if not backward:
        with torch.no_grad():
            provider(given)
        return
    given.prediction.grad = None
    provider(given).backward()  # type: ignore[no-untyped-call]
