"""The live check of a member: each thing that can be wrong is found, with what to do, in time and without raising."""

from __future__ import annotations

import datetime
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hie.core.fhir import CLINICAL_TYPES
from hie.gateway import guard
from hie.gateway.capability import CapabilityReport, check
from hie.gateway.directory import Auth, Endpoint, Member
from hie.gateway.keys import signing_key
from hie.gateway.transport import MemberQuery, Transport
from tests.faults.hostile import Connection, HostileMember, Script, allergy, answering, bundle
from tests.faults.test_members import body_drip, hang_before_headers, header_drip, huge_chunked, not_http, reset

Start = Callable[..., HostileMember]
SECRET = "SECRET-STACKTRACE <script>alert(1)</script>"


@pytest.fixture
def server() -> Iterator[Start]:
    started: list[HostileMember] = []

    def start(script: Script, tls: ssl.SSLContext | None = None) -> HostileMember:
        started.append(HostileMember(script, tls))
        return started[-1]

    yield start
    for one in started:
        one.close()


def member(url: str | None, auth: Auth | None = None) -> Member:
    endpoint = Endpoint(url, auth or Auth()) if url else None
    return Member("lakeside", "Lakeside", "urn:oid:2.999.1", endpoint, None, "provider", frozenset(), False)


def report(url: str | None, auth: Auth | None = None, **options: Any) -> CapabilityReport:
    """The report; whatever comes of a member, it holds none of its text and says how to mend each fault."""
    started = time.monotonic()
    found = check(member(url, auth), development=True, **{"deadline": 2.0, **options})
    assert time.monotonic() - started <= 2.2
    assert "SECRET" not in repr(found)
    assert all(finding.mend for finding in found.findings if finding.level != "ok")
    assert found.ok == all(finding.level != "error" for finding in found.findings)
    return found


def errors(found: CapabilityReport) -> list[str]:
    return [finding.subject for finding in found.findings if finding.level == "error"]


def text(found: CapabilityReport) -> str:
    return " ".join(finding.text + " " + finding.mend for finding in found.findings)


def statement(types: tuple[str, ...] = CLINICAL_TYPES, **more: Any) -> dict[str, Any]:
    resources = [
        {
            "type": kind,
            "interaction": [{"code": "search-type"}],
            "searchParam": [{"name": "patient", "type": "reference"}],
        }
        for kind in types
    ]
    return {
        "resourceType": "CapabilityStatement",
        "fhirVersion": "4.0.1",
        "format": ["json", "xml"],
        "software": {"name": SECRET},
        "rest": [{"mode": "server", "resource": resources}],
        **more,
    }


def fhir(metadata: Any, search: Any = None, *, token: str | None = None, **reply: Any) -> Script:
    """A server with these answers; /metadata is open, a search may need a token."""

    def script(connection: Connection) -> None:
        while (request := connection.request())[0]:
            if "/metadata" in request[0]:
                connection.reply(metadata)
            elif token and request[1].get("authorization") != token:
                connection.reply({"issue": [{"diagnostics": SECRET}]}, status=401)
            else:
                connection.reply(bundle() if search is None else search, **reply)

    return script


def test_a_member_that_is_well(server: Start) -> None:
    found = report(server(fhir(statement())).url)
    assert found.ok
    assert [finding.level for finding in found.findings] == ["ok"] * 4
    assert "AllergyIntolerance" in text(found)


def test_types_that_cannot_be_searched_by_patient_are_named(server: Start) -> None:
    found = report(server(fhir(statement(("AllergyIntolerance", "Condition")))).url)
    assert found.ok
    (warning,) = [finding for finding in found.findings if finding.level == "warning"]
    assert "Observation" in warning.text
    assert "Condition" not in warning.text


def test_a_search_without_the_patient_parameter_does_not_count(server: Start) -> None:
    body = statement()
    for resource in body["rest"][0]["resource"]:
        resource["searchParam"] = [{"name": "code"}]
    assert errors(report(server(fhir(body)).url)) == ["record types"]


