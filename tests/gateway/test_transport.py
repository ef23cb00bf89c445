"""Asking members that are well: what is sent, what comes back, connections, breakers, sign-in, forks, pinned names."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from hie.gateway.directory import Auth
from hie.gateway.keys import signing_key
from hie.gateway.transport import MemberAnswer, MemberQuery, Transport
from tests.faults.hostile import Connection, HostileMember, Script, allergy, answering, bundle

Start = Callable[[Script], HostileMember]


@pytest.fixture
def member() -> Iterator[Start]:
    started: list[HostileMember] = []

    def start(script: Script) -> HostileMember:
        started.append(HostileMember(script))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def transport() -> Iterator[Transport]:
    opened = Transport(development=True)
    yield opened
    opened.close()


def query(url: str, *, member: str = "lakeside", auth: Auth | None = None, **parts: Any) -> MemberQuery:
    params = parts.get("params", (("patient", "Patient/p1"),))
    return MemberQuery(member, url, auth or Auth(), parts.get("path", "AllergyIntolerance"), params, "request-1")


def ask(transport: Transport, *queries: MemberQuery, seconds: float = 2.0) -> list[MemberAnswer]:
    return transport.ask(queries, time.monotonic() + seconds)


def status(answer: MemberAnswer) -> str:
    return answer.failure.status if answer.failure else "ok"


class Recorder:
    """A server that keeps what it was asked, and answers by `reply`."""

    def __init__(self, reply: Callable[[Connection, str], None] | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._reply = reply or (lambda connection, _line: connection.reply(bundle(allergy())))

    def __call__(self, connection: Connection) -> None:
        while (request := connection.request())[0]:
            self.requests.append(request)
            self._reply(connection, request[0])


# -- what is asked


def test_a_search_names_patient_page_size_and_request(member: Start, transport: Transport) -> None:
    recorder = Recorder()
    params = (("patient", "Patient/ä&b=1"), ("category", "food"))
    (answer,) = ask(transport, query(member(recorder).url, params=params))
    line, headers = recorder.requests[0]
    method, target, _ = line.split(" ")
    assert (method, urlsplit(target).path) == ("GET", "/fhir/AllergyIntolerance")
    asked = parse_qs(urlsplit(target).query)
    assert asked == {"patient": ["Patient/ä&b=1"], "category": ["food"], "_count": ["200"]}
    assert headers["accept"] == "application/fhir+json"
    assert headers["x-request-id"] == "request-1"
    assert "authorization" not in headers
    assert answer.resources == (allergy(),)
    assert answer.elapsed_ms > 0


def test_a_given_page_size_stands_and_a_read_has_none(member: Start, transport: Transport) -> None:
    recorder = Recorder()
    url = member(recorder).url
    ask(transport, query(url, params=(("_count", "7"),)), query(url, path="AllergyIntolerance/a1", params=()))
    targets = sorted(line.split(" ")[1] for line, _ in recorder.requests)
    assert targets == ["/fhir/AllergyIntolerance/a1", "/fhir/AllergyIntolerance?_count=7"]


def test_a_read_gives_the_resource_as_it_is(member: Start, transport: Transport) -> None:
    resource = {**allergy(), "unknownElement": {"x": [None, 1]}, "note": [{"text": "ü"}]}
    url = member(answering(resource)).url
    answer = transport.read(query(url, path="AllergyIntolerance/a1", params=()), time.monotonic() + 2)
    assert (answer.resources, answer.failure) == ((resource,), None)


def test_every_page_is_fetched(member: Start, transport: Transport) -> None:
    def reply(connection: Connection, line: str) -> None:
        number = int(found[1]) if (found := re.search(r"page=(\d)", line)) else 1
        link = [
            {"relation": "self", "url": "x"},
            {"relation": "next", "url": f"http://127.0.0.1:{connection.port}/fhir?page={number + 1}"},
        ]
        connection.reply(bundle(allergy(number), total=3, link=link[: 1 if number == 3 else 2]))

    (answer,) = ask(transport, query(member(Recorder(reply)).url))
    assert [r["id"] for r in answer.resources] == ["a1", "a2", "a3"]
    assert answer.failure is None


def test_a_relative_next_link_is_relative_to_the_base(member: Start, transport: Transport) -> None:
    def reply(connection: Connection, line: str) -> None:
        link = [] if "page=2" in line else [{"relation": "next", "url": "AllergyIntolerance?page=2"}]
        connection.reply(bundle(allergy(1 if link else 2), link=link))

    recorder = Recorder(reply)
    (answer,) = ask(transport, query(member(recorder).url))
    assert status(answer) == "ok"
    assert recorder.requests[1][0].split(" ")[1] == "/fhir/AllergyIntolerance?page=2"


@pytest.mark.parametrize("content_type", ["application/json", "application/fhir+json; charset=UTF-8; fhirVersion=4.0"])
def test_json_by_any_of_its_names_is_read(member: Start, transport: Transport, content_type: str) -> None:
    (answer,) = ask(transport, query(member(answering(bundle(allergy()), content_type=content_type)).url))
    assert status(answer) == "ok"


def test_a_byte_order_mark_is_no_fault(member: Start, transport: Transport) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(bundle(allergy())).encode()
    (answer,) = ask(transport, query(member(answering(body)).url))
    assert answer.resources == (allergy(),)


@pytest.mark.parametrize("path", ["", "../admin", "AllergyIntolerance/..", "AllergyIntolerance/a/b", "A?x=1"])
def test_a_path_that_is_no_type_or_id_cannot_be_asked(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        query("http://127.0.0.1/fhir", path=path)


def test_secrets_and_patients_are_not_in_the_repr() -> None:
    shown = repr(query("https://a.example", auth=Auth("bearer", token="hush-hush")))
    assert "hush" not in shown
    assert "p1" not in shown


# -- together, in order, in time


def test_all_are_asked_at_once_and_answered_in_order(member: Start, transport: Transport) -> None:
    """No server answers before all twelve questions have arrived."""
    all_here = threading.Barrier(12, timeout=5)

    def reply(connection: Connection, line: str) -> None:
        all_here.wait()
        connection.reply(bundle(allergy(re.search(r"n=(\d+)", line)[1])))  # type: ignore[index]

    urls = [member(Recorder(reply)).url for _ in range(3)]
    queries = [query(urls[n % 3], member=f"m{n % 3}", params=(("n", str(n)),)) for n in range(12)]
    answers = ask(transport, *queries, seconds=5)
    assert [a.resources[0]["id"] for a in answers] == [f"a{n}" for n in range(12)]
    assert [a.member_id for a in answers] == [q.member_id for q in queries]


def test_a_deadline_that_is_over_asks_nobody(member: Start, transport: Transport) -> None:
    asked = member(Recorder())
    (answer,) = transport.ask([query(asked.url)], time.monotonic() - 1)
    assert status(answer) == "timeout"
    assert asked.connections == 0


def test_no_questions_no_answers(transport: Transport) -> None:
    assert ask(transport) == []


def test_connections_are_kept(member: Start, transport: Transport) -> None:
    asked = member(answering(bundle(allergy())))
    for _ in range(5):
        assert status(ask(transport, query(asked.url))[0]) == "ok"
    assert asked.connections == 1


def test_a_changed_endpoint_takes_effect_at_once(member: Start, transport: Transport) -> None:
    old, new = member(answering(bundle(allergy(1)))), member(answering(bundle(allergy(2))))
    assert ask(transport, query(old.url))[0].resources == (allergy(1),)
    assert ask(transport, query(new.url))[0].resources == (allergy(2),)


def test_threads_share_one_transport(member: Start, transport: Transport) -> None:
    url = member(answering(bundle(allergy()))).url
    statuses: list[str] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(status(ask(transport, query(url), seconds=5)[0])))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == ["ok"] * 16


def test_a_closed_transport_can_be_used_again(member: Start, transport: Transport) -> None:
    url = member(answering(bundle(allergy()))).url
    for _ in range(2):
        assert status(ask(transport, query(url))[0]) == "ok"
        transport.close()


def test_closing_ends_what_still_runs(member: Start, transport: Transport) -> None:
    arrived = threading.Event()

    def hanging(connection: Connection) -> None:
        connection.request()
        arrived.set()
        connection.stop.wait()

    url = member(hanging).url
    answers: list[MemberAnswer] = []
    waiting = threading.Thread(target=lambda: answers.extend(ask(transport, query(url), seconds=30)))
    waiting.start()
    assert arrived.wait(5)
    transport.close()
    waiting.join(5)
    assert [status(a) for a in answers] == ["timeout"]


# -- the breaker


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def timed(hands: Hands) -> Iterator[Transport]:
    opened = Transport(development=True, monotonic=hands)
    yield opened
    opened.close()


class Switch:
    """A server whose answer can be changed."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.asked = 0

    def __call__(self, connection: Connection) -> None:
        while connection.request()[0]:
            self.asked += 1
            connection.reply(bundle(allergy()), status=self.code)


