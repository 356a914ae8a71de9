"""The features that `bench codec` measures with, of sets in caches and of known spectra, and the
least distortion that they can be stored with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.catalog import Catalog
from infra.codec.rotation import Float64s
from infra.plan_reader import PlanReader
from infra.store import open_store
from pipeline.bad_rows import sets_named
from pipeline.derive import EXACT
from pipeline.sample import StoredRow, choose, read_rows
from schemas.errors import ConfigError
from schemas.keyed_hash import subkey
from schemas.layout import SetPath
from schemas.measured import Affine, CodecRecord
from schemas.options import BenchOptions
from schemas.sealed import unseal

CHANNELS = 384
TOKENS = 256
SPECTRUM_ROWS = 128
"""At most, of a spectrum: 16,384 tokens to measure it by, and as many to code."""
CLEAN = "1/f"
EXPONENTS = {"white": 0, CLEAN: 1, "1/f^2": 2}
"""The i-th channel's variance is i to minus so much, before all are rotated at random."""
OUTLIER_CHANNELS = (3, 9)
OUTLIER_CHANNEL = 100.0
OUTLIER_TOKENS = 97
"""One token in so many is an outlier."""
OUTLIER_TOKEN = 20.0
_SEED = 1
_LEAST_VARIANCE = 1e-12
"""As a share of the greatest: below, it is rounding."""


@dataclass(frozen=True, eq=False)
class Features:
    """Raw tokens of pictures, none of which is in both halves. float32 [rows, tokens, channels]"""

    name: str
    measured: Tensor
    """What a codec is calibrated on."""
    held_out: Tensor
    """What it is judged by."""
    clean: str | None = None
    """Name of the same features without outliers."""


@dataclass(frozen=True, eq=False)
class Bound:
    """The least mean distortion of tokens of unit spread, each stored by itself, were they normally
    distributed (reverse water-filling)."""

    channels: int
    variances: Float64s
    """Of their covariance along its principal axes, the largest first."""

    @classmethod
    def of(cls, tokens: Tensor) -> "Bound":
        """Of tokens [rows, tokens, channels], standardised, each brought to unit spread."""
        channels = tokens.shape[2]
        vectors = tokens.reshape(-1, channels).cpu().double().numpy()
        spreads = np.sqrt(np.mean(np.square(vectors), axis=1))
        unit = vectors[spreads > 0] / spreads[spreads > 0, None]
        variances = np.linalg.eigvalsh(np.cov(unit, rowvar=False, bias=True))[::-1]
        return cls(channels, variances[variances > _LEAST_VARIANCE * variances[0]])

    def distortion(self, bits: float) -> float:
        """As a share of a token's square, at so many bits a token."""
        # With the k widest axes coded, all to the same error, the error is levels[k - 1].
        logs = np.log2(self.variances)
        levels = np.exp2((np.cumsum(logs) - 2 * bits) / np.arange(1, len(logs) + 1))
        level = levels[np.flatnonzero(self.variances > levels)[-1]]
        return float(np.minimum(self.variances, level).sum() / self.channels)


def features(options: BenchOptions) -> Iterator[Features]:
    """One after the other, so that memory holds one: sets of caches, then spectra.

    Raises:
        ConfigError: a cache holds nothing to measure with.
    """
    caches = (*((options.cache,) if options.cache else ()), *options.caches)
    for cache in caches:
        yield from _of_cache(cache, options)
    for name, exponent in EXPONENTS.items():
        yield spectrum(name, exponent, min(options.sample, SPECTRUM_ROWS))
    rows = min(options.sample, SPECTRUM_ROWS)
    yield spectrum(f"{CLEAN} with outliers", EXPONENTS[CLEAN], rows, has_outliers=True)


def spectrum(name: str, exponent: float, rows: int, has_outliers: bool = False) -> Features:
    """Normally distributed tokens; the same with outliers as without, but for those."""
    random = torch.Generator().manual_seed(_SEED)
    widths = torch.arange(1, CHANNELS + 1) ** (-exponent / 2)
    rotation, _ = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=random))
    tokens = torch.randn(rows * TOKENS, CHANNELS, generator=random) * widths @ rotation.T
    if has_outliers:
        tokens[:, list(OUTLIER_CHANNELS)] *= OUTLIER_CHANNEL
        tokens[::OUTLIER_TOKENS] *= OUTLIER_TOKEN
    measured, held_out = torch.split(
        tokens.reshape(rows, TOKENS, CHANNELS), [rows - rows // 2, rows // 2]
    )
    return Features(name, measured, held_out, CLEAN if has_outliers else None)


def _of_cache(url: str, options: BenchOptions) -> Iterator[Features]:
    """Of the newest snapshot's sets that are stored as float16 and asked for."""
    store = open_store(url, options.store)
    catalog = Catalog(store)
    number = catalog.latest_snapshot()
    if number is None:
        raise ConfigError(f"{url}: no snapshot yet: run extract to its end first")
    snapshot = catalog.snapshot(number)
    commits = catalog.generations(snapshot.commit.generations)[: snapshot.commit.generations]
    plans = [PlanReader(store, commit) for commit in commits]
    superseded = catalog.superseded(commits)
    names = {fp12: name for name, fp12 in snapshot.commit.teachers.items()}
    key = subkey(bytes.fromhex(catalog.record.order_key), "bench-codec")
    there = [SetPath.parse(text) for text in sorted(sets_named(snapshot))]
    asked = [path for path in there if _is_asked(path, names[path.fingerprint12], options)]
    if not asked:
        found = (f"{names[p.fingerprint12]} grid {p.grid} as {p.codec_label}" for p in there)
        raise ConfigError(
            f"{url}: no set to measure with: codecs are compared with what is stored as fp16, of "
            f"the --teacher and at the --grid asked for; it holds {', '.join(found) or 'no set'}"
        )
    sets = np.asarray(snapshot.table["set"])
    for path in asked:
        lines = snapshot.table.filter(sets == str(path))
        rows = [
            row
            for line, places in choose(store, lines, plans, superseded, options.sample, key)
            for row in read_rows(store, plans[line["generation"]], line, places, superseded)
        ]
        record = unseal(store.get(path.codec_json), CodecRecord, path.codec_json)
        name = f"{url.rstrip('/').rpartition('/')[2]} {names[path.fingerprint12]} g{path.grid}"
        yield Features(name, *_halves(url, rows, record.tokens))


def _is_asked(path: SetPath, name: str, options: BenchOptions) -> bool:
    is_named = "teacher" not in options.model_fields_set or options.teacher == name
    return is_named and options.grid in (None, path.grid) and path.codec_label == EXACT


def _halves(url: str, rows: Iterable[StoredRow], stored: Affine) -> tuple[Tensor, Tensor]:
    """Every other picture in each half, with all its views."""
    turns: dict[str, int] = {}
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    mean, std = (torch.tensor(values) for values in (stored.mean, stored.std))
    for row in rows:
        turn = turns.setdefault(row.key, len(turns))
        halves[turn % 2].append(torch.from_numpy(row.tokens.astype(np.float32)) * std + mean)
    if len(turns) < 2:
        raise ConfigError(
            f"{url}: {len(turns)} pictures; at least two are needed, one to "
            "calibrate by and one to judge by"
        )
    measured, held_out = halves
    return torch.stack(measured), torch.stack(held_out)
