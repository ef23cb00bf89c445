"""Members endured: whatever one does, the answer is in time, says what is missing, and memory stays flat."""

from __future__ import annotations

import gc
import gzip
import io
import itertools
import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from hie.gateway.directory import Auth
from hie.gateway.transport import MAX_ENTRIES, MAX_PAGES, MemberAnswer, MemberQuery, Transport
from tests.faults.hostile import Connection, HostileMember, Script, allergy, answering, bundle

Start = Callable[[Script], HostileMember]
DEADLINE = 1.2


def query(url: str, *, member: str = "lakeside", path: str = "AllergyIntolerance") -> MemberQuery:
    return MemberQuery(member, url, Auth(), path, (("patient", "Patient/p1"),), "request-1")


def ask(transport: Transport, *urls: str, seconds: float = DEADLINE) -> list[MemberAnswer]:
    """The answers; fails when they come later than the deadline and a tenth."""
    started = time.monotonic()
    answers = transport.ask([query(url, member=f"m{n}") for n, url in enumerate(urls)], started + seconds)
    assert time.monotonic() - started <= seconds * 1.1
    return answers


def status(answer: MemberAnswer) -> str:
    return answer.failure.status if answer.failure else "ok"


# -- scripts


def hang_before_headers(connection: Connection) -> None:
    connection.request()
    connection.stop.wait()


def headers_only(connection: Connection) -> None:
    connection.request()
    connection.head(Content_Type="application/fhir+json", Content_Length=100)
    connection.stop.wait()


def header_drip(connection: Connection) -> None:
    connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    connection.drip(b"x")


def body_drip(connection: Connection) -> None:
    connection.request()
    connection.head(Content_Type="application/fhir+json", Content_Length=1_000_000)
    connection.drip(b" ")


def reset(connection: Connection) -> None:
    connection.request()
    connection.reset()


def reset_in_body(connection: Connection) -> None:
    connection.request()
    connection.head(Content_Type="application/fhir+json", Content_Length=1000)
    connection.send(b'{"resourceType"')
    connection.reset()


def not_http(connection: Connection) -> None:
    connection.request()
    connection.send(b"\x15\x03\x01 SSH-2.0 hello\r\n\r\n")


def endless_headers(connection: Connection) -> None:
    connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\n")
    while not connection.stop.is_set():
        connection.send(b"X-Pad: " + b"x" * 4000 + b"\r\n")


def huge_declared(connection: Connection) -> None:
    connection.request()
    connection.head(Content_Type="application/fhir+json", Content_Length=1 << 31)
    while not connection.stop.is_set():
        connection.send(b" " * (1 << 20))


