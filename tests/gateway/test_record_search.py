import pytest

from hie.core.errors import BadRequest
from hie.gateway.record_search import Page, date_range, parse
from hie.mpi.identity import Identifier

BASE = "https://hie.example/fhir"
PATIENT = ("patient", "Patient/p")


def keeps(resource_type, name, value, resource):
    asked = parse(resource_type, [PATIENT, (name, value)], BASE)
    assert asked.ignored == ()
    return asked.keep(resource)


@pytest.mark.parametrize("value", ["p", "Patient/p", f"{BASE}/Patient/p"])
def test_the_patient_is_named_in_any_form_of_a_reference(value):
    assert parse("Condition", [("patient", value)], BASE).who == "p"


def test_the_callers_own_identifier_names_the_patient():
    assert parse("Condition", [("patient.identifier", "urn:x|7")], BASE).who == Identifier("urn:x", "7")


@pytest.mark.parametrize(
    "params",
    [
        [],
        [("patient", "a"), ("patient", "b")],
        [("patient", "a"), ("subject", "b")],
        [("patient", "a,b")],
        [("patient", "")],
        [("patient", "https://elsewhere.example/Patient/a")],
        [("patient.identifier", "7")],
        [("patient.identifier", "urn:x|7,urn:x|8")],
        [PATIENT, ("_count", "-1")],
        [PATIENT, ("_count", "many")],
        [PATIENT, ("onset-date", "soon")],
        [PATIENT, ("onset-date", "2024-02-30")],
    ],
)
def test_what_is_not_understood_is_refused_with_a_sentence(params):
    with pytest.raises(BadRequest) as caught:
        parse("Condition", params, BASE)
    assert caught.value.message.endswith(".")


def test_unknown_parameters_are_named_and_absent_from_the_self_link():
    asked = parse("Condition", [PATIENT, ("_has:Group:member:_id", "1"), ("clinicalstatus", "active")], BASE)
    assert asked.ignored == ("_has:Group:member:_id", "clinicalstatus")
    assert asked.honoured == (PATIENT,)


CODED = {"code": {"coding": [{"system": "urn:s", "code": "A"}, {"code": "B"}]}, "status": "final"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("A", True),
        ("urn:s|A", True),
        ("urn:t|A", False),
        ("|A", False),
        ("|B", True),
        ("urn:s|", True),
        ("X,A", True),
        ("X", False),
    ],
)
def test_tokens(value, expected):
    assert keeps("Observation", "code", value, CODED) is expected


def test_all_parameters_must_match():
    asked = parse("Observation", [PATIENT, ("code", "A"), ("status", "amended")], BASE)
    assert not asked.keep(CODED)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-03-05", True),
        ("2024-03", True),
        ("2024", True),
        ("2023", False),
        ("ge2024-03-05", True),
        ("gt2024-03-05", False),
        ("lt2024-03-06", True),
        ("le2024-03-04", False),
        ("ne2024-03-05", False),
        ("sa2024-03-04", True),
        ("eb2024-03-06", True),
        ("2024-03-05T10:00:00Z", False),
    ],
)
def test_dates(value, expected):
    assert keeps("Observation", "date", value, {"effectiveDateTime": "2024-03-05T12:30:00+02:00"}) is expected


def test_open_periods_reach_to_the_end_of_time():
    assert keeps("Encounter", "date", "gt2030", {"period": {"start": "2020"}})
    assert not keeps("Encounter", "date", "gt2030", {"period": {"start": "2020", "end": "2021"}})


def test_resources_with_odd_elements_match_nothing_and_break_nothing():
    for odd in ([], 7, None, {"coding": 7}, [[{"code": 1}]]):
        assert not keeps("Observation", "code", "A", {"code": odd})
        assert not keeps("Observation", "date", "2024", {"effectiveDateTime": odd})


@pytest.mark.parametrize("text", ["2024-13", "2024-00-01", "0000", "20240101", "2024-01-01T25:00:00Z", 7, None])
def test_impossible_dates_are_no_range(text):
    assert date_range(text) is None


def test_pages_cover_everything_once():
    keys = [("m", f"{n:02}") for n in range(10)]
    seen, after = [], None
    while True:
        page = Page(3, after)
        seen += keys[page(keys)]
        assert page.total == 10
        if page.last is None:
            break
        after = page.last
    assert seen == keys


def test_a_count_of_nothing_has_a_total_and_no_next():
    page = Page(0, None)
    assert [1, 2][page([("m", "1"), ("m", "2")])] == []
    assert (page.total, page.last) == (2, None)
