"""What the steps found, as results.json and as the Markdown tables of README.md.

python -m infra.recipes.cifar10.table [runs/cifar10]
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from infra.durable import replace_file

ROWS = {
    "untrained": "student, untrained",
    "classes": "expert `classes`: told the labels, 64 px",
    "turns": "expert `turns`: by which quarter a picture was turned, 48 px",
    "instances": "expert `instances`: which two crops are of one picture, 32 px",
    "proxy": "**proxy**, from the three experts",
    "direct": "student from the three experts, no proxy",
    "fixed-0": "student from the proxy, one grid",
    "online-0": "the same with the proxy run in the loop",
    "multires": "**student from the proxy, then several grids**",
    "fixed-0-at-2": "one grid, shown 32 px",
    "multires-at-2": "several grids, shown 32 px",
}
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Number of seeds -> 97.5 % point of Student's t with one degree of freedom less."""
Results = dict[str, dict[str, Any]]
"""By step: `seconds`, and what it `found`."""


def collect(work: Path) -> str:
    """Gather results/*.json into results.json, and say them as tables."""
    files = sorted((work / "results").glob("*.json"), key=lambda file: file.stat().st_mtime)
    results: Results = {file.stem: json.loads(file.read_bytes()) for file in files}
    replace_file(work / "results.json", json.dumps(results, indent=1).encode() + b"\n")
    tables = (_accuracies(results), _paired(results), _by_codec(results), _times(results))
    return "\n\n".join(filter(None, tables))


def _accuracies(results: Results) -> str:
    lines = ["| features | k-NN | linear | parameters |", "| --- | --- | --- | --- |"]
    for name, words in ROWS.items():
        if (step := results.get(f"evaluate-{name}")) is None:
            continue
        found = step["found"]
        lines.append(
            f"| {words} | {found['knn_top1']:.4f} | {found['linear_top1']:.4f} "
            f"| {found['parameters'] / 1e6:.2f} M |"
        )
    return "\n".join(lines)


def _paired(results: Results) -> str:
    """Each seed's cached and online student: the same first weights, batches and views."""
    lines = [
        "| seed | k-NN cached | online | linear cached | online | rows/s cached | online |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    differences: dict[str, list[float]] = {"knn_top1": [], "linear_top1": []}
    seed = 0
    while f"evaluate-online-{seed}" in results:
        pair = [results[f"evaluate-{kind}-{seed}"]["found"] for kind in ("fixed", "online")]
        rates = [
            results[f"train-{kind}-{seed}"]["found"]["rows_per_second"]
            for kind in ("fixed", "online")
        ]
        cells = [f"{found[name]:.4f}" for name in differences for found in pair]
        lines.append(f"| {' | '.join([str(seed), *cells, *(f'{rate:.0f}' for rate in rates)])} |")
        for name, values in differences.items():
            values.append(pair[0][name] - pair[1][name])
        seed += 1
    if seed > 1:
        lines.append("")
        lines += [
            f"{name}, cached - online: mean {statistics.mean(values):+.4f}, standard error "
            f"{statistics.stdev(values) / seed**0.5:.4f}, {seed} pairs"
            for name, values in differences.items()
        ]
    return "\n".join(lines)


def _by_codec(results: Results) -> str:
    """Students of each codec beside those of the same seeds from fp16; 95 % confidence intervals
    of the mean difference, by Student's t."""
    seeds: dict[str, list[int]] = {}
    for name in results:
        label, _, seed = name.removeprefix("evaluate-").rpartition("-")
        if name.startswith(("evaluate-int", "evaluate-variable", "evaluate-online-")):
            seeds.setdefault(label, []).append(int(seed))
    if set(seeds) <= {"online"}:
        return ""
    lines = [
        "| targets | k-NN | minus fp16 | linear | minus fp16 | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for label, mine in {"fixed": seeds["online"], **seeds}.items():
        cells = []
        for figure in ("knn_top1", "linear_top1"):
            pairs = [
                [results[f"evaluate-{kind}-{seed}"]["found"][figure] for kind in (label, "fixed")]
                for seed in sorted(mine)
            ]
            cells.append(f"{statistics.mean(own for own, _ in pairs):.4f}")
            cells.append("" if label == "fixed" else _interval([own - fp16 for own, fp16 in pairs]))
        told = {"fixed": "fp16", "online": "online, no cache"}.get(label, label)
        lines.append(f"| {told} | {' | '.join(cells)} | {len(mine)} |")
    return "\n".join(lines)


def _interval(values: list[float]) -> str:
    mean, count = statistics.mean(values), len(values)
    if count not in STUDENT_T:
        return f"{mean:+.4f}"
    return f"{mean:+.4f} ± {STUDENT_T[count] * statistics.stdev(values) / count**0.5:.4f}"


def _times(results: Results) -> str:
    lines = ["| step | seconds |", "| --- | --- |"]
    lines += [f"| {name} | {step['seconds']:,.0f} |" for name, step in results.items()]
    total = sum(step["seconds"] for step in results.values())
    return "\n".join([*lines, f"| all | {total:,.0f} |"])


if __name__ == "__main__":
    print(collect(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/cifar10")))