def huge_chunked(connection: Connection) -> None:
    connection.request()
    connection.head(Content_Type="application/fhir+json", Transfer_Encoding="chunked")
    while not connection.stop.is_set():
        connection.send(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")


def broken_chunks(connection: Connection) -> None:
    """Names a length that is no number once the head has surely been read, and stays."""
    connection.request()
    connection.head(Content_Type="application/fhir+json", Transfer_Encoding="chunked")
    connection.stop.wait(0.05)
    connection.send(b"2\r\n{}\r\nSECRET\r\nSECRET\r\n")
    connection.stop.wait()


def broken_chunks_at_once(connection: Connection) -> None:
    connection.request()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.send(head + b"X\r\n")


def _bomb() -> bytes:
    """200 MB of spaces in 200 kB."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as file:
        for _ in range(200):
            file.write(b" " * 1_000_000)
    return packed.getvalue()


BUNDLE = bundle(allergy())
BOMB = _bomb()
FAULTS: list[tuple[str, Script, str]] = [
    ("hangs before the headers", hang_before_headers, "timeout"),
    ("sends headers and no body", headers_only, "timeout"),
    ("drips headers", header_drip, "timeout"),
    ("drips the body", body_drip, "timeout"),
    ("resets", reset, "unreachable"),
    ("resets in the body", reset_in_body, "unreachable"),
    ("does not speak HTTP", not_http, "invalid"),
    ("answers HTML", answering(b"<html>login</html>", content_type="text/html"), "invalid"),
    ("calls HTML JSON", answering(b"<html>login</html>"), "invalid"),
    ("answers broken JSON", answering(b'{"resourceType": "Bundle", '), "invalid"),
    ("answers with nothing", answering(b""), "invalid"),
    ("answers latin-1", answering('{"a": "é"}'.encode("latin-1")), "invalid"),
    ("answers NaN", answering(b'{"resourceType": "Bundle", "total": NaN}'), "invalid"),
    ("answers a number", answering(b"42"), "invalid"),
    ("answers a list", answering(b"[]"), "invalid"),
    ("answers an outcome instead of a Bundle", answering({"resourceType": "OperationOutcome", "issue": []}), "invalid"),
    ("answers a Bundle of another type", answering({**BUNDLE, "type": "collection"}), "invalid"),
    ("answers entries that are no list", answering({**BUNDLE, "entry": {"resource": allergy()}}), "invalid"),
    ("answers 1,000 levels", answering(b'{"a":' * 1000 + b"1" + b"}" * 1000), "invalid"),
    ("answers 100,000 levels", answering(b"[" * 100_000 + b"]" * 100_000), "invalid"),
    ("answers a million numbers", answering(b"[" + b"1," * 1_000_000 + b"1]"), "truncated"),
    ("answers one number of 4 MB", answering(b"1" * 4_000_000), "invalid"),
    ("answers 1.6 million lists", answering(b"[" + b"[]," * 1_600_000 + b"[]]"), "truncated"),
    ("declares 2 GB", huge_declared, "truncated"),
    ("sends 2 GB in chunks", huge_chunked, "truncated"),
    ("breaks its chunks", broken_chunks, "invalid"),
    ("breaks its chunks with the head", broken_chunks_at_once, "invalid"),
    ("sends a gzip bomb", answering(BOMB, Content_Encoding="gzip"), "truncated"),
    ("sends what is not gzip", answering(b"not gzip at all", Content_Encoding="gzip"), "invalid"),
    ("answers 204", answering(b"", status=204), "invalid"),
    ("answers 206", answering(BUNDLE, status=206), "invalid"),
    *((f"answers {n}", answering(BUNDLE, status=n), "error") for n in (400, 401, 403, 404, 410, 500, 502, 503)),
    ("answers 429 with Retry-After", answering(b"", status=429, Retry_After="3600"), "error"),
    ("redirects to itself", answering(b"", status=302, Location="/fhir/AllergyIntolerance"), "error"),
    ("promises more than it gives", answering(bundle(allergy(), total=2)), "truncated"),
]


@pytest.mark.parametrize(("script", "expected"), [pytest.param(s, e, id=i) for i, s, e in FAULTS])
def test_a_fault_is_named_within_the_deadline_and_the_others_answer(
    hostile: Start, transport: Transport, script: Script, expected: str
) -> None:
    good = hostile(answering(BUNDLE))
    bad = hostile(script)
    first, faulty, last = ask(transport, good.url, bad.url, good.url)
    assert status(faulty) == expected
    assert first.resources == last.resources == (allergy(),)
    assert status(first) == status(last) == "ok"


def test_endless_headers_end(hostile: Start, transport: Transport) -> None:
    (answer,) = ask(transport, hostile(endless_headers).url)
    assert status(answer) in ("invalid", "timeout")


def test_nobody_listens(transport: Transport, free_port: Callable[[], int]) -> None:
    (answer,) = ask(transport, f"http://127.0.0.1:{free_port()}/fhir")
    assert status(answer) == "unreachable"


@pytest.mark.parametrize("script", [huge_declared, huge_chunked, answering(BOMB, Content_Encoding="gzip")])
def test_memory_stays_flat_whatever_a_member_sends(hostile: Start, transport: Transport, script: Script) -> None:
    bad = hostile(script)
    ask(transport, hostile(answering(BUNDLE)).url)  # what starts with the first query is not the member's doing
    tracemalloc.start()
    (answer,) = ask(transport, bad.url, seconds=2.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert status(answer) == "truncated"
    assert peak < 24_000_000  # two copies of 5 MB, a growing buffer, and what the stub itself holds


def test_thirteen_questions_to_a_member_that_floods_share_one_allowance(hostile: Start, transport: Transport) -> None:
    body = json.dumps(bundle({**allergy(), "note": [{"text": "x" * 4_500_000}]})).encode()
    member = hostile(answering(body))
    deadline_at = time.monotonic() + 5
    answers = transport.ask([query(member.url) for _ in range(13)], deadline_at)
    assert sum(len(a.resources) for a in answers) <= 3
    assert "truncated" in {status(a) for a in answers} <= {"ok", "truncated"}


# -- where a member would have us go


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_server_is_not_followed(hostile: Start, transport: Transport, code: int) -> None:
    victim = hostile(answering(BUNDLE))
    member = hostile(answering(b"", status=code, Location=victim.url))
    (answer,) = ask(transport, member.url)
    assert status(answer) == "error"
    assert victim.connections == 0


@pytest.mark.parametrize(
    "link",
    [
        "http://127.0.0.1:{victim}/fhir/AllergyIntolerance?page=2",
        "//127.0.0.1:{victim}/fhir?page=2",
        "http://127.0.0.1:{own}@127.0.0.1:{victim}/fhir?page=2",
        "http://127.0.0.1:{own}\\@127.0.0.1:{victim}/fhir?page=2",
        "http://localhost:{own}/fhir/AllergyIntolerance?page=2",
        "https://127.0.0.1:{own}/fhir/AllergyIntolerance?page=2",
        "http://127.0.0.1:{own}/admin?page=2",
        "http://127.0.0.1:{own}/fhirx?page=2",
        "http://127.0.0.1:{own}/fhir/../admin?page=2",
        "http://127.0.0.1:{own}/fhir/%2e%2e/admin?page=2",
        "http://127.0.0.1:{own}/fhir/..%2fadmin?page=2",
        "../admin?page=2",
        "file:///etc/passwd",
        "ftp://127.0.0.1/fhir",
        "http://[::1",
        "http://127.0.0.1:{own}/fhir?page=\r\nX-Injected: 1",
    ],
)
def test_a_next_link_out_of_the_registered_base_is_not_followed(
    hostile: Start, transport: Transport, link: str
) -> None:
    victim = hostile(answering(BUNDLE))
    lines: list[str] = []

    def script(connection: Connection) -> None:
        while line := connection.request()[0]:
            lines.append(line)
            url = link.format(victim=victim.port, own=connection.port)
            connection.reply(bundle(allergy(), link=[{"relation": "next", "url": url}]))

    (answer,) = ask(transport, hostile(script).url)
    assert status(answer) == "truncated"
    assert answer.resources == (allergy(),)
    assert victim.connections == 0
    assert len(lines) == 1


def pages(link: Callable[[Connection, int], str], lines: list[str]) -> Script:
    def script(connection: Connection) -> None:
        while line := connection.request()[0]:
            lines.append(line)
            number = len(lines)
            connection.reply(bundle(allergy(number), link=[{"relation": "next", "url": link(connection, number)}]))

    return script


@pytest.mark.parametrize(
    ("link", "requests"),
    [
        (lambda c, _: f"http://127.0.0.1:{c.port}/fhir?page=same", 2),
        (lambda c, n: f"http://127.0.0.1:{c.port}/fhir?page={n % 2}", 3),
        (lambda c, n: f"http://127.0.0.1:{c.port}/fhir?page={n}", MAX_PAGES),
    ],
    ids=["to itself", "in a circle", "without end"],
)
def test_endless_pages_end(
    hostile: Start, transport: Transport, link: Callable[[Connection, int], str], requests: int
) -> None:
    lines: list[str] = []
    (answer,) = ask(transport, hostile(pages(link, lines)).url)
    assert status(answer) == "truncated"
    assert len(lines) == len(answer.resources) == requests


def test_pages_that_stop_coming_leave_what_came(hostile: Start, transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        url = f"http://127.0.0.1:{connection.port}/fhir?page=2"
        connection.reply(bundle(allergy(), link=[{"relation": "next", "url": url}]))
        connection.request()
        connection.stop.wait()

    (answer,) = ask(transport, hostile(script).url)
    assert status(answer) == "timeout"
    assert answer.resources == (allergy(),)


def test_too_many_entries_are_cut(hostile: Start, transport: Transport) -> None:
    body = bundle(*(allergy(n) for n in range(MAX_ENTRIES + 1)))
    (answer,) = ask(transport, hostile(answering(body)).url, seconds=2.0)
    assert status(answer) == "truncated"
    assert len(answer.resources) == MAX_ENTRIES


# -- entries


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "text",
        {},
        {"resource": None},
        {"resource": []},
        {"resource": {"id": "a1"}},
        {"resource": {"resourceType": 7, "id": "a1"}},
        {"resource": {"resourceType": "AllergyIntolerance"}},
        *(
            {"resource": {"resourceType": "AllergyIntolerance", "id": bad}}
            for bad in (7, "", "..", "../../Patient/p2", "a/b", "a" * 65, "ä", "a b", "a\n", "a%2Fb", "a\u0000")
        ),
    ],
)
def test_an_entry_that_cannot_be_used_is_dropped_and_said(hostile: Start, transport: Transport, entry: Any) -> None:
    body = {**BUNDLE, "entry": [entry, *BUNDLE["entry"]]}
    (answer,) = ask(transport, hostile(answering(body)).url)
    assert status(answer) == "invalid"
    assert answer.resources == (allergy(),)


def _outcome(severity: str, **entry: Any) -> dict[str, Any]:
    issue = {"severity": severity, "code": "exception", "diagnostics": "SECRET-STACKTRACE"}
    return {"resource": {"resourceType": "OperationOutcome", "id": "o1", "issue": [issue]}, **entry}


@pytest.mark.parametrize("mark", [{}, {"search": {"mode": "outcome"}}, {"search": {"mode": "match"}}])
@pytest.mark.parametrize(
    ("severity", "others", "expected"),
    [("fatal", [], "error"), ("error", BUNDLE["entry"], "truncated"), ("warning", BUNDLE["entry"], "ok")],
)
def test_a_members_outcome_is_heeded_and_never_passed_on(
    hostile: Start, transport: Transport, mark: Any, severity: str, others: Any, expected: str
) -> None:
    body = {**BUNDLE, "entry": [_outcome(severity, **mark), *others]}
    (answer,) = ask(transport, hostile(answering(body)).url)
    assert status(answer) == expected
    assert len(answer.resources) == len(others)
    assert "SECRET" not in repr(answer)


def test_included_resources_are_not_matches(hostile: Start, transport: Transport) -> None:
    included = {"resource": {"resourceType": "Patient", "id": "p2"}, "search": {"mode": "include"}}
    body = {**BUNDLE, "entry": [*BUNDLE["entry"], included], "total": 1}
    (answer,) = ask(transport, hostile(answering(body)).url)
    assert (status(answer), answer.resources) == ("ok", (allergy(),))


# -- reads


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (answering(b"", status=404), "ok"),
        (answering(b"", status=410), "ok"),
        (answering(b"", status=500), "error"),
        (answering({**allergy(), "id": "a2"}), "invalid"),
        (answering({**allergy(), "resourceType": "Condition"}), "invalid"),
        (answering({"resourceType": "OperationOutcome"}), "invalid"),
        (answering(BUNDLE), "invalid"),
        (hang_before_headers, "timeout"),
    ],
)
def test_a_read_gives_the_asked_resource_or_nothing(
    hostile: Start, transport: Transport, script: Script, expected: str
) -> None:
    answer = transport.read(query(hostile(script).url, path="AllergyIntolerance/a1"), time.monotonic() + DEADLINE)
    assert (status(answer), answer.resources) == (expected, ())


# -- connections


def test_a_kept_connection_that_the_member_closed_is_replaced_once(hostile: Start, transport: Transport) -> None:
    """The server answers once per connection and drops the next request unanswered."""
    seen = itertools.count()

    def script(connection: Connection) -> None:
        for _ in range(2):
            if not connection.request()[0]:
                return
            if next(seen) != 1:
                connection.reply(BUNDLE)
            else:
                return

    member = hostile(script)
    assert status(ask(transport, member.url)[0]) == "ok"
    assert status(ask(transport, member.url)[0]) == "ok"
    assert member.connections == 2


def test_a_fresh_connection_that_is_reset_is_not_tried_again(hostile: Start, transport: Transport) -> None:
    member = hostile(reset)
    assert status(ask(transport, member.url)[0]) == "unreachable"
    assert member.connections == 1


@pytest.mark.parametrize("length", [True, False], ids=["of known length", "until the end"])
def test_a_packed_answer_is_whole_although_the_member_hangs_up_at_once(
    hostile: Start, transport: Transport, length: bool
) -> None:
    """4 MB in 20 kB: all of it has arrived, and the connection is closed, long before it is unpacked."""
    body = bundle(*({**allergy(n), "note": [{"text": "a" * 2000}]} for n in range(1900)))
    packed = gzip.compress(json.dumps(body).encode())

    def script(connection: Connection) -> None:
        connection.request()
        known = {"Content_Length": len(packed)} if length else {}
        connection.head(Content_Type="application/fhir+json", Content_Encoding="gzip", Connection="close", **known)
        connection.send(packed)

    (answer,) = ask(transport, hostile(script).url, seconds=5)
    assert (status(answer), len(answer.resources)) == ("ok", 1900)


def test_a_kept_connection_that_is_reset_while_idle_is_not_logged(
    hostile: Start, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    idle, gone = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        body = json.dumps(BUNDLE).encode()
        connection.head(Content_Type="application/fhir+json", Content_Length=len(body))
        connection.stop.wait(0.05)  # the body is waited for
        connection.send(body)
        idle.wait(5)
        connection.reset()
        gone.set()

    url = hostile(script).url
    assert status(ask(transport, url)[0]) == "ok"
    idle.set()
    assert gone.wait(5)
    time.sleep(0.05)
    assert status(ask(transport, url)[0]) == "ok"
    gc.collect()  # exceptions that nobody retrieved are logged when they are collected
    assert [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")] == []


def test_nothing_of_a_member_is_logged(hostile: Start, transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    body = {"resourceType": "OperationOutcome", "issue": [{"diagnostics": "SECRET-STACKTRACE"}]}

    def broken(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/SECRET 200 SECRET\r\nSECRET\r\n\r\nSECRET")

    scripts = [answering(body, status=500), answering(b"SECRET"), broken, broken_chunks, reset_in_body]
    answers = ask(transport, *(hostile(script).url for script in scripts))
    transport.close()
    gc.collect()  # exceptions that nobody retrieved are logged when they are collected
    assert [status(a) for a in answers] == ["error", "invalid", "invalid", "invalid", "unreachable"]
    assert "SECRET" not in caplog.text
    assert "patient" not in caplog.text.lower()