@pytest.mark.parametrize("version", ["4.3.0", "5.0.0", "3.0.2"])
def test_another_fhir_version_is_an_error(server: Start, version: str) -> None:
    found = report(server(fhir(statement(fhirVersion=version))).url)
    assert errors(found) == ["FHIR version"]
    assert version in text(found)


@pytest.mark.parametrize("version", [None, 4, SECRET, ["4.0.1"]])
def test_a_version_that_is_none_is_a_warning(server: Start, version: Any) -> None:
    found = report(server(fhir(statement(fhirVersion=version))).url)
    assert found.ok
    assert [finding.subject for finding in found.findings if finding.level == "warning"] == ["FHIR version"]


def test_a_server_without_json(server: Start) -> None:
    assert errors(report(server(fhir(statement(format=["xml"]))).url)) == ["format"]


def test_a_server_that_ignores_the_patient_is_found_out(server: Start) -> None:
    """fhirsnake answers any search with all it has."""
    found = report(server(fhir(statement(), bundle(allergy()))).url)
    assert errors(found) == ["search"]
    assert "does not heed" in text(found)


@pytest.mark.parametrize("code", [400, 404, 422])
def test_refusing_an_unknown_patient_is_no_fault(server: Start, code: int) -> None:
    assert report(server(fhir(statement(), {"issue": [SECRET]}, status=code)).url).ok


@pytest.mark.parametrize(
    ("script", "subject"),
    [
        (answering(b"<html>" + SECRET.encode(), content_type="text/html"), "format"),
        (answering(SECRET.encode()), "metadata"),
        (answering({"resourceType": "Bundle", "type": "searchset"}), "metadata"),
        (answering([]), "metadata"),
        (answering({"resourceType": SECRET}), "metadata"),
        (answering(SECRET.encode(), status=500), "connection"),
        (answering(SECRET.encode(), status=401), "authentication"),
        (answering(SECRET.encode(), status=403), "authentication"),
        (answering(SECRET.encode(), status=404), "address"),
        (answering(b"", status=302, Location="http://127.0.0.1/SECRET"), "address"),
        (answering(b"", status=429, Retry_After="3600"), "connection"),
        (hang_before_headers, "connection"),
        (header_drip, "connection"),
        (body_drip, "connection"),
        (reset, "connection"),
        (not_http, "connection"),
        (huge_chunked, "metadata"),
        (fhir(statement(), bundle(), status=500), "connection"),
        (fhir(statement(), {"resourceType": "OperationOutcome", "issue": [SECRET]}), "search"),
        (fhir(statement(rest=SECRET)), "record types"),
        (fhir(statement(rest=[{"resource": [SECRET, {"type": 7, "searchParam": 7}]}])), "record types"),
    ],
)
def test_a_broken_member_is_reported_not_raised(server: Start, script: Script, subject: str) -> None:
    assert errors(report(server(script).url)) == [subject]


def test_nobody_listens(free_port: Callable[[], int]) -> None:
    assert errors(report(f"http://127.0.0.1:{free_port()}/fhir")) == ["connection"]


def test_a_member_without_an_endpoint() -> None:
    assert errors(report(None)) == ["endpoint"]


def test_names_that_lead_nowhere_or_inside() -> None:
    def nowhere(_host: str, _port: int) -> list[str]:
        raise OSError("SECRET")

    assert errors(report("http://fhir.lakeside.example/r4", lookup=nowhere)) == ["DNS"]
    assert errors(report("http://fhir.lakeside.example/r4", lookup=lambda _h, _p: ["10.0.0.1"])) == ["address"]


def test_an_address_that_production_does_not_allow_is_not_asked(server: Start) -> None:
    asked = server(fhir(statement()))
    found = check(member(asked.url), development=False)
    assert errors(found) == ["address"]
    assert asked.connections == 0


# -- signing in


