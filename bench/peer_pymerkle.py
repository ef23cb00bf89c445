"""Leaves a second of pymerkle 7's tree in memory, for `bench_audit.py`; runs in an environment of its own.

One by one, and all at once, where it allows that; the better figure counts.

    build/pymerkle/bin/python bench/peer_pymerkle.py 200000
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from pymerkle import InmemoryTree


def one_by_one(leaves: list[bytes]) -> None:
    tree = InmemoryTree(algorithm="sha256")
    for leaf in leaves:
        tree.append_entry(leaf)
    tree.get_root()


def at_once(leaves: list[bytes]) -> None:
    tree = InmemoryTree(algorithm="sha256")
    tree.append_entries(leaves)
    tree.get_root()


def rate(work: Callable[[list[bytes]], None], leaves: list[bytes]) -> float:
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        work(leaves)
        best = max(best, len(leaves) / (time.perf_counter() - started))
    return best


def main() -> None:
    leaves = [b"%0170d" % number for number in range(int(sys.argv[1]))]
    print(max(rate(work, leaves) for work in (one_by_one, at_once)))


if __name__ == "__main__":
    main()
