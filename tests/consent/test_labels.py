"""Labels: what sources say, what codes give away, how far it reaches."""

from datetime import UTC, datetime

import pytest

from hie.consent.code_files import CodeFile, Row, packaged
from hie.consent.labels import build, views
from hie.consent.policy import Span
from hie.consent.vocabulary import RANK
from tests.consent.strategies import ACT_CODE, CONFIDENTIALITY

ICD = "http://hl7.org/fhir/sid/icd-10-cm"
SNOMED = "http://snomed.info/sct"
LOINC = "http://loinc.org"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
CPT = "http://www.ama-assn.org/go/cpt"
HCPCS = "https://www.cms.gov/Medicare/Coding/HCPCSReleaseCodeSets"


def resource(kind="Condition", name="r1", **elements):
    return {"resourceType": kind, "id": name, "subject": {"reference": "Patient/p1"}, **elements}


def coded(system, code, display=""):
    return {"coding": [{"system": system, "code": code} | ({"display": display} if display else {})]}


def only(*resources, **others):
    (found,) = views(resources, "meadow", **others)
    return found


def security(*labels):
    return {"security": [{"system": system, "code": code} for system, code in labels]}


def sensitivities(view):
    return {code for system, code in view.labels if system == ACT_CODE}


def confidentiality(view):
    return "".join(code for code, rank in RANK.items() if rank == view.confidentiality)


@pytest.mark.parametrize(
    ("system", "code", "label"),
    [
        (ICD, "F10.20", "ETHUD"),
        (ICD, "f1120", "OPIOIDUD"),
        (ICD, "F14.10", "ETH"),
        (ICD, "B20", "HIV"),
        (ICD, "A51.0", "STD"),
        (ICD, "F32.9", "PSY"),
        (ICD, "F90.0", "MH"),
        (ICD, "F64.0", "SEX"),
        (ICD, "O9A.311", "SDV"),
        (ICD, "Z33.1", "PREGNANT"),
        (ICD, "Q90.9", "GDIS"),
        (ICD, "D57.1", "SICKLE"),
        (ICD, "O98.711", "HIV"),
        (ICD, "Z29.81", "HIV"),
        (ICD, "T76.21XA", "SDV"),
        (ICD, "T40.1X2A", "MH"),
        (ICD, "T42.4X3A", "SDV"),
        (ICD, "R45.88", "MH"),
        ("urn:oid:2.16.840.1.113883.6.90", "F11.20", "OPIOIDUD"),
        (SNOMED, "86406008", "HIV"),
        ("http://snomed.info/sct/731000124108", "58214004", "PSY"),
        (SNOMED, "444175001", "PSYTHPN"),
        (LOINC, "74013-4", "ETHUD"),
        (RXNORM, "351264", "OPIOIDUD"),
        (RXNORM, "1433868", "HIV"),
        (CPT, "90834", "MH"),
        (CPT, "59841", "SEX"),
        (HCPCS, "H0020", "OPIOIDUD"),
    ],
)
def test_codes_give_sensitivities_away(system, code, label):
    found = only(resource(code=coded(system, code)))
    assert label in sensitivities(found)
    assert confidentiality(found) == ("V" if label == "PSYTHPN" else "R")


@pytest.mark.parametrize(
    ("system", "code"),
    [
        (ICD, "F17.210"),
        (ICD, "I10"),
        (ICD, "F07.81"),
        (ICD, "T42.4X1A"),
        (ICD, "Z87.891"),
        (LOINC, "2339-0"),
        (CPT, "99213"),
        ("http://other.example", "B20"),
    ],
)
def test_ordinary_codes_do_not(system, code):
    found = only(resource(code=coded(system, code)))
    assert sensitivities(found) == set()
    assert confidentiality(found) == "N"


def test_codes_count_wherever_they_stand():
    claim = resource("ExplanationOfBenefit", diagnosis=[{"diagnosisCodeableConcept": coded(ICD, "B20")}])
    inside = resource("MedicationRequest", contained=[{"resourceType": "Medication", "code": coded(RXNORM, "1819")}])
    assert sensitivities(only(claim)) == {"HIV"}
    assert sensitivities(only(inside)) == {"OPIOIDUD"}