@pytest.mark.parametrize("code", [500, 503, 401, 403, 429])
def test_a_member_that_keeps_failing_is_left_alone_and_comes_back(
    member: Start, timed: Transport, hands: Hands, code: int
) -> None:
    switch = Switch(code)
    url = member(switch).url
    assert [status(ask(timed, query(url))[0]) for _ in range(7)] == ["error"] * 5 + ["open-circuit"] * 2
    assert switch.asked == 5

    hands.now += 10  # one may try, and fails
    assert [status(ask(timed, query(url))[0]) for _ in range(2)] == ["error", "open-circuit"]

    hands.now += 10
    switch.code = 200
    assert [status(ask(timed, query(url))[0]) for _ in range(2)] == ["ok", "ok"]
    switch.code = code
    assert [status(ask(timed, query(url))[0]) for _ in range(6)] == ["error"] * 5 + ["open-circuit"]


def test_while_one_tries_the_others_do_not(member: Start, timed: Transport, hands: Hands) -> None:
    arrived, go_on = threading.Event(), threading.Event()
    failing = [True]

    def reply(connection: Connection, _line: str) -> None:
        if failing[0]:
            return connection.reply(b"", status=500)
        arrived.set()
        go_on.wait(5)
        return connection.reply(bundle(allergy()))

    recorder = Recorder(reply)
    url = member(recorder).url
    for _ in range(5):
        ask(timed, query(url))
    failing[0] = False
    hands.now += 10
    tried: list[MemberAnswer] = []
    trial = threading.Thread(target=lambda: tried.extend(ask(timed, query(url), seconds=5)))
    trial.start()
    assert arrived.wait(5)
    herd = [status(ask(timed, query(url))[0]) for _ in range(8)]
    go_on.set()
    trial.join()
    assert herd == ["open-circuit"] * 8
    assert status(tried[0]) == "ok"
    assert len(recorder.requests) == 6


