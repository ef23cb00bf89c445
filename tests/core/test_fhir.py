import pytest

from hie.core import fhir
from hie.core.errors import BadRequest, HieError, TooLarge, Unprocessable

PATIENT = b'{"resourceType":"Patient","name":[{"family":"Lind"}],"birthDate":"1949-11-02"}'


def test_a_valid_resource_is_returned_as_sent():
    assert fhir.parse_resource(PATIENT, "Patient")["birthDate"] == "1949-11-02"


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"{not json", BadRequest),
        (b"[]", BadRequest),
        (b"\xff\xfe", BadRequest),
        (b'{"a":NaN}', BadRequest),
        (b'{"resourceType":"Patient","resourceType":"Patient"}', BadRequest),
        (b'{"resourceType":"Observation"}', BadRequest),
        (b'{"resourceType":7}', BadRequest),
        (b'{"resourceType":"Patient","birthDate":"2024-02-30"}', Unprocessable),
        (b'{"resourceType":"Patient","gender":[1]}', Unprocessable),
        (b'{"resourceType":"Patient","unheardOf":1}', Unprocessable),
        (b'{"resourceType":"Patient","name":[{"family":"Li\\u0000nd"}]}', BadRequest),
        (b'{"resourceType":"Patient","x":' + b"[" * 400_000 + b"]" * 400_000 + b"}", BadRequest),
        (b'{"a":"' + b"x" * 1_100_000 + b'"}', TooLarge),
    ],
)
def test_bad_bodies_are_refused_with_a_sentence(raw, error):
    with pytest.raises(error) as caught:
        fhir.parse_resource(raw, "Patient")
    assert isinstance(caught.value, HieError)
    assert caught.value.message.endswith(".") or ":" in caught.value.message


def test_brackets_inside_strings_do_not_count_as_depth():
    raw = b'{"resourceType":"Patient","name":[{"family":"' + b"[" * 500 + b'\\""}]}'
    assert fhir.parse_resource(raw, "Patient")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("Patient/7", ("Patient", "7")),
        ("https://x.example/r4/Patient/7/_history/2", ("Patient", "7")),
        ("#contained", None),
        ("urn:uuid:1", None),
        ("7", None),
        (None, None),
    ],
)
def test_local_reference(reference, expected):
    assert fhir.local_reference(reference) == expected


@pytest.mark.parametrize(
    "number", ["1.10", "0.00", "-7.200", "1E+40", "12345678901234567890123", "3", "9007199254740993"]
)
def test_numbers_of_other_systems_leave_as_they_came(number):
    raw = f'{{"valueQuantity":{{"value":{number}}}}}'.encode()
    assert fhir.to_bytes(fhir.parse_exact(raw)) == raw


@pytest.mark.parametrize("raw", [b'{"a":1.10,"b":"\\ud800"}', b'{"a":1.1,}', b'{"a":NaN}', b'{"a":1.5,"b":"\xff"}'])
def test_exact_parsing_is_strict(raw):
    with pytest.raises(ValueError, match=r"."):
        fhir.parse_exact(raw)
