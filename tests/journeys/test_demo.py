"""`hie demo` as a newcomer meets it: run in a pipe, read what it prints, see that it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

HIE = Path(sys.executable).with_name("hie")
DEADLINE_SECONDS = 180


SMALL = """
import functools, sys
from fixtures.community import build
from hie.cli import demo, main
demo.build = functools.partial(build, people=60)
sys.argv = ["hie", "demo", "--port", "0"]
main.main()
"""
"""The demo with few people, for what does not depend on how many there are."""


@dataclass(frozen=True)
class Run:
    """A finished demo."""

    code: int
    said: str
    complained: str
    folder: Path

    def after(self, heading: str) -> str:
        """What was printed under the heading that contains this text."""
        sections = self.said.split("\n\n")
        at = next(i for i, section in enumerate(sections) if heading in section.splitlines()[0])
        body = [sections[at]]
        for section in sections[at + 1 :]:
            if not section.startswith("  "):
                break
            body.append(section)
        return "\n".join(body)


def environment(folder: Path) -> dict[str, str]:
    """Temporary files go to `folder`; settings of another exchange must not leak into the demo."""
    return {**os.environ, "TMPDIR": str(folder), "HIE_DATABASE_URL": "nonsense:", "HIE_CONSENT_DEFAULT": "deny"}


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that work in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(folder) in (entry / "environ").read_bytes().decode(errors="replace"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it ended, or it is not ours
    return found


@contextmanager
def running(folder: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """The command as from a terminal: a shell that runs the tests in the background has it ignore Ctrl-C otherwise."""
    with subprocess.Popen(
        command,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What is printed up to and with the line that contains `text`."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"the demo ended early: {said}{process.stderr.read() if process.stderr else ''}")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [str(HIE), "demo", "--port", "0", "--once"],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    return Run(done.returncode, done.stdout, done.stderr, folder)


def test_it_succeeds_and_is_silent_on_stderr_in_a_pipe(once: Run) -> None:
    assert (once.code, once.complained) == (0, "")


def test_the_penicillin_allergy_comes_from_the_family_practice(once: Run) -> None:
    assert re.search(
        r"HIGH  Penicillin: severe, anaphylaxis\n +source: Lakeside Family Practice, recorded 1987-06-14",
        once.after("Her allergies"),
    )


def test_the_cardiologists_latex_allergy_is_there_too(once: Run) -> None:
    assert re.search(r"Latex.*\n +source: Heartland Cardiology", once.after("Her allergies"))


def test_the_source_that_is_down_is_named_and_nothing_of_it_is_shown(once: Run) -> None:
    assert "Willow Home" in once.after("What is missing")
    assert "may have more allergies" in once.after("What is missing")
    assert "Codeine" not in once.after("Her allergies")


def test_the_misspelt_arrival_is_linked_to_the_woman_known_elsewhere(once: Run) -> None:
    arrival = once.after("A patient arrives")
    assert '"Marta Lindquist, 1949-11-02"' in arrival
    assert re.search(r"\n  Marta Elisabet Lindqvist, female, born 1949-11-02\n", arrival)
    for known_at in ("Harbor General", "Lakeside", "Heartland", "Northlab", "Cornerstone", "Willow Home"):
        assert f" at {known_at}" in arrival
    explained = re.sub(r"\s+", " ", arrival)
    assert re.search(r"Linked with probability (above 99\.99|9\d\.\d\d) %", explained)
    assert "birth date exact" in explained


def test_every_step_says_how_long_it_took(once: Run) -> None:
    for heading, steps in (("Starting", 6), ("A patient arrives", 3), ("Her allergies", 1), ("What the log", 1)):
        assert len(re.findall(r" [\d,]+ ms$", once.after(heading), re.MULTILINE)) == steps


def test_the_disclosure_is_in_the_log(once: Run) -> None:
    entries = re.search(r"([\d,]+) entries about her", once.after("What the log"))
    assert entries is not None
    assert int(entries[1]) >= 3


def test_it_says_where_and_as_whom_to_sign_in(once: Run) -> None:
    accounts = once.after("Sign in at http://127.0.0.1:")
    for role in ("clinician", "member-admin", "privacy-officer"):
        assert re.search(rf"\S+@\S+\.example +\S{{8,}} +{role}, ", accounts)


def test_it_fits_a_terminal_of_eighty_columns(once: Run) -> None:
    assert [line for line in once.said.splitlines() if len(line) > 80] == []


def test_it_leaves_no_process_and_no_file_behind(once: Run) -> None:
    assert processes_of(once.folder) == []
    assert list(once.folder.iterdir()) == []


def test_a_taken_port_says_which_flag_helps(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [str(HIE), "demo", "--port", str(port), "--once"],
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"hie: Port {port} is in use. Choose another with --port.\n"
    assert list(tmp_path.iterdir()) == []


def test_sigterm_ends_every_child(tmp_path: Path) -> None:
    with running(tmp_path, str(HIE), "demo", "--port", "0") as process:
        read_until(process, "Exchange at http")
        assert len(processes_of(tmp_path)) >= 8  # the demo, six EHRs, the exchange and its workers
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_it_serves_until_ctrl_c(tmp_path: Path) -> None:
    with running(tmp_path, sys.executable, "-c", SMALL) as process:
        said = read_until(process, "Serving until Ctrl-C.")
        address = re.search(r"Sign in at (http://127\.0\.0\.1:\d+)/", said)
        assert address is not None
        assert requests.get(f"{address[1]}/readyz", timeout=10).status_code == 200
        assert requests.get(f"{address[1]}/", timeout=10).status_code == 200
        assert "Marta Lindquist, born 1949-11-02" in said
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
