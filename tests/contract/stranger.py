"""Reads a cache as somebody would who has only schemas/FORMAT.md: none of our code is imported.

    python stranger.py CACHE ROWS DECODED

Checks every seal, sum and count, recomputes ROWS rows of each feature set from the pictures, and
prints what it found as JSON. The folder DECODED gets those rows' tokens, as they were decoded.
"""

import bisect
import hashlib
import io
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from safetensors.torch import load_file

if torch.version.cuda is None:  # torchvision beside a CPU torch: two operators it only names
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm

Record = dict[str, Any]
FINGERPRINTED = (
    *("library", "model", "arguments_json", "tensors_sha256", "pixel_recipe", "pixel_mean"),
    *("pixel_std", "precision", "patch_pixels", "patch_width", "cls_width", "cls_kind"),
    "pixels_by_grid",
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Cache:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.constants = self.sealed("cache.json")
        assert self.constants["format_version"] == 6
        self.plan, self.generations = self._plan()
        self.superseded = {
            row
            for commit in self.generations
            if commit["superseded"] is not None
            for row in pq.read_table(pa.BufferReader(self.object(commit["superseded"])))[
                "row"
            ].to_pylist()
        }
        self.snapshot, self.shards = self._snapshot()

    def sealed(self, key: str) -> Record:
        """JSON whose last member is the digest of the line without it."""
        line = (self.root / key).read_bytes().removesuffix(b"\n")
        record: Record = json.loads(line)
        member = f',"sha256":"{record["sha256"]}"}}'.encode()
        assert line.endswith(member), key
        assert sha256(line.removesuffix(member) + b"}") == record["sha256"], key
        return record

    def object(self, record: Record) -> bytes:
        data = (self.root / record["key"]).read_bytes()
        assert (len(data), sha256(data)) == (record["size"], record["sha256"]), record["key"]
        return data

    def _plan(self) -> tuple[list[Record], list[Record]]:
        rows: list[Record] = []
        generations = []
        while (self.root / f"commits/plan/{len(generations):06d}.json").exists():
            commit = self.sealed(f"commits/plan/{len(generations):06d}.json")
            assert commit["first_row"] == len(rows)
            for part in commit["parts"]:
                rows += pq.read_table(pa.BufferReader(self.object(part))).to_pylist()
            views = commit["views"]["per_image"] - commit["first_view"]
            assert len(rows) == commit["first_row"] + commit["images"] * views
            self._check_order(commit, rows[commit["first_row"] :])
            generations.append(commit)
        return rows, generations

    def _check_order(self, commit: Record, rows: list[Record]) -> None:
        """Images in the order of their keyed hash; spans view-major."""
        secret = bytes.fromhex(self.constants["order_key"])

        def place(key: str) -> tuple[int, str]:
            digest = hashlib.blake2b(key.encode(), digest_size=8, key=secret).digest()
            return int.from_bytes(digest, "little"), key

        keys = sorted({row["key"] for row in rows}, key=place)
        expected: list[tuple[str, int]] = []
        for first in range(0, len(keys), commit["span_images"]):
            span = keys[first : first + commit["span_images"]]
            views = range(commit["first_view"], commit["views"]["per_image"])
            expected += [(key, view) for view in views for key in span]
        assert [(row["key"], row["view"]) for row in rows] == expected

    def _snapshot(self) -> tuple[Record, list[Record]]:
        newest = max((self.root / "commits/snapshots").glob("*.json")).name
        snapshot = commit = self.sealed(f"commits/snapshots/{newest}")
        lines = pq.read_table(pa.BufferReader(self.object(commit["table"]))).to_pylist()
        while commit["parent"] is not None:
            commit = self.sealed(f"commits/snapshots/{commit['parent']:06d}.json")
            lines += pq.read_table(pa.BufferReader(self.object(commit["table"]))).to_pylist()
        last = {(line["set"], line["generation"], line["shard"]): line for line in reversed(lines)}
        assert len(last) == snapshot["shards"]
        return snapshot, list(last.values())

    def check_set(self, path: str) -> tuple[Record, Record]:
        """A set's teacher and codec, each what its path says."""
        _, fp12, grid, codec_name = path.split("/")
        teacher = self.sealed(f"teachers/{fp12}/teacher.json")
        parts = json.dumps({name: teacher[name] for name in FINGERPRINTED}, sort_keys=True)
        assert sha256(parts.encode()) == teacher["fingerprint"]
        assert teacher["fingerprint"][:12] == fp12
        codec = self.sealed(f"{path}/codec.json")
        digest = sha256((self.root / path / "codec.json").read_bytes())
        assert codec_name == f"{label(codec)}-{digest[:8]}"
        measured = self.sealed(f"features/{fp12}/{grid}/calibration.json")
        self._check_codec(codec, measured["tokens_shape"])
        for kind in ("tokens", "cls"):
            mean = np.array(measured[kind]["mean"])
            std = np.sqrt(measured[kind]["variance"])
            self._check_covariance(measured, kind)
            constant = std <= 1e-6 * np.sqrt(np.mean(mean**2 + std**2))
            np.testing.assert_array_equal(np.float32(codec[kind]["mean"]), np.float32(mean))
            expected = np.float32(np.where(constant, 1, std))
            np.testing.assert_array_equal(np.float32(codec[kind]["std"]), expected)
        return teacher, codec

    def _check_codec(self, codec: Record, shape: Record) -> None:
        """It is what the measurement gives, and has just what its kind needs."""
        kind, rotation = codec["tokens_codec"], codec["rotation"]
        assert codec["axes"] == (None if rotation == "none" else shape["axes"])
        assert min(*shape["principal"], *shape["own"]) >= 0
        width = len(shape["own"])
        for column in ("pca", "hadamard"):
            basis = self.basis(shape["axes"], column)
            np.testing.assert_allclose(basis @ basis.T, np.eye(width), atol=1e-4)
        if kind != "variable":
            assert codec["bits"] is codec["spreads"] is codec["frequencies"] is None
            return
        wide = {
            "none": shape["own"],
            "pca": shape["principal"],
            "hadamard": [sum(shape["own"]) / width] * width,
        }[rotation]
        assert codec["spreads"] == [round(32 * math.log2(max(v, 2.0**-16))) for v in wide]
        assert len(codec["frequencies"]) == 30
        for table in codec["frequencies"]:
            assert len(table) == 128
            assert table[0] + 2 * sum(table[1:]) == 2**15

    def basis(self, record: Record, rotation: str) -> np.ndarray:
        """[channels, channels], a row each."""
        table = pq.read_table(pa.BufferReader(self.object(record)))
        return np.array(table[rotation].to_pylist()) * 2.0**-18

    def _check_covariance(self, measured: Record, kind: str) -> None:
        data = self.object(measured[f"{kind}_covariance"])
        matrix = np.array(pq.read_table(pa.BufferReader(data))["covariance"].to_pylist())
        assert (matrix == matrix.T).all()
        assert np.diagonal(matrix).tolist() == measured[kind]["variance"]
        assert np.linalg.eigvalsh(matrix).min() > -1e-6 * np.trace(matrix)

    def check_shard(self, line: Record) -> list[Record]:
        """Every sum that a commit names; returns the CLS table's lines."""
        name = f"{line['generation']:06d}/{line['shard'] // 1024}/{line['shard']}.json"
        commit = self.sealed(f"commits/{line['set']}/{name}")
        sealed = (self.root / f"commits/{line['set']}/{name}").read_bytes()
        assert sha256(sealed) == line["commit_sha256"]
        folder = self.root / line["set"]
        array = (folder / f"{line['generation']:06d}/tokens/zarr.json").read_bytes()
        assert sha256(array) == commit["array_sha256"]
        assert sha256((folder / "codec.json").read_bytes()) == commit["codec_sha256"]
        tokens = self.object(commit["tokens"])
        told: list[Record] = pq.read_table(pa.BufferReader(self.object(commit["cls"]))).to_pylist()
        first = self.generations[line["generation"]]["first_row"] + line["first_row"]
        planned = self.plan[first : first + line["rows"]]
        assert [row["row"] for row in told] == list(range(first, first + line["rows"]))
        assert [(r["key"], r["view"]) for r in told] == [(r["key"], r["view"]) for r in planned]
        assert [row["status"] for row in told].count("bad") == commit["bad"] == line["bad"]
        assert commit["ok"] + commit["bad"] == commit["rows"] == len(told)
        per_shard = json.loads(array)["chunk_grid"]["configuration"]["chunk_shape"][0]
        index = np.frombuffer(tokens, "<u8", 2 * per_shard).reshape(-1, 2).tolist()
        for row, (start, length) in zip(told, index):
            end = min(start + length, len(tokens))
            crc = int.from_bytes(tokens[end - 4 : end], "little")
            assert row["tokens_crc32c"] == (crc if row["status"] == "ok" else None)
        assert all((row["status"] == "bad") == bool(row["reason"]) for row in told)
        return told


def label(codec: Record) -> str:
    bits = "" if codec["bits"] is None else f"{codec['bits']:g}"
    rotation = "" if codec["rotation"] == "none" else f".{codec['rotation']}"
    return f"{codec['tokens_codec']}{bits}{rotation}"


class Decoder:
    """Of a set's tokens."""

    def __init__(self, cache: Cache, codec: Record, tokens: int) -> None:
        self.codec, self.tokens = codec, tokens
        self.channels = len(codec["tokens"]["mean"])
        self.basis = None
        if codec["rotation"] != "none":
            self.basis = cache.basis(codec["axes"], codec["rotation"])

    def turned(self, stored: np.ndarray) -> np.ndarray:
        """Float32 [tokens, channels] of a row, in the basis that it is stored in."""
        match self.codec["tokens_codec"]:
            case "fp16":
                return stored.astype(np.float32)
            case "variable":
                return self._varying(stored[0])
            case _:
                return self._even(stored[0])

    def standardised(self, turned: np.ndarray) -> np.ndarray:
        return turned if self.basis is None else turned @ self.basis

    def _even(self, row: np.ndarray) -> np.ndarray:
        is_int8 = self.codec["tokens_codec"] == "int8"
        size = self.channels if is_int8 else (self.channels + 1) // 2
        scales_at = self.tokens * size + self.tokens * size % 2
        assert len(row) == scales_at + 2 * self.tokens
        assert not row[self.tokens * size : scales_at].any()
        stored = row[: self.tokens * size].reshape(self.tokens, size)
        if is_int8:
            codes = stored.view(np.int8).astype(int)
        else:
            halves = np.concatenate([stored & 15, stored >> 4], axis=1)
            assert (halves > 0).all()
            assert (halves[:, self.channels :] == 8).all()
            codes = halves[:, : self.channels].astype(int) - 8
        assert np.abs(codes).max() <= (127 if is_int8 else 7)
        scales = row[scales_at:].view("<f2").astype(np.float32)
        return scales[:, None] * codes.astype(np.float32)

    def _varying(self, row: np.ndarray) -> np.ndarray:
        most = min(128, self.tokens, max(1, self.tokens * self.channels // 512))
        lanes = max(1 << power for power in range(8) if 1 << power <= most)
        words_at = 4 + 4 * lanes + self.tokens + self.tokens % 2
        least = -(-(words_at + 2 * lanes) // 4)
        bits = self.codec["bits"] * self.tokens * self.channels
        assert len(row) == 4 * max(least, math.floor(bits) // 32)
        step = int(row[:4].view("<i4")[0])
        states = row[4 : 4 + 4 * lanes].view("<i4").tolist()
        scales = row[4 + 4 * lanes : 4 + 4 * lanes + self.tokens].astype(np.float64)
        words = iter(row[words_at:].view("<u2").tolist())
        own = [max(step, spread - 256) for spread in self.codec["spreads"]]
        pairs = zip(self.codec["spreads"], own)
        tables = [min(29, max(0, (spread - e + 8) // 16 + 13)) for spread, e in pairs]
        codes = self._codes(states, tables, words)
        assert not any(words)
        scale = np.where(scales > 0, 2 ** ((scales - 128) / 8), 0).astype(np.float32)
        steps = (2 ** (np.array(own) / 64)).astype(np.float32)
        return scale[:, None] * steps * codes.astype(np.float32)

    def _codes(self, states: list[int], tables: list[int], words: Iterator[int]) -> np.ndarray:
        codes = np.zeros((self.tokens, self.channels), np.int8)
        shares = [[*reversed(table[1:]), *table] for table in self.codec["frequencies"]]
        starts = [[0, *itertools.accumulate(table)] for table in shares]
        for first in range(0, self.tokens, len(states)):
            for channel, table in enumerate(tables):
                if table == 0:
                    continue
                for token in range(first, min(first + len(states), self.tokens)):
                    lane = token - first
                    slot = states[lane] % 2**15
                    place = bisect.bisect_right(starts[table], slot) - 1
                    share, start = shares[table][place], starts[table][place]
                    states[lane] = share * (states[lane] // 2**15) + slot - start
                    if states[lane] < 2**15:
                        states[lane] = 2**16 * states[lane] + next(words)
                    codes[token, channel] = place - 127
        # Where encoding began: all that was written has been read.
        assert states == [2**15] * len(states)
        return codes


def square(data: bytes, row: Record, views: Record, side: int) -> np.ndarray:
    """Pixel recipe 1."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    orientation = picture.getexif().get(0x0112, 1)
    if picture.mode == "I;16":
        values = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray(((255 * values + 32767) // 65535).astype(np.uint8))
    elif picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, rgba)
    picture = picture.convert("RGB")
    picture.getexif()[0x0112] = orientation
    picture = ImageOps.exif_transpose(picture)
    width, height = picture.size
    left, top, w, h, mirrored = 0, 0, width, height, False
    if row["draw_scale"] is not None:
        low, high = views["crop_scale"]
        area = (low + (high - low) * row["draw_scale"]) * width * height
        aspect = math.exp((2 * row["draw_ratio"] - 1) * math.log(4 / 3))
        w = min(width, max(1, round(math.sqrt(area * aspect))))
        h = min(height, max(1, round(math.sqrt(area / aspect))))
        left = math.floor(row["draw_x"] * (width - w + 1))
        top = math.floor(row["draw_y"] * (height - h + 1))
        mirrored = views["flip"] and row["draw_flip"] < 0.5
    crop = picture.crop((left, top, left + w, top + h))
    crop = crop.resize((side, side), Image.Resampling.BICUBIC)
    crop = ImageOps.mirror(crop) if mirrored else crop
    return np.asarray(crop if row["draw_jitter"] is None else coloured(crop, row, views, side))


def coloured(picture: Image.Image, row: Record, views: Record, side: int) -> Image.Image:
    """A view's colours."""
    strength = views["photometric"]["color_jitter"]

    def factor(share: float, name: str) -> float:
        return 1 + share * (2 * row[f"draw_{name}"] - 1)

    if row["draw_jitter"] < 0.8:
        picture = ImageEnhance.Brightness(picture).enhance(factor(strength, "brightness"))
        picture = ImageEnhance.Contrast(picture).enhance(factor(strength, "contrast"))
        picture = ImageEnhance.Color(picture).enhance(factor(strength / 2, "saturation"))
        steps = round(255 * (strength / 4) * (2 * row["draw_hue"] - 1))
        if steps:
            hue, *others = picture.convert("HSV").split()
            turned = (np.asarray(hue).astype(int) + steps) % 256
            bands = [Image.fromarray(turned.astype(np.uint8)), *others]
            picture = Image.merge("HSV", bands).convert("RGB")
    if row["draw_blur"] < views["photometric"]["blur"]:
        radius = (0.1 + 1.9 * row["draw_blur_radius"]) * side / 224
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    if row["draw_solarize"] < views["photometric"]["solarize"]:
        values = np.asarray(picture)
        picture = Image.fromarray(np.where(values >= 128, 255 - values, values))
    return picture


def load_model(teacher: Record) -> torch.nn.Module:
    arguments = {"num_classes": 0, **json.loads(teacher["arguments_json"])}
    if teacher["cls_kind"] == "class_token":
        arguments["dynamic_img_size"] = True
    model: torch.nn.Module = timm.create_model(teacher["model"], **arguments)
    model.load_state_dict(load_file(teacher["weights"]))
    return model.eval()


@torch.inference_mode()
def features(model: Any, teacher: Record, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CLS [width] and tokens [tokens, width] of one square."""
    fed = (torch.tensor(rgb) / 255 - torch.tensor(teacher["pixel_mean"])) / torch.tensor(
        teacher["pixel_std"]
    )
    out = model.forward_features(fed.permute(2, 0, 1)[None])
    if out.ndim == 4:
        return model.forward_head(out, pre_logits=True)[0].numpy(), out[0].flatten(1).T.numpy()
    return out[0, 0].numpy(), out[0, model.num_prefix_tokens :].numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def check_probe(cache: Cache, path: str, teacher: Record, model: Any) -> None:
    """What the teacher says of the two synthetic pictures."""
    _, fp12, folder, _ = path.split("/")
    grid = int(folder[1:])
    side = grid * teacher["patch_pixels"]
    kept = cache.sealed(f"features/{fp12}/{folder}/probe.json")["pictures"]
    y, x = np.mgrid[:side, :side]
    noise = hashlib.shake_256(b"teachonce probe").digest(side * side * 3)
    slow = (255 * x // side, 255 * y**2 // side**2, 255 * (x + 2 * y) // (3 * side))
    pictures = [np.frombuffer(noise, np.uint8).reshape(side, side, 3), np.stack(slow, axis=-1)]
    places = [i * (grid - 1) // 3 * grid + c * (grid - 1) // 3 for i, c in enumerate((1, 3, 0, 2))]
    for told, picture in zip(kept, pictures, strict=True):
        cls, tokens = features(model, teacher, picture.astype(np.uint8))
        assert cosine(np.array(told["cls"]), cls) > 0.9999
        assert cosine(np.array(told["tokens"]).ravel(), tokens[places].ravel()) > 0.9999


def check_rows(cache: Cache, path: str, wanted: int, out: Path) -> list[Record]:
    """Recompute some good rows of a set: unusual pictures first, then a spread of the others."""
    teacher, codec = cache.check_set(path)
    grid = int(path.split("/")[2][1:])
    side, decoder = grid * teacher["patch_pixels"], Decoder(cache, codec, grid**2)
    model = load_model(teacher)
    lines = [line for line in cache.shards if line["set"] == path]
    arrays = {
        generation: zarr.open_array(cache.root / path / f"{generation:06d}" / "tokens", mode="r")
        for generation in {line["generation"] for line in lines}
    }
    told = [(line["generation"], row) for line in lines for row in cache.check_shard(line)]
    assert sorted(row["row"] for _, row in told) == list(range(len(cache.plan)))
    for generation, row in told:
        stored = arrays[generation][row["row"] - cache.generations[generation]["first_row"]]
        empty = stored == 0 if stored.dtype == np.uint8 else np.isnan(stored)
        assert empty.all() == (row["status"] == "bad")
        assert stored.dtype == np.uint8 or empty.any() == empty.all()
    good = [
        (generation, row)
        for generation, row in told
        if row["status"] == "ok" and row["row"] not in cache.superseded
    ]
    check_probe(cache, path, teacher, model)
    good.sort(key=lambda item: (item[1]["key"][0].isdigit(), item[1]["image_sha256"]))
    found, turned, standardised = [], [], []
    for generation, row in good[:wanted]:
        plan = cache.generations[generation]
        data = Path(plan["source"], row["key"]).read_bytes()
        assert hashlib.sha256(data).digest() == row["image_sha256"]
        rgb = square(data, cache.plan[row["row"]], plan["views"], side)
        same = hashlib.sha256(np.ascontiguousarray(rgb)).digest() == row["pixels_sha256"]
        cls, tokens = features(model, teacher, rgb)
        turned.append(decoder.turned(arrays[generation][row["row"] - plan["first_row"]]))
        stored = decoder.standardised(turned[-1])
        standardised.append(stored)
        raw = np.float32(codec["tokens"]["mean"]) + np.float32(codec["tokens"]["std"]) * stored
        raw_cls = np.float32(codec["cls"]["mean"]) + np.float32(codec["cls"]["std"]) * np.float32(
            row["cls"]
        )
        found.append(
            {
                "row": row["row"],
                "key": row["key"],
                "view": row["view"],
                "pixels": same,
                "tokens": min(cosine(a, b) for a, b in zip(raw, tokens)),
                "cls": cosine(raw_cls, cls),
            }
        )
    name = path.replace("/", " ")
    np.savez(out / f"{name}.npz", turned=turned, standardised=standardised)
    return found


def main(root: Path, wanted: int, out: Path) -> None:
    cache = Cache(root)
    paths = sorted({line["set"] for line in cache.shards})
    fp12s = {path.split("/")[1] for path in paths}
    assert fp12s == set(cache.snapshot["teachers"].values())
    result = {path: check_rows(cache, path, wanted, out) for path in paths}
    ours = {"schemas", "infra", "pipeline", "trainer", "teachonce", "tests"}
    assert not ours & {name.partition(".")[0] for name in sys.modules}
    live = len(cache.plan) - len(cache.superseded)
    print(json.dumps({"rows": live, "superseded": len(cache.superseded), "sets": result}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
