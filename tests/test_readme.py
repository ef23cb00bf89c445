"""Every command of the README and the guides does what they say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from hie.gateway import manifest
from tests.journeys.world import HIE

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


COMMANDS = sorted({line for page in PAGES for block in _blocks(page, "sh") for line in block.strip().splitlines()})
INLINE = sorted({found for page in PAGES for found in re.findall(r"`((?:make|hie) [^`\n]+)`", page.read_text())})
RUN_ELSEWHERE = {
    "make demo": "tests/journeys/test_demo.py",
    "make demo ONCE=1": "tests/journeys/test_demo.py",
    "make test": "this very run",
    "make check": "run by make test",
    "make bench": "bench/*.py",
    "make bench-audit": "bench/bench_audit.py",
    "make bench-mpi": "bench/bench_mpi.py",
}


def test_there_are_commands() -> None:
    assert "make demo" in COMMANDS
    assert "hie db upgrade" in COMMANDS


@pytest.mark.parametrize("command", [c for c in [*COMMANDS, *INLINE] if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    assert command in RUN_ELSEWHERE
    subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("command", [c for c in [*COMMANDS, *INLINE] if c.startswith("hie ")])
def test_hie_commands_exist_with_their_options(command: str) -> None:
    words = command.split()[1:]
    options = [word.strip("()[]") for word in words if word.strip("()[]").startswith("--")]
    names = [word for word in words if re.fullmatch(r"[a-z]+(-[a-z]+)*", word)][:3]
    shown = ""
    for depth in (3, 2, 1):
        done = subprocess.run([HIE, *names[:depth], "--help"], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 0:
            shown = done.stdout
            break
    assert shown, f"{command}: no such command"
    assert all(option in shown for option in options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_manifests_in_the_guides_are_valid(page: Path) -> None:
    for block in _blocks(page, "yaml"):
        manifest.parse(yaml.safe_load(block), development=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), target
