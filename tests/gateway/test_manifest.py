"""A manifest that is right becomes members, clients and users; every mistake gets its sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from joserfc.jwk import ECKey, OctKey

from hie.core.caller import Role
from hie.core.scopes import Scopes
from hie.gateway.directory import Auth, Endpoint
from hie.gateway.manifest import ManifestError, document, load, parse
from tests.gateway.outside import ec_key, jwks, manifest, manifest_dict, rsa_key


def mistakes(content: Any, *, development: bool = False) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        parse(content, development=development)
    return caught.value.mistakes


def with_member(**changes: Any) -> dict[str, Any]:
    content = manifest_dict()
    content["members"][0] |= changes
    return content


def with_client(**changes: Any) -> dict[str, Any]:
    content = manifest_dict()
    content["clients"][0] |= changes
    return content


def with_user(**changes: Any) -> dict[str, Any]:
    content = manifest_dict()
    content["users"][0] |= changes
    return content


def test_reads_members_clients_and_users() -> None:
    read = manifest()
    lakeside, meadow, harvest = (entry.member for entry in read.members)
    assert lakeside.endpoint == Endpoint("https://fhir.lakeside.example/r4", Auth("none"))
    assert lakeside.purposes == {"TREAT", "ETREAT", "BTG", "HOPERAT"}
    assert (lakeside.kind, lakeside.part2, lakeside.consent_default) == ("provider", False, None)
    assert (meadow.purposes, meadow.part2) == ({"TREAT"}, True)
    assert (lakeside.address, meadow.address) == (None, "7 Meadow Lane, Springfield, MA 01101")
    assert harvest.endpoint is None
    assert [c.role for entry in read.members for c in entry.clients or ()] == [Role.MEMBER] * 3 + [Role.PAYER]
    assert (read.clients[0].member_id, read.clients[0].role) == (None, Role.PRIVACY_OFFICER)
    assert read.clients[0].scopes == Scopes.parse("system/AuditEvent.rs system/Consent.cruds")
    assert read.users[0].user.email == "r.ortiz@lakeside.example"


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    as_json, as_yaml = tmp_path / "m.json", tmp_path / "m.yaml"
    as_json.write_text(json.dumps(manifest_dict()))
    as_yaml.write_text(yaml.safe_dump(manifest_dict()))
    assert load(as_json, development=False) == load(as_yaml, development=False) == manifest()


def test_the_example_of_the_contract_is_read() -> None:
    text = """
    members:
      - id: lakeside                       # slug
        name: Lakeside Hospital
        patient_id_system: urn:oid:2.999.1.1
        endpoint: {url: "https://fhir.lakeside.example/r4", auth: {type: none}}
        consent_default: permit
        kind: provider
    """
    read = parse(document(text.encode()), development=False)
    assert read.members[0].member.consent_default == "permit"
    assert read.members[0].clients is None


def test_all_auth_types_are_read() -> None:
    oauth2 = {"type": "oauth2", "client_id": "hie", "token_url": "https://auth.lakeside.example/token?tenant=1"}
    for auth, expected in (
        ({"type": "bearer", "token": "t"}, Auth("bearer", token="t")),
        ({"type": "basic", "username": "u", "password": "p"}, Auth("basic", username="u", password="p")),
        (
            {**oauth2, "scope": "system/*.rs"},
            Auth("oauth2", client_id="hie", token_url=oauth2["token_url"], scope="system/*.rs"),
        ),
    ):
        content = with_member(endpoint={"url": "https://fhir.lakeside.example/r4", "auth": auth})
        endpoint = manifest(content).members[0].member.endpoint
        assert endpoint is not None
        assert endpoint.auth == expected


def test_secrets_do_not_show_when_printed() -> None:
    shown = repr(manifest())
    assert "meadow-secret" not in shown
    assert "correct horse" not in shown


def test_only_development_takes_loopback_addresses() -> None:
    content = with_member(endpoint={"url": "http://127.0.0.1:8090/fhir"})
    assert mistakes(content)[0].startswith("members[0].endpoint.url: ")
    endpoint = manifest(content, development=True).members[0].member.endpoint
    assert endpoint == Endpoint("http://127.0.0.1:8090/fhir")


@pytest.mark.parametrize(
    "url",
    [
        "http://0177.0.0.1/fhir",
        "https://2130706433/fhir",
        "https://127.1/fhir",
        "https://0x7f.1/fhir",
        "https://0.0.0.0/fhir",
        "https://[::ffff:127.0.0.1]/fhir",
        "https://169.254.169.254/latest",
        "https://fhir.lakeside.example@127.0.0.1/fhir",
        "https://fhir.lakeside.example/r4?x=1",
        "file:///etc/passwd",
    ],
)
def test_hostile_addresses_are_refused(url: str) -> None:
    found = mistakes(with_member(endpoint={"url": url}))
    assert [m.startswith("members[0].endpoint.url: The ") for m in found] == [True]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "the manifest must be a mapping with members, clients and users."),
        ([], "the manifest must be a mapping with members, clients and users."),
        ({"member": []}, "member: is not a known key; did you mean members?"),
        ({"members": {}}, "members: must be a list."),
        ({"members": ["lakeside"]}, "members[0]: must be a mapping (key: value)."),
        (with_member(id="Lake Side"), "members[0].id: must be 1 to 32 lower-case letters, digits or hyphens."),
        (with_member(id="x" * 33), "members[0].id: must be 1 to 32 lower-case letters, digits or hyphens."),
        (with_member(id="exchange"), "members[0].id: exchange is the exchange itself; choose another id."),
        (with_member(name=None), "members[0].name: is required."),
        (with_member(name=7), "members[0].name: must be text; put it in quotes."),
        (with_member(name="a\nb"), "members[0].name: must be at most 200 printable characters on one line."),
        (with_member(nmae="x"), "members[0].nmae: is not a known key; did you mean name?"),
        (with_member(patient_id_system="2.999.1"), "members[0].patient_id_system: must be an absolute URI, such as "),
        (
            with_member(kind="hospital"),
            "members[0].kind: must be one of provider, payer, lab, pharmacy, public-health.",
        ),
        (with_member(consent_default="maybe"), "members[0].consent_default: must be one of permit, deny, "),
        (with_member(purposes=[]), "members[0].purposes: is required: a list of at least one text."),
        (with_member(purposes=["TREET"]), "members[0].purposes[0]: must be one of BTG, ETREAT, "),
        (with_member(part2="yes"), "members[0].part2: must be true or false."),
        (with_member(endpoint="https://x.example"), "members[0].endpoint: must be a mapping (key: value)."),
        (with_member(endpoint={"url": ""}), "members[0].endpoint.url: is required."),
        (
            with_member(endpoint={"url": "https://x.example", "auth": {"type": "digest"}}),
            "members[0].endpoint.auth.type: must be one of none, basic, bearer, oauth2.",
        ),
        (
            with_member(endpoint={"url": "https://x.example", "auth": {"type": "bearer"}}),
            "members[0].endpoint.auth.token: is required.",
        ),
        (
            with_member(endpoint={"url": "https://x.example", "auth": {"type": "none", "token": "t"}}),
            "members[0].endpoint.auth.token: is not a known key; ",
        ),
        (
            with_member(
                endpoint={
                    "url": "https://x.example",
                    "auth": {"type": "oauth2", "client_id": "c", "token_url": "https://10.0.0.1/token"},
                }
            ),
            "members[0].endpoint.auth.token_url: The host of the address is not a public address.",
        ),
        (with_client(role="boss"), "clients[0].role: must be one of clinician, member-admin, "),
        (with_client(role="member"), "clients[0].role: must be one of clinician, member-admin, "),
        (with_client(scopes=["system/Patient.sr"]), "clients[0].scopes[0]: must be a SMART v2 system scope, "),
        (with_client(scopes=["user/Patient.rs"]), "clients[0].scopes[0]: must be a SMART v2 system scope, "),
        (with_client(scopes="system/*.rs"), "clients[0].scopes: is required: a list of at least one text."),
        (with_client(jwks_uri="https://x.example/jwks"), "clients[0]: needs either jwks (public keys) or jwks_uri "),
        (with_client(jwks={}), 'clients[0].jwks: must be a JWK Set: {"keys": [...]} '),
        (with_client(jwks={"keys": ["k"]}), "clients[0].jwks.keys[0]: must be a JSON object (a JWK)."),
        (with_user(email="rosa"), "users[0].email: must be an email address."),
        (with_user(role="clinican"), "users[0].role: must be one of clinician, "),
        (with_user(member=None), "users[0].member: is required: a clinician acts for a member."),
        (with_user(role="patient"), "users[0].member: must be absent: a patient acts for nobody's organization."),
        (with_user(password="short"), "users[0].password: must have at least 8 characters."),
        (with_user(password=12345678), "users[0].password: must be text; put it in quotes."),
    ],
)
def test_each_mistake_has_its_sentence(content: Any, sentence: str) -> None:
    found = mistakes(content)
    assert [m[: len(sentence)] for m in found] == [sentence]


def test_every_mistake_is_reported_at_once() -> None:
    content = with_member(id="A", kind="b")
    content["users"][1]["role"] = "c"
    assert [m.split(":")[0] for m in mistakes(content)] == ["members[0].id", "members[0].kind", "users[1].role"]


def test_private_keys_are_refused_without_being_shown() -> None:
    private = ec_key("privacy").as_dict(private=True)
    for key in (private, rsa_key("rsa").as_dict(private=True), OctKey.import_key(b"x" * 32).as_dict(private=True)):
        (found,) = mistakes(with_client(jwks={"keys": [key]}))
        assert found.startswith("clients[0].jwks.keys[0]: holds a private or secret key; ")
    assert private["d"] not in found


@pytest.mark.filterwarnings("ignore:Key size")
def test_keys_that_cannot_verify_are_refused() -> None:
    p256 = ECKey.generate_key("P-256", parameters={"kid": "a"}).as_dict(private=False)
    good = ec_key("privacy").as_dict(private=False)
    for key, sentence in (
        (p256, "must be on the curve P-384"),
        (rsa_key("small", 1024).as_dict(private=False), "is an RSA key of 1024 bits; use 2048 to 8192."),
        (good | {"alg": "ES256"}, "is an EC key, so its alg must be ES384 or absent."),
        (good | {"use": "enc"}, "is not a key for verifying signatures"),
        (good | {"kid": ""}, "needs a kid of 1 to 128 printable characters."),
        (good | {"y": good["x"]}, "is not a valid key: its numbers do not decode, or are not on the curve."),
        (good | {"kty": "OKP"}, "must be an RSA or EC key (kty)."),
    ):
        (found,) = mistakes(with_client(jwks={"keys": [key]}))
        assert found.startswith(f"clients[0].jwks.keys[0]: {sentence}")


def test_a_kid_names_one_key() -> None:
    other = ECKey.generate_key("P-384", parameters={"kid": "privacy"})
    (found,) = mistakes(with_client(jwks=jwks(ec_key("privacy"), other)))
    assert found == "clients[0].jwks.keys[1].kid: is the kid of an earlier key too; a kid must name one key."


@pytest.mark.parametrize(
    "spelling",
    [
        "https://FHIR.lakeside.example/r4",
        "https://fhir.lakeside.example:443/r4",
        "https://fhir.lakeside.example/r4/",
        "https://fhir.lakeside.example/R4",
        "https://fhir.lakeside.example./r4",
        "https://fhir.lakeside.example/%72%34",
    ],
)
def test_two_members_cannot_have_one_address(spelling: str) -> None:
    content = manifest_dict()
    content["members"][1]["endpoint"]["url"] = spelling
    assert mistakes(content) == ("members[1].endpoint.url: is the same address as members[0].endpoint.url.",)


def test_ids_systems_and_emails_are_unique() -> None:
    content = manifest_dict()
    content["members"][1]["patient_id_system"] = "urn:oid:2.999.1.1"
    content["clients"][0]["id"] = "meadow-ehr"
    content["users"][1]["email"] = "R.Ortiz@lakeside.example"
    assert mistakes(content) == (
        "members[1].patient_id_system: is the same system as members[0].patient_id_system.",
        "clients[0].id: is the same id as members[1].clients[0].id.",
        "users[1].email: is the same email as users[0].email.",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("members: [\n", "line 2, column 1: the manifest is not valid YAML or JSON."),
        ('{"members": [], "members": []}', "the key 'members' is given twice in one mapping."),
        ("members: []\nclients: []\nmembers: []\n", "line 3: the key 'members' is given twice."),
        ("a: &a [x]\nb: [*a, *a]\n", "line 2: aliases (*name) are not read; write the value out."),
        ("base: &base {id: x}\nmembers:\n  - <<: *base\n", "line 3: aliases (*name) are not read; "),
        ("[" * 40, "line 1: the manifest is nested too deeply."),
        ('{"a":' * 100_000, "the manifest is nested too deeply."),
        ("members: !!python/object/apply:os.system [id]\n", "line 1, column 10: the manifest is not valid YAML "),
        ("members: 2024-02-30\n", "the manifest holds a value that YAML cannot read."),
        ("? [a, b]\n: c\n", "line 1: a key must be text."),
    ],
)
def test_texts_that_are_not_read(text: str, sentence: str) -> None:
    with pytest.raises(ManifestError) as caught:
        document(text.encode())
    assert caught.value.message.startswith(sentence)


def test_bytes_that_are_not_text() -> None:
    with pytest.raises(ManifestError, match="not UTF-8"):
        document(b"members: \xff")
