"""Which addresses may be registered, where names may lead, and what one bounded fetch endures."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import pytest

from hie.core.errors import BadRequest
from hie.gateway.guard import (
    AddressRefused,
    FetchFailed,
    FetchProblem,
    GuardedResolver,
    SafeSession,
    allowed,
    check_link,
    check_url,
    safe_session,
    within,
)
from tests.faults.hostile import Connection, HostileMember, Script, answering
from tests.faults.test_members import (
    body_drip,
    endless_headers,
    hang_before_headers,
    header_drip,
    huge_chunked,
    huge_declared,
    not_http,
    reset,
    reset_in_body,
)

Start = Callable[[Script], HostileMember]

LOOPBACK_IN_DISGUISE = [
    "127.0.0.1",
    "0177.0.0.1",
    "2130706433",
    "127.1",
    "0x7f.1",
    "0x7f000001",
    "017700000001",
    "0.0.0.0",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "user@127.0.0.1",
    "localhost",
    "LOCALHOST.",
    "x.localhost",
    "１２７.0.0.1",
    "①②⑦.0.0.1",
    "127。0。0。1",
]
INSIDE = [
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.2.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fc00::1]",
    "[ff02::1]",
    "[2001:db8::1]",
    "[::7f00:1]",
    "[::ffff:10.0.0.1]",
    "[64:ff9b::a00:1]",
    "metadata.google.internal",
    "printer.local",
]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", LOOPBACK_IN_DISGUISE + INSIDE)
def test_no_inside_address_can_be_registered_in_production(scheme: str, host: str) -> None:
    with pytest.raises(BadRequest):
        check_url(f"{scheme}://{host}/fhir", development=False)
    with pytest.raises(BadRequest):
        check_link(f"{scheme}://{host}/jwks?x=1", development=False)


@pytest.mark.parametrize("host", INSIDE)
def test_development_allows_no_inside_address_but_loopback(host: str) -> None:
    with pytest.raises((BadRequest, FetchFailed)):  # names are judged by where they lead
        SafeSession(development=True, lookup=lambda _h, _p: ["10.0.0.1"]).fetch(f"http://{host}/fhir")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "fhir.example",
        "//fhir.example",
        "http://fhir.example/r4",
        "ftp://fhir.example/r4",
        "file:///etc/passwd",
        "gopher://fhir.example/_x",
        "https://",
        "https:///r4",
        "https://u:p@fhir.example/r4",
        "https://@fhir.example/r4",
        "https://fhir.example/r4?tenant=1",
        "https://fhir.example/r4?",
        "https://fhir.example/r4#x",
        "https://fhir.example/r4#",
        "https://fhir.example:22/r4",
        "https://fhir.example:80/r4",
        "https://fhir.example:0/r4",
        "https://fhir.example:99999/r4",
        "https://fhir.example:x/r4",
        "https://fhir.example\\@127.0.0.1/r4",
        "https://fhir.example/r4\r\nX: y",
        "https://fhir .example/r4",
        "https://fhir.example/a/../b",
        "https://fhir.example/a/%2e%2e/b",
        "https://fhir.example/a%2fb",
        "https://fhir.example/a%00",
        "https://fhir.example/%zz",
        "https://fhir.example/ä",
        "https://fhir_x.example/r4",
        "https://-fhir.example/r4",
        "https://fhir..example/r4",
        "https://[::1/r4",
        "https://" + "a" * 64 + ".example/r4",
        "https://fhir.example/" + "a" * 3000,
    ],
)
def test_what_is_no_base_address_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_url(url, development=False)
    assert refused.value.message.startswith("The ")
    assert refused.value.message.endswith(".")
    assert "u:p" not in refused.value.message


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://fhir.lakeside.example/r4", "https://fhir.lakeside.example/r4"),
        ("HTTPS://FHIR.Lakeside.Example:443/r4/", "https://fhir.lakeside.example/r4"),
        ("https://fhir.lakeside.example./r4", "https://fhir.lakeside.example/r4"),
        ("https://fhir.lakeside.example", "https://fhir.lakeside.example"),
        ("https://fhir.lakeside.example:8443/R4/", "https://fhir.lakeside.example:8443/R4"),
        ("https://klinik-münchen.example/r4", "https://xn--klinik-mnchen-3ob.example/r4"),
        ("https://93.184.216.34/r4", "https://93.184.216.34/r4"),
        ("https://[2606:4700:0000::1111]/r4", "https://[2606:4700::1111]/r4"),
    ],
)
def test_one_address_has_one_form(url: str, normal: str) -> None:
    assert check_url(url, development=False) == normal
    assert check_url(normal, development=False) == normal


@pytest.mark.parametrize("url", ["http://127.0.0.1:8099/fhir", "http://localhost:1/fhir", "http://[::1]:8099/fhir"])
def test_development_allows_plain_http_to_loopback_at_any_port(url: str) -> None:
    assert check_url(url, development=True) == url


def test_a_link_keeps_its_query() -> None:
    url = "https://auth.lakeside.example/keys?tenant=a%20b"
    assert check_link(url, development=False) == url


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("https://a.example/r4", True),
        ("https://a.example/r4?page=2", True),
        ("https://A.example:443/r4/Condition?page=2", True),
        ("https://a.example/r4b", False),
        ("https://a.example/", False),
        ("https://b.example/r4", False),
        ("http://a.example/r4", False),
        ("https://a.example:8443/r4", False),
        ("https://a.example/r4/../x", False),
        ("https://u@a.example/r4", False),
        ("/r4", False),
    ],
)
def test_within_the_registered_base(url: str, inside: bool) -> None:
    assert within(url, "https://a.example/r4") is inside


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert allowed(address, development=False)


# -- names


def resolve(lookup: Callable[[str, int], Sequence[str]], development: bool = False) -> list[str]:
    async def ask() -> list[str]:
        resolver = GuardedResolver(development=development, lookup=lookup)
        try:
            return [found["host"] for found in await resolver.resolve("fhir.lakeside.example", 443)]
        finally:
            await resolver.close()

    return asyncio.run(ask())


def test_every_address_of_a_name_must_be_allowed() -> None:
    assert resolve(lambda _h, _p: ["8.8.8.8", "2606:4700::1111"]) == ["8.8.8.8", "2606:4700::1111"]
    for bad in ("127.0.0.1", "10.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1%eth0", "not an address"):
        with pytest.raises(AddressRefused):
            resolve(lambda _h, _p, bad=bad: ["8.8.8.8", bad])  # type: ignore[misc]


def test_a_name_without_addresses_is_an_error() -> None:
    with pytest.raises(OSError, match="no address"):
        resolve(lambda _h, _p: [])


def test_the_operating_system_is_asked_by_default() -> None:
    with pytest.raises(BadRequest):
        safe_session(False).fetch("http://localhost/")
    with pytest.raises(FetchFailed) as failed:
        safe_session(True).fetch("http://no-such-host.invalid/", timeout_total=5)
    assert failed.value.problem in (FetchProblem.DNS, FetchProblem.TIMEOUT)


# -- one bounded fetch


@pytest.fixture
def member() -> Iterator[Start]:
    started: list[HostileMember] = []

    def start(script: Script) -> HostileMember:
        started.append(HostileMember(script))
        return started[-1]

    yield start
    for one in started:
        one.close()


SESSION = SafeSession(development=True)


def problem(url: str, session: SafeSession = SESSION, seconds: float = 1.5) -> FetchProblem:
    """What went wrong; fails when it took longer than the time given and a tenth."""
    started = time.monotonic()
    with pytest.raises(FetchFailed) as failed:
        session.fetch(url, timeout_total=seconds)
    assert time.monotonic() - started <= seconds * 1.1
    return failed.value.problem


def test_a_fetch_gives_status_headers_and_body(member: Start) -> None:
    body = json.dumps({"keys": []}).encode()
    packed = answering(gzip.compress(body), content_type="Application/JSON; x=y", Content_Encoding="gzip")
    fetched = SESSION.fetch(member(packed).url)
    assert (fetched.status, fetched.body, fetched.content_type) == (200, body, "application/json")
    assert SESSION.fetch(member(answering(b"gone", status=410)).url).status == 410


def test_a_form_is_posted(member: Start) -> None:
    seen: list[tuple[str, dict[str, str]]] = []

    def script(connection: Connection) -> None:
        seen.append(connection.request())
        connection.reply(b"{}")

    url = member(script).url
    SESSION.fetch(f"{url}/token", method="POST", form={"a": "b c"}, headers={"Accept": "application/json"})
    line, headers = seen[0]
    assert line == "POST /fhir/token HTTP/1.1"
    assert headers["(body)"] == "a=b+c"
    assert headers["accept"] == "application/json"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (hang_before_headers, FetchProblem.TIMEOUT),
        (header_drip, FetchProblem.TIMEOUT),
        (body_drip, FetchProblem.TIMEOUT),
        (reset, FetchProblem.CONNECT),
        (reset_in_body, FetchProblem.CONNECT),
        (not_http, FetchProblem.CONNECT),
        (huge_declared, FetchProblem.TOO_LARGE),
        (huge_chunked, FetchProblem.TOO_LARGE),
        (endless_headers, FetchProblem.CONNECT),
        (answering(b"not gzip", Content_Encoding="gzip"), FetchProblem.PROTOCOL),
    ],
)
def test_a_fetch_ends_in_time_whatever_the_server_does(member: Start, script: Script, expected: FetchProblem) -> None:
    assert problem(member(script).url) == expected


def test_a_bomb_does_not_fill_the_memory(member: Start) -> None:
    bomb = gzip.compress(b" " * 200_000_000)
    url = member(answering(bomb, Content_Encoding="gzip")).url
    tracemalloc.start()
    assert problem(url, seconds=3) == FetchProblem.TOO_LARGE
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_redirect_is_given_back_not_followed(member: Start) -> None:
    victim = member(answering(b"secret"))
    fetched = SESSION.fetch(member(answering(b"", status=307, Location=victim.url)).url)
    assert fetched.status == 307
    assert victim.connections == 0


def test_nothing_is_tried_again(member: Start) -> None:
    bad = member(answering(b"", status=503, Retry_After="1"))
    assert SESSION.fetch(bad.url).status == 503
    dropped = member(reset)
    problem(dropped.url)
    assert (bad.connections, dropped.connections) == (1, 1)


def test_proxies_of_the_environment_are_not_used(member: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, asked = member(answering(b"proxied")), member(answering(b"direct"))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("no_proxy", "")
    assert SESSION.fetch(asked.url).body == b"direct"
    assert proxy.connections == 0


def test_a_fetch_goes_to_the_address_that_was_checked(member: Start) -> None:
    asked = member(answering(b"here"))
    found = iter([["127.0.0.1"], ["10.0.0.1"]])
    session = SafeSession(development=True, lookup=lambda _h, _p: next(found))
    url = f"http://keys.lakeside.example:{asked.port}/jwks"
    assert session.fetch(url).body == b"here"
    assert problem(url, session) == FetchProblem.REFUSED
    assert asked.connections == 1


def test_a_lookup_that_hangs_is_not_waited_for(member: Start) -> None:
    asked = member(hang_before_headers)

    def hanging(_host: str, _port: int) -> list[str]:
        asked.stop.wait(10)
        return []

    session = SafeSession(development=True, lookup=hanging)
    assert problem("http://keys.lakeside.example/jwks", session) == FetchProblem.TIMEOUT


def test_loopback_by_ipv6(member: Start) -> None:
    """The literal form reaches the socket without its brackets."""
    assert problem("http://[::1]:1/fhir") == FetchProblem.CONNECT
