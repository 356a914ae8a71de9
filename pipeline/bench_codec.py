"""What each codec and rotation costs in bytes and in truth, and how fast it is; beside them what a
general lossless compressor makes of the same rows.

A codec is calibrated on one half of the pictures, as an extraction does it, and judged on the
other: how near decoded tokens are to the exact ones, standardised, and how far their distortion is
from the least that normally distributed tokens of the same covariance can have at as many bits
(reverse water-filling: Cover and Thomas, Elements of Information Theory, 10.3.3). Encoding is timed
with the comparison that an extraction makes of every row, decoding to the float32 tokens that a
student learns from. All methods are timed in turn in each repeat, on the same rows.

What is not normally distributed can be stored in less than that bound says: a network that ends in
a ReLU repeats one value in a channel wherever it is silent, which a lossless compressor finds.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numcodecs import Blosc, Zstd
from torch import Tensor

from infra.codec.codec import TokenCodec
from infra.devices import pick_device, synchronise
from infra.terminal import Terminal
from pipeline.bench_features import Bound, Features, features
from pipeline.codec_fit import fitted
from pipeline.encode import Encoded, encode_standardised
from pipeline.moments import MomentsMeter
from schemas import shard
from schemas.codec import codec_label
from schemas.extract_config import CodecChoice
from schemas.names import BLOCK_ROWS
from schemas.options import BenchOptions

BATCH = 64
"""Rows of one call that is timed, if nothing else is asked for."""
BITS = (2.0, 3.0, 4.0)
ROTATIONS: tuple[Literal["none", "hadamard", "pca"], ...] = ("none", "hadamard", "pca")
COMPRESSORS: dict[str, Any] = {
    "zstd": Zstd(level=3),
    "blosc": Blosc(cname="zstd", clevel=3, shuffle=Blosc.BITSHUFFLE),
}
"""Over each row by itself, as it is read."""


@dataclass(frozen=True)
class Method:
    """A codec, and perhaps a lossless compressor over what it stores."""

    name: str
    codec: TokenCodec
    compressor: Any = None

    def encode(self, exact: Tensor, pool: ThreadPoolExecutor) -> tuple[Encoded, list[bytes]]:
        encoded = encode_standardised(self.codec, None, exact)
        if self.compressor is None:
            return encoded, []
        return encoded, list(pool.map(self.compressor.encode, encoded.tokens))

    def decode(self, stored: Tensor | list[bytes], tokens: int, pool: ThreadPoolExecutor) -> Tensor:
        """float32 [rows, tokens, channels]"""
        if isinstance(stored, list):
            form = self.codec.row_form(tokens)
            rows = [
                shard.rows_from(body, form)[0] for body in pool.map(self.compressor.decode, stored)
            ]
            stored = torch.from_numpy(np.stack(rows)).to(pick_device().value)
        return self.codec.decode(stored, tokens)


@torch.inference_mode()
def measure(options: BenchOptions, terminal: Terminal) -> list[dict[str, object]]:
    """A row for each method on each set of features. Raises ConfigError of what cannot be read."""
    device = pick_device()
    terminal.decide("device", *device)
    threads = torch.get_num_threads()
    batch = options.batch_size or BATCH
    results: list[dict[str, object]] = []
    distortions: dict[tuple[str, str], float] = {}
    with ThreadPoolExecutor(threads) as pool:
        for found in features(options):
            methods, exact = calibrated(found, device.value)
            terminal.say(f"{found.name}: {len(methods)} methods over {len(exact)} rows held out")
            speeds = _speeds(methods, exact[:batch], options.repeats, pool, found.name, terminal)
            least = Bound.of(exact)
            for method in methods:
                told = _figures(method, exact, least, pool)
                distortion = distortions[found.name, method.name] = told.pop("distortion")
                if found.clean is not None:
                    clean = distortions[found.clean, method.name]
                    told["db_to_clean"] = round(_decibels(distortion / clean), 2)
                results.append(
                    {
                        "case": f"{found.name}: {len(exact)} rows held out, {exact.shape[1]} "
                        f"tokens, {exact.shape[2]} channels",
                        "codec": method.name,
                        **told,
                        **speeds[method.name],
                        "device": f"{device.value}, {threads} threads",
                        "rows_a_call": len(exact[:batch]),
                    }
                )
    return results


def calibrated(found: Features, device: str) -> tuple[list[Method], Tensor]:
    """Every method, and the tokens held out, standardised as it takes them."""
    meter = MomentsMeter(found.measured.shape[2])
    for batch in torch.split(found.measured, BLOCK_ROWS):
        meter.add(batch.to(device))
    methods = []
    for choice, codec in fitted(meter, choices()):
        methods.append(Method(codec_label(choice), codec))
        if choice.tokens in ("fp16", "int8") and codec.record.rotation == "none":
            methods += [
                Method(f"{codec_label(choice)} + {name}", codec, compressor)
                for name, compressor in COMPRESSORS.items()
            ]
    affine = methods[0].codec.record.tokens
    mean, std = (torch.tensor(values) for values in (affine.mean, affine.std))
    return methods, ((found.held_out - mean) / std).to(device)


def choices() -> Iterator[CodecChoice]:
    yield CodecChoice(tokens="fp16")
    for rotation in ROTATIONS:
        yield CodecChoice(tokens="int8", rotation=rotation)
    for rotation in ROTATIONS:
        yield CodecChoice(tokens="int4", rotation=rotation)
    for bits in BITS:
        for rotation in ROTATIONS:
            yield CodecChoice(tokens="variable", bits=bits, rotation=rotation)


def _figures(
    method: Method, exact: Tensor, least: Bound, pool: ThreadPoolExecutor
) -> dict[str, Any]:
    """What is stored of all rows, and how far it is from them. Tokens of zeros have no direction,
    and are left out."""
    count, channels = exact.shape[1:]
    stored_bytes = 0
    cosines, distortions, rms, saturated = [], [], [], []
    for rows in torch.split(exact, BATCH):
        encoded, compressed = method.encode(rows, pool)
        stored_bytes += sum(map(len, compressed)) if compressed else encoded.tokens.nbytes
        decoded = method.codec.decode(torch.from_numpy(encoded.tokens).to(rows.device), count)
        sizes = rows.square().sum(-1)
        changed = (rows - decoded).square().sum(-1)
        alive = sizes > 0
        distortions.append((changed[alive] / sizes[alive]).cpu())
        cosines.append(torch.cosine_similarity(rows, decoded, dim=-1)[alive].cpu())
        rms.append(encoded.relative_rms)
        saturated.append(encoded.saturated)
    per_token = stored_bytes / (len(exact) * count)
    cosine = torch.cat(cosines).double().numpy()
    distortion = float(torch.cat(distortions).double().mean())
    return {
        "bytes_per_token": round(per_token, 2),
        "share_of_fp16": round(per_token / (2 * channels), 4),
        "bits_per_value": round(8 * per_token / channels, 3),
        "cosine_mean": round(float(cosine.mean()), 6),
        "cosine_p1": round(float(np.percentile(cosine, 1)), 6),
        "relative_rms": round(float(np.sqrt(np.mean(np.square(np.concatenate(rms))))), 6),
        "saturated": round(float(np.mean(np.concatenate(saturated))), 6),
        "gap_db": round(_decibels(distortion / least.distortion(8 * per_token)), 2),
        "distortion": distortion,
    }


def _speeds(
    methods: list[Method],
    exact: Tensor,
    repeats: int,
    pool: ThreadPoolExecutor,
    name: str,
    terminal: Terminal,
) -> dict[str, dict[str, float]]:
    """Of each method, medians; the first repeat is not counted."""
    count = exact.shape[1]
    runs: dict[str, list[tuple[float, ...]]] = {method.name: [] for method in methods}
    for repeat in range(repeats + 1):
        for method in methods:
            encoding, (encoded, compressed) = _timed(partial(method.encode, exact, pool), exact)
            stored = compressed or torch.from_numpy(encoded.tokens).to(exact.device)
            decoding, _ = _timed(partial(method.decode, stored, count, pool), exact)
            runs[method.name].append((*encoding, *decoding))
        terminal.say(f"{name}: repeat {repeat} of {repeats}")
    return {label: _rates(values[1:], len(exact)) for label, values in runs.items()}


def _rates(runs: list[tuple[float, ...]], rows: int) -> dict[str, float]:
    """CPU time, of all threads, hardly changes when other programs have the cores."""
    encoding, encoding_cpu, decoding, decoding_cpu = map(statistics.median, zip(*runs))
    return {
        "encode_rows_per_s": round(rows / encoding, 1),
        "decode_rows_per_s": round(rows / decoding, 1),
        "encode_cpu_us_per_row": round(encoding_cpu / rows * 1e6, 1),
        "decode_cpu_us_per_row": round(decoding_cpu / rows * 1e6, 1),
    }


def _timed(work: Callable[[], Any], on: Tensor) -> tuple[tuple[float, float], Any]:
    """((seconds, seconds of the CPU), what it returned)"""
    synchronise(on.device.type)
    start, cpu = time.perf_counter(), time.process_time()
    done = work()
    synchronise(on.device.type)
    return (time.perf_counter() - start, time.process_time() - cpu), done


def _decibels(share: float) -> float:
    return 10 * math.log10(share)