def test_a_type_that_a_member_does_not_have_does_not_open_the_breaker(member: Start, timed: Transport) -> None:
    switch = Switch(404)
    url = member(switch).url
    assert {status(ask(timed, query(url))[0]) for _ in range(8)} == {"error"}
    assert switch.asked == 8


def test_many_questions_of_one_query_count_once(member: Start, timed: Transport) -> None:
    switch = Switch(500)
    url = member(switch).url
    for _ in range(4):
        assert {status(a) for a in ask(timed, *[query(url)] * 13)} == {"error"}
    switch.code = 200
    assert status(ask(timed, query(url))[0]) == "ok"


def test_breakers_are_per_member_and_start_afresh_with_a_new_address(member: Start, timed: Transport) -> None:
    bad, good = member(Switch(500)), member(Switch(200))
    for _ in range(6):
        ask(timed, query(bad.url))
    assert [status(a) for a in ask(timed, query(bad.url), query(good.url, member="riverside"))] == [
        "open-circuit",
        "ok",
    ]
    assert status(ask(timed, query(good.url))[0]) == "ok"


def test_a_cleared_member_is_asked_again(member: Start, timed: Transport) -> None:
    switch = Switch(500)
    url = member(switch).url
    for _ in range(6):
        ask(timed, query(url))
    timed.clear("lakeside")
    assert status(ask(timed, query(url))[0]) == "error"


# -- signing in at the member


def test_basic_and_bearer(member: Start, transport: Transport) -> None:
    recorder = Recorder()
    url = member(recorder).url
    ask(transport, query(url, auth=Auth("basic", username="hie", password="pä:ss")))
    ask(transport, query(url, auth=Auth("bearer", token="abc.def")))
    sent = [headers["authorization"] for _, headers in recorder.requests]
    assert base64.b64decode(sent[0].removeprefix("Basic ")).decode() == "hie:pä:ss"
    assert sent[1] == "Bearer abc.def"


