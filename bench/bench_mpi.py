"""Linkage beside its peers: `make bench-mpi`, or `python bench/bench_mpi.py [--small] [--without-peers]`.

Generated populations of 100,000 and 1,000,000 records with households, FEBRL 3 and 4, and narrow files; each by
`hie mpi link` from CSV to CSV in a process of its own (time, peak memory), beside Splink 5 on DuckDB (an expert's
set-up and a lean one, in a throw-away environment under build/) and recordlinkage's ECM (FEBRL only: it keeps every
pair in memory). Defaults were chosen on other seeds. The load average is printed with every line, since a busy machine
slows both.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench-mpi"
PEER = BUILD / "splink"
MEASURED = """
import resource, sys
from pathlib import Path
from hie.cli.main import main
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    print(used.ru_utime + used.ru_stime, peak)
"""
"""The command line in a process that says its CPU seconds and peak memory in KB (ru_maxrss counts its parent, too)."""
sys.path.insert(0, str(ROOT))

from fixtures import narrow, populations
from hie.mpi.evaluation import evaluate, links, truth
from hie.mpi.training import Truth, pair_class
from tests.mpi.batch.people import febrl


def generated(kind: str, size: int, seed: int) -> tuple[Path, Path]:
    """A population as files, made once."""
    records, true = BUILD / f"{kind}-{size}-{seed}.csv", BUILD / f"{kind}-{size}-{seed}.truth.csv"
    if not true.exists():
        if kind in narrow.KINDS:
            made = narrow.KINDS[kind](size, seed)
        else:
            made = populations.generate(int(size / 1.95), seed, kind)
        populations.write(made.records, records)
        populations.write(made.truth, true)
    return records, true


def febrl_files(number: int) -> tuple[Path, Path]:
    rows, people = febrl(number)
    records, true = BUILD / f"febrl{number}.csv", BUILD / f"febrl{number}.truth.csv"
    for path, table in ((records, rows), (true, [{"record_id": r, "person_id": p} for r, p in people.items()])):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return records, true


def ours(records: Path, true_path: Path) -> str:
    output = BUILD / "links.csv"
    command = [sys.executable, "-c", MEASURED, "mpi", "link", str(records), "--output", str(output)]
    started = time.perf_counter()
    made = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    seconds = time.perf_counter() - started
    if made.returncode:
        sys.exit(f"hie mpi link failed on {records}: {made.stderr}")
    cpu, peak = made.stdout.split()[-2:]
    found, true = links(output), truth(true_path)
    e = evaluate(found, true)
    figures = f"P {e.precision:.4f} R {e.recall:.4f} F1 {e.f1:.4f} people F1 {e.people_f1:.4f}"
    spent = f"{seconds:7.1f} s ({float(cpu):.1f} s CPU) {int(peak) // 1024:5d} MB"
    kinds = _by_kind(found, true_path)
    return f"{spent}  {figures}  {_calibration(output, found, true)}" + (f"\n           {kinds}" if kinds else "")


def _calibration(output: Path, found: dict[str, str], true: dict[str, str]) -> str:
    """Of records stated at 0.9 to 0.99 that were linked: the mean stated, and the share linked to their own person."""
    together: dict[tuple[str, str], int] = {}
    sizes: dict[str, int] = {}
    for record, person in found.items():
        together[person, true[record]] = together.get((person, true[record]), 0) + 1
        sizes[person] = sizes.get(person, 0) + 1
    stated = []
    with output.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            p = float(row["match_probability"])
            if 0.9 <= p < 0.99 and sizes[row["person_id"]] > 1:
                stated.append((p, together[row["person_id"], true[row["record_id"]]] > 1))
    if not stated:
        return ""
    mean, share = np.mean(stated, axis=0)
    return f"stated 0.9-0.99: {len(stated)} records, mean {mean:.3f}, true {share:.3f}"


def _by_kind(found: dict[str, str], true_path: Path) -> str:
    """Errors by the kind of pair (`hie.mpi.training.pair_class`), where the truth file says what kind it is."""
    with true_path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows[0].get("residence_id") in (None, rows[0]["person_id"]):  # narrow files know of no households
        return ""
    true = {row["record_id"]: Truth(**row) for row in rows}
    missed, of_kind = Counter[str](), Counter[str]()
    for a, b in _pairs_within({record: row.person_id for record, row in true.items()}):
        kind = pair_class(true[a], true[b])
        of_kind[kind] += 1
        missed[kind] += found[a] != found[b]
    links = [(true[a], true[b]) for a, b in _pairs_within(found)]
    wrong = Counter(pair_class(a, b) for a, b in links if a.person_id != b.person_id)
    losses = ", ".join(f"{kind} {100 * missed[kind] / n:.2f} % of {n:,}" for kind, n in of_kind.most_common())
    false = ", ".join(f"{kind} {n}" for kind, n in wrong.most_common())
    return f"missed: {losses}; false of {len(links):,}: {false or 'none'}"


def _pairs_within(groups: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    members: dict[str, list[str]] = defaultdict(list)
    for record, group in groups.items():
        members[group].append(record)
    return (pair for records in members.values() for pair in combinations(records, 2))


def splink(records: Path, true: Path, *how: str) -> str:
    command = [str(PEER / "bin/python"), str(ROOT / "bench/peer_splink.py"), str(records), str(true), *how]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        return "failed: " + (made.stderr.strip().splitlines() or ["no reason given"])[-1]
    f = json.loads(made.stdout.splitlines()[-1])
    best = f["best"]
    return (
        f"{f['seconds']:7.1f} s {f['peak_mb']:5d} MB  pairs from 0.95 F1 {f['pairs_at_0.95_f1']:.4f}; clusters at 0.95 "
        f"people F1 {f['at_0.95']['people_f1']:.4f}; at the best threshold {best['threshold']} "
        f"P {best['precision']:.4f} R {best['recall']:.4f} people F1 {best['people_f1']:.4f}"
    )


def ecm(records: Path, true_path: Path) -> str:
    """recordlinkage's ECM on binary agreements; blocks on date, surname and number."""
    import pandas as pd
    import recordlinkage

    started = time.perf_counter()
    frame = pd.read_csv(records, dtype=str).set_index("record_id")
    index = recordlinkage.Index()
    for key in ("birth_date", "family", "given", "ssn"):
        index.block(key)
    pairs = index.index(frame)
    compare = recordlinkage.Compare()
    for name in ("given", "family", "street"):
        compare.string(name, name, method="jarowinkler", threshold=0.85, label=name)
    for name in ("birth_date", "ssn", "zip", "city", "state"):
        compare.exact(name, name, label=name)
    found = recordlinkage.ECMClassifier().fit_predict(compare.compute(pairs, frame))
    true = truth(true_path)
    right = sum(true[a] == true[b] for a, b in found)
    sizes: dict[str, int] = {}
    for person in true.values():
        sizes[person] = sizes.get(person, 0) + 1
    f1 = 2 * right / (len(found) + sum(n * (n - 1) // 2 for n in sizes.values()))
    return f"{time.perf_counter() - started:7.1f} s  pairs F1 {f1:.4f}"


def _prepare_peer() -> bool:
    if not (PEER / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
        wanted = ["splink==5.0.0", "duckdb==2.0.0", "pandas==2.3.3"]
        made = subprocess.run([str(PEER / "bin/pip"), "install", "-q", *wanted], check=False, capture_output=True)
        return made.returncode == 0
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--small", action="store_true", help="Leave out the million.")
    parser.add_argument("--without-peers", action="store_true")
    chosen = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    peers = not chosen.without_peers and _prepare_peer()
    sets = {
        "FEBRL 4": febrl_files(4),
        "FEBRL 3": febrl_files(3),
        "register 10,000": generated("register", 10_000, 7),
        "contacts 1,000": generated("contacts", 1_000, 7),
        "historical 50,000": generated("historical", 50_000, 7),
        "households 100,000": generated("typical", 100_000, 7),
        "households 100,000, noisy": generated("noisy", 100_000, 8),
    }
    if not chosen.small:
        sets["households 1,000,000"] = generated("typical", 1_000_000, 9)
    for name, (records, true) in sets.items():
        print(f"{name} (load {os.getloadavg()[0]:.1f})", flush=True)
        print("  hie     ", ours(records, true), flush=True)
        if peers:
            print("  Splink 5", splink(records, true), flush=True)
            print("     lean ", splink(records, true, "lean"), flush=True)
        if name.startswith("FEBRL"):
            print("  ECM     ", ecm(records, true), flush=True)


if __name__ == "__main__":
    main()