@pytest.mark.parametrize(
    "medication",
    [
        coded(RXNORM, "9999999", "12 HR Buprenorphine 8 MG / naloxone 2 MG Sublingual Tablet"),
        {"text": "suboxone 8/2 film"},
        coded("http://hl7.org/fhir/sid/ndc", "12496-1208-1", "BUPRENORPHINE"),
    ],
)
def test_a_drug_is_known_by_its_name_where_its_product_code_is_not(medication):
    assert sensitivities(only(resource("MedicationRequest", medicationCodeableConcept=medication))) == {"OPIOIDUD"}


def test_a_name_inside_another_word_is_no_name():
    assert sensitivities(only(resource(code={"text": "Lithiumlike"}))) == set()


def test_what_a_source_says_is_kept_in_the_one_spelling():
    said = security(("http://hl7.org/fhir/v3/ActCode", "HIV"), ("urn:oid:2.16.840.1.113883.5.25", "v"))
    found = only(resource(meta=said))
    assert found.labels == {(ACT_CODE, "HIV"), (CONFIDENTIALITY, "V")}


def test_the_highest_confidentiality_given_counts():
    assert confidentiality(only(resource(meta=security((CONFIDENTIALITY, "N"), (CONFIDENTIALITY, "R"))))) == "R"
    assert confidentiality(only(resource(meta=security((CONFIDENTIALITY, "L"))))) == "L"


def test_the_default_confidentiality_goes_by_sensitivity():
    assert confidentiality(only(resource())) == "N"
    assert confidentiality(only(resource(meta=security((ACT_CODE, "SDV"))))) == "R"
    assert confidentiality(only(resource(meta=security((ACT_CODE, "PSYTHPN"))))) == "V"


def test_a_resource_that_cannot_be_read_is_restricted():
    for broken in ({"meta": "none"}, {"meta": {"security": [3]}}, {"meta": {"profile": [3]}}):
        assert confidentiality(only(resource(**broken))) == "R"


def test_a_self_pay_tag_is_kept_and_other_tags_are_not():
    meta = {"tag": [{"system": "urn:t", "code": "self-pay-restricted"}, {"system": "urn:t", "code": "training"}]}
    found = only(resource("ExplanationOfBenefit", meta=meta))
    assert found.self_pay
    assert ("urn:t", "training") not in found.labels


# -- labels follow references


def chart():
    return {
        "hiv": resource("Condition", "hiv", code=coded(ICD, "B20"), encounter={"reference": "Encounter/e1"}),
        "fracture": resource(
            "Condition", "fracture", code=coded(ICD, "S52.5"), encounter={"reference": "Encounter/e1"}
        ),
        "visit": resource(
            "Encounter", "e1", meta=security((CONFIDENTIALITY, "N")), partOf={"reference": "Encounter/stay"}
        ),
        "stay": resource("Encounter", "stay"),
        "load": resource("Observation", "load", code=coded(LOINC, "20447-9")),
        "report": resource("DiagnosticReport", "dr1", result=[{"reference": "Observation/load"}]),
        "document": resource("DocumentReference", "d1", context={"related": [{"reference": "DiagnosticReport/dr1"}]}),
        "policy": resource("Coverage", "cov"),
        "claim": resource(
            "ExplanationOfBenefit",
            "eob",
            diagnosis=[{"diagnosisReference": {"reference": "Condition/hiv"}}],
            insurance=[{"coverage": {"reference": "Coverage/cov"}}],
        ),
    }


def labelled():
    given = chart()
    found = views(list(given.values()), "meadow")
    return dict(zip(given, found, strict=True))


def test_labels_reach_what_refers_to_the_labelled_and_what_it_refers_to():
    found = labelled()
    reached = {name for name, view in found.items() if "HIV" in sensitivities(view)}
    assert reached == {"hiv", "visit", "stay", "load", "report", "document", "claim"}
    assert confidentiality(found["visit"]) == "R"