class TokenServer:
    """A token endpoint and a FHIR server that takes the newest token only."""

    def __init__(self, public: ECKey) -> None:
        self.public = public
        self.given = 0
        self.accepted = 0
        self.claims: list[dict[str, Any]] = []
        self.life = 300

    def __call__(self, connection: Connection) -> None:
        while (request := connection.request())[0]:
            line, headers = request
            if line.startswith("POST /token "):
                self._token(connection, parse_qs(headers["(body)"]))
            elif headers.get("authorization") == f"Bearer token-{self.given}":
                self.accepted += 1
                connection.reply(bundle(allergy()))
            else:
                connection.reply(b"", status=401)

    def _token(self, connection: Connection, form: dict[str, list[str]]) -> None:
        assert form["grant_type"] == ["client_credentials"]
        assert form["client_assertion_type"] == ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"]
        token = jwt.decode(form["client_assertion"][0], self.public, algorithms=["ES384"])
        self.claims.append({**token.claims, "scope": form["scope"][0], "kid": token.header["kid"]})
        self.given += 1
        body = {"access_token": f"token-{self.given}", "token_type": "Bearer", "expires_in": self.life}
        connection.reply(body, content_type="application/json")


@pytest.fixture
def smart(tmp_path: Path, member: Start) -> Iterator[tuple[Transport, TokenServer, Callable[[], MemberQuery]]]:
    key = signing_key(tmp_path)
    server = TokenServer(ECKey.import_key(key.as_dict(private=False)))
    running = member(server)
    auth = Auth(
        "oauth2", client_id="the-exchange", token_url=f"http://127.0.0.1:{running.port}/token", scope="system/*.rs"
    )
    opened = Transport(development=True, signing_key=lambda: signing_key(tmp_path))
    yield opened, server, lambda: query(running.url, auth=auth)
    opened.close()


def test_oauth2_signs_in_with_the_exchanges_key_once_for_many_questions(
    smart: tuple[Transport, TokenServer, Callable[[], MemberQuery]],
) -> None:
    transport, server, asking = smart
    assert {status(a) for a in ask(transport, *[asking()] * 13)} == {"ok"}
    assert status(ask(transport, asking())[0]) == "ok"
    (claims,) = server.claims
    assert claims["iss"] == claims["sub"] == "the-exchange"
    assert claims["aud"].endswith("/token")
    assert claims["scope"] == "system/*.rs"
    assert 0 < claims["exp"] - time.time() <= 300
    assert claims["jti"]
    assert claims["kid"] == server.public.thumbprint()


def test_a_token_that_the_member_no_longer_takes_is_replaced(
    smart: tuple[Transport, TokenServer, Callable[[], MemberQuery]],
) -> None:
    transport, server, asking = smart
    ask(transport, asking())
    server.given = 7  # as after a restart of the member
    assert status(ask(transport, asking())[0]) == "error"
    assert status(ask(transport, asking())[0]) == "ok"


def test_a_token_that_has_run_out_is_not_sent(
    smart: tuple[Transport, TokenServer, Callable[[], MemberQuery]],
) -> None:
    transport, server, asking = smart
    server.life = 1
    for _ in range(2):
        assert status(ask(transport, asking())[0]) == "ok"
    assert len({c["jti"] for c in server.claims}) == 2


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"body": b"<html>", "status": 200}, "error"),
        ({"body": {"error": "invalid_client", "error_description": "SECRET"}, "status": 401}, "error"),
        ({"body": {"access_token": "a\r\nX-Injected: 1", "token_type": "bearer"}, "status": 200}, "error"),
        ({"body": {"access_token": "abc", "token_type": "mac"}, "status": 200}, "error"),
        ({"body": b"x" * 100_000, "status": 200}, "truncated"),
        ({"body": b"", "status": 302, "Location": "/fhir"}, "error"),
    ],
)
def test_a_token_endpoint_that_misbehaves_costs_only_its_member(
    member: Start, tmp_path: Path, reply: dict[str, Any], expected: str
) -> None:
    tokens, chart = member(answering(**reply)), member(answering(bundle(allergy())))
    auth = Auth("oauth2", client_id="c", token_url=f"http://127.0.0.1:{tokens.port}/token")
    transport = Transport(development=True, signing_key=lambda: signing_key(tmp_path))
    answers = ask(transport, query(chart.url, auth=auth), query(chart.url, member="riverside"))
    transport.close()
    assert [status(a) for a in answers] == [expected, "ok"]
    assert chart.connections == 1