def test_a_password_that_is_not_accepted(server: Start) -> None:
    url = server(fhir(statement(), token="Bearer right")).url
    assert report(url, Auth("bearer", token="right")).ok
    assert errors(report(url, Auth("bearer", token="wrong"))) == ["authentication"]
    assert errors(report(url)) == ["authentication"]
    assert errors(report(url, Auth("basic", username="u"))) == ["authentication"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"body": {"access_token": "abc", "token_type": "bearer"}}, []),
        ({"body": {"error": SECRET}, "status": 400}, ["authentication"]),
        ({"body": {"access_token": SECRET}}, ["authentication"]),
        ({"body": b"{"}, ["authentication"]),
    ],
)
def test_oauth2_is_tried(server: Start, tmp_path: Path, reply: dict[str, Any], expected: list[str]) -> None:
    tokens, chart = server(answering(**reply)), server(fhir(statement(), token="Bearer abc"))
    auth = Auth("oauth2", client_id="c", token_url=f"http://127.0.0.1:{tokens.port}/token")
    assert errors(report(chart.url, auth, signing_key=lambda: signing_key(tmp_path))) == expected


def test_oauth2_without_a_key_or_to_a_bad_address_is_reported(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/fhir"
    auth = Auth("oauth2", client_id="c", token_url="http://10.0.0.1/token")
    assert errors(report(url, auth)) == ["authentication"]
    assert errors(report(url, auth, signing_key=lambda: signing_key(tmp_path))) == ["address"]


# -- TLS


def certificate(folder: Path, name: str, *, expired: bool = False) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate's file, and a server's context that uses it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=-1 if expired else 1)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / f"{name}.pem", folder / f"{name}.key"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Trust one more authority, as an operator does."""

    def trust(file: Path) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        guard.tls_context.cache_clear()

    yield trust
    monkeypatch.undo()
    guard.tls_context.cache_clear()


NAME = "fhir.lakeside.example"


def at(port: int, name: str = NAME) -> str:
    return f"https://{name}:{port}/fhir"


def home(_host: str, _port: int) -> list[str]:
    return ["127.0.0.1"]


def test_tls_is_verified_by_name_though_the_address_is_pinned(
    server: Start, tmp_path: Path, trusting: Callable[[Path], None]
) -> None:
    file, context = certificate(tmp_path, NAME)
    trusting(file)
    running = server(fhir(statement(), bundle(allergy())), context)
    assert errors(report(at(running.port), lookup=home)) == ["search"]  # it got through, and found the patient ignored
    other = report(at(running.port, "riverside.example"), lookup=home)
    assert errors(other) == ["TLS"]
    assert "another host name" in text(other)

    transport = Transport(development=True, lookup=home)
    asked = [MemberQuery(n, at(running.port, n), Auth(), "Condition", (), "r") for n in (NAME, "riverside.example")]
    good, bad = transport.ask(asked, time.monotonic() + 2)
    transport.close()
    assert good.resources == (allergy(),)
    assert bad.failure is not None
    assert bad.failure.status == "unreachable"


def test_a_certificate_that_nobody_vouches_for_or_that_is_old(
    server: Start, tmp_path: Path, trusting: Callable[[Path], None]
) -> None:
    _, unknown = certificate(tmp_path, NAME)
    found = report(at(server(fhir(statement()), unknown).port), lookup=home)
    assert errors(found) == ["TLS"]
    assert "signed by itself" in text(found)
    file, old = certificate(tmp_path, NAME, expired=True)
    trusting(file)
    found = report(at(server(fhir(statement()), old).port), lookup=home)
    assert errors(found) == ["TLS"]
    assert "expired" in text(found)


def test_plain_http_at_an_https_address(server: Start) -> None:
    def plain(connection: Connection) -> None:
        connection.head(400)

    found = report(at(server(plain).port), lookup=home)
    assert errors(found) == ["TLS"]
    assert "could not be set up" in text(found)


def test_a_tls_handshake_that_hangs(server: Start) -> None:
    def silent(connection: Connection) -> None:
        connection.stop.wait()

    assert errors(report(at(server(silent).port), lookup=home)) == ["connection"]