def test_what_an_encounter_got_from_one_condition_it_does_not_pass_to_another():
    assert sensitivities(labelled()["fracture"]) == set()


def test_what_an_encounter_is_itself_it_passes_to_all_of_it():
    ward = resource("Encounter", "e1", meta=security((ACT_CODE, "PSY")))
    pressure = resource("Observation", "bp", code=coded(LOINC, "85354-9"), encounter={"reference": "Encounter/e1"})
    assert "PSY" in sensitivities(views([ward, pressure], "meadow")[1])


def test_references_in_circles_end():
    one = resource("Observation", "a", code=coded(ICD, "B20"), hasMember=[{"reference": "Observation/b"}])
    two = resource("Observation", "b", derivedFrom=[{"reference": "Observation/a"}])
    assert all("HIV" in sensitivities(view) for view in views([one, two], "meadow"))


def test_an_answer_with_absurdly_many_labels_is_restricted_as_a_whole():
    odd = [resource("Observation", f"o{n}", meta=security(("urn:x", f"L{n}"))) for n in range(150)]
    found = views([*odd, resource("Observation", "plain")], "meadow")
    assert {confidentiality(view) for view in found} == {"R"}


# -- the rest of a view


def test_a_view_is_in_the_exchanges_terms():
    found = only(
        resource(
            "Observation",
            meta={"profile": ["http://example.org/StructureDefinition/bp|1.0"]},
            effectivePeriod={"start": "2026-01-01", "end": "2026-01"},
            performer=[{"reference": "Practitioner/p7"}, {"identifier": {"value": "DR@x.example"}}],
            encounter={"reference": "Encounter/e1"},
        )
    )
    assert (found.type, found.id, found.member_id) == ("Observation", "r1", "meadow")
    assert found.profiles == {"http://example.org/StructureDefinition/bp"}
    assert found.time == Span(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 31, 23, 59, 59, 999999, UTC))
    assert found.authors == {"Practitioner/p7", "dr@x.example"}
    assert {"Encounter/e1", "Patient/p1"} <= found.references


@pytest.mark.parametrize(
    ("elements", "year"),
    [
        ({"onsetString": "as a child", "recordedDate": "2020"}, 2020),
        ({"onsetDateTime": "2019", "recordedDate": "2020"}, 2019),
        ({"performedPeriod": {"start": "2018-03"}}, 2018),
        ({"occurrenceDateTime": "2017"}, 2017),
        ({"period": {"start": "2016"}}, 2016),
        ({"authoredOn": "2015", "issued": "2016-01-01T00:00:00Z"}, 2015),
        ({"context": {"period": {"start": "2013"}}, "date": "2014-01-01T00:00:00Z"}, 2013),
        ({"meta": {"lastUpdated": "2012-01-01T00:00:00Z"}}, 2012),
        ({}, None),
    ],
)
def test_clinical_time_is_the_nearest_that_is_given(elements, year):
    found = only(resource(**elements)).time
    assert (found.start.year if found else None) == year


# -- the files


def test_every_file_says_where_its_codes_come_from_and_when():
    assert len(packaged()) == 6
    for file in packaged():
        assert isinstance(file, CodeFile)
        assert "compilation" in file.sources
        assert file.date.year >= 2026


def rows():
    return [row for file in packaged() for row in file.rows]


def test_no_row_is_given_twice():
    seen = [(row.system, row.kind, row.code.upper(), row.label) for row in rows()]
    assert len(seen) > 900
    assert len(seen) == len(set(seen))


def test_value_sets_of_ones_own():
    sets = build([Row("loinc", "range", "10..19", "SDV")])
    assert sensitivities(only(resource(code=coded(LOINC, "15-1")), sets=sets)) == {"SDV"}
    assert sensitivities(only(resource(code=coded(LOINC, "20-1")), sets=sets)) == set()