@pytest.mark.parametrize("auth", [Auth("basic"), Auth("bearer"), Auth("bearer", token="a\r\nb"), Auth("oauth2")])
def test_incomplete_sign_in_settings_send_nothing(member: Start, transport: Transport, auth: Auth) -> None:
    asked = member(Recorder())
    assert status(ask(transport, query(asked.url, auth=auth))[0]) == "error"
    assert asked.connections == 0


# -- where it may go


@pytest.mark.parametrize("url", ["http://127.0.0.1/fhir", "https://127.0.0.1/fhir", "https://10.0.0.1/fhir", "ftp://a"])
def test_production_asks_no_address_that_registration_would_refuse(url: str) -> None:
    transport = Transport(development=False)
    assert status(ask(transport, query(url))[0]) == "unreachable"
    transport.close()


def test_a_name_is_looked_up_once_for_a_connection_and_checked_each_time(member: Start) -> None:
    """A name that changes its mind (DNS rebinding) is followed nowhere: what was checked is what is connected to."""
    asked = member(Recorder())
    found = iter([["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"]])
    transport = Transport(development=True, lookup=lambda _host, _port: next(found))
    url = f"http://fhir.lakeside.example:{asked.port}/fhir"
    statuses = [status(ask(transport, query(url, member=f"m{n}"))[0]) for n in range(3)]
    transport.close()
    assert statuses == ["ok", "unreachable", "unreachable"]
    assert next(found, None) is None
    assert asked.connections == 1


def test_production_does_not_connect_to_a_public_name_that_leads_inside() -> None:
    looked_up: list[tuple[str, int]] = []

    def inside(host: str, port: int) -> list[str]:
        looked_up.append((host, port))
        return ["127.0.0.1"]

    transport = Transport(development=False, lookup=inside)
    answer = ask(transport, query("https://fhir.lakeside.example:8443/fhir"))[0]
    transport.close()
    assert status(answer) == "unreachable"
    assert looked_up == [("fhir.lakeside.example", 8443)]


def test_one_bad_address_among_several_refuses_all(member: Start) -> None:
    victim = member(Recorder())
    transport = Transport(development=True, lookup=lambda _host, _port: ["127.0.0.1", "10.0.0.1"])
    answer = ask(transport, query(f"http://fhir.lakeside.example:{victim.port}/fhir"))[0]
    transport.close()
    assert status(answer) == "unreachable"
    assert victim.connections == 0


def test_a_name_server_that_hangs_costs_the_deadline_of_its_member_only(member: Start) -> None:
    go_on = threading.Event()
    good = member(answering(bundle(allergy())))

    def hanging(_host: str, _port: int) -> list[str]:
        go_on.wait(10)
        return []

    transport = Transport(development=True, lookup=hanging)
    started = time.monotonic()
    slow = [query(f"http://m{n}.example/fhir", member=f"m{n}") for n in range(8)]
    answers = ask(transport, *slow, query(good.url), seconds=0.5)
    elapsed = time.monotonic() - started
    go_on.set()
    transport.close()
    assert [status(a) for a in answers] == ["timeout"] * 8 + ["ok"]
    assert elapsed <= 0.55


# -- after a fork


def test_two_forked_children_and_the_parent_all_ask(member: Start, transport: Transport) -> None:
    """Used before the fork, which is the hard case: the parent's loop and sockets must stay the parent's."""
    url = member(answering(bundle(allergy()))).url
    assert status(ask(transport, query(url))[0]) == "ok"
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            fine = all(status(ask(transport, query(url), seconds=5)[0]) == "ok" for _ in range(3))
            os._exit(0 if fine else 1)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0]
    assert status(ask(transport, query(url))[0]) == "ok"
