"""Consents, requests and resources that Hypothesis makes, from alphabets small enough to meet each other."""

from datetime import UTC, datetime

from hypothesis import strategies as st

from hie.consent.policy import Request, ResourceView, Span
from hie.core.caller import Role

ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
ROLES = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
LOINC = "http://loinc.org"
MEMBERS = ("lakeside", "meadow", "clinic")
PART2 = frozenset({"clinic"})
PROFILE = "http://example.org/StructureDefinition/vital"

DATES = (
    "2020",
    "2021-06",
    "2022-06-13",
    "2022-06-13T10:00:00Z",
    "2022-06-13T12:00:00+02:00",
    "2023-01-01",
    "2024",
    "2031-01",
)
PURPOSES = ("TREAT", "ETREAT", "BTG", "HPAYMT", "HOPERAT", "HRESCH", "CLINTRCH", "PATRQT")
SENSITIVITIES = ("PSY", "MH", "PSYTHPN", "ETH", "ETHUD", "HIV", "STD", "42CFRPart2", "SDV")


def few(values, most=2):
    return st.lists(values, min_size=1, max_size=most)


def either(common, rare):
    """Mostly the one; the other now and then."""
    return st.integers(0, 7).flatmap(lambda n: rare if n == 0 else common)


def coding(system, codes):
    return st.sampled_from(codes).map(lambda code: {"system": system, "code": code})


periods = st.fixed_dictionaries({}, optional={"start": st.sampled_from(DATES[:4]), "end": st.sampled_from(DATES[2:])})
periods = periods.filter(bool)
purposes = either(
    coding(ACT_REASON, PURPOSES),
    st.sampled_from([{"system": "http://example.org/purposes", "code": code} for code in ("FooBar", "TREAT")]),
)
labels = st.one_of(coding(ACT_CODE, SENSITIVITIES), coding(CONFIDENTIALITY, "LMNRV"))
actor_references = either(
    st.sampled_from(
        [
            {"reference": "Organization/lakeside"},
            {"reference": "Organization/meadow"},
            {"reference": "Practitioner/p1"},
            {"identifier": {"value": "R.Ortiz@lakeside.example"}},
        ]
    ),
    st.sampled_from(
        [{"display": "my aunt"}, {"reference": "#c"}, {"reference": "https://far.example/Practitioner/p1"}]
    ),
)
actors = st.builds(
    lambda role, reference: {"reference": reference} | ({"role": {"coding": [role]}} if role else {}),
    st.one_of(st.none(), coding(ROLES, ("IRCP", "PRCP", "CST", "AUT", "GUAR"))),
    actor_references,
)
codes = either(
    coding(LOINC, ("1-8", "2-6")).map(lambda c: {"coding": [c]}),
    st.just({"text": "what my doctor knows"}),
)
data = st.builds(
    lambda meaning, target: {"meaning": meaning, "reference": target},
    st.sampled_from(("instance", "related", "dependents", "authoredby")),
    either(
        st.sampled_from(
            [{"reference": r} for r in ("Observation/o1", "Encounter/e1", "Practitioner/p1", "Condition/c1")]
        ),
        st.just({"display": "that one"}),
    ),
)
actions = st.sampled_from(["access", "use", "collect", "correct"]).map(lambda c: {"coding": [{"code": c}]})
extension = st.just([{"url": "http://example.org/only-on-mondays", "valueBoolean": True}])


def provisions(depth=3):
    own = {
        "type": st.sampled_from(("permit", "deny")),
        "period": periods,
        "actor": few(actors),
        "purpose": few(purposes),
        "action": few(actions),
        "securityLabel": few(labels),
        "class": few(coding("http://hl7.org/fhir/resource-types", ("Observation", "Coverage", PROFILE))),
        "code": few(codes),
        "dataPeriod": periods,
        "data": few(data),
        "extension": extension,
    }
    if depth > 1:
        own["provision"] = few(provisions(depth - 1))
    chosen = st.lists(st.sampled_from(sorted(set(own) - {"extension"})), max_size=4, unique=True)
    chosen = st.tuples(chosen, st.integers(0, 15)).map(lambda c: c[0] + (["extension"] if c[1] == 0 else []))
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: own[name] for name in names}))


def concept(code):
    return {"coding": [{"code": code}]}


consents = st.fixed_dictionaries(
    {
        "resourceType": st.just("Consent"),
        "status": either(
            st.just("active"), st.sampled_from(["inactive", "draft", "proposed", "rejected", "entered-in-error"])
        ),
        "scope": either(st.just(concept("patient-privacy")), st.sampled_from([concept("research"), concept("adr")])),
        "dateTime": st.sampled_from(DATES),
    },
    optional={
        "policyRule": coding(ACT_CODE, ("OPTIN", "OPTOUT", "OPTOUTE", "NOCONSENT", "EMRGONLY", "42CFRPart2")).map(
            lambda c: {"coding": [c]}
        ),
        "organization": few(st.sampled_from((*MEMBERS, "exchange")).map(lambda m: {"reference": f"Organization/{m}"})),
        "verification": either(st.just([{"verified": True}]), st.just([{"verified": False}])),
        "provision": provisions(),
    },
)


def people_consents(most=3):
    return st.lists(consents, max_size=most).map(
        lambda made: [{**consent, "id": f"c{index}"} for index, consent in enumerate(made)]
    )


requests = st.builds(
    Request,
    actors=st.frozensets(
        st.sampled_from(
            ["Organization/lakeside", "Organization/meadow", "Practitioner/p1", "r.ortiz@lakeside.example", "Patient/p"]
        ),
        min_size=1,
    ),
    purposes=st.one_of(
        st.sampled_from([frozenset({p}) for p in (*PURPOSES, "FooBar", "FAMRQT")]),
        st.just(frozenset({"TREAT", "BTG"})),
        st.frozensets(st.sampled_from(PURPOSES), max_size=3),
    ),
    role=st.sampled_from([Role.CLINICIAN, Role.CLINICIAN, Role.MEMBER, Role.PAYER, Role.PATIENT, Role.OPERATOR]),
    organization=st.just("lakeside"),
    now=st.sampled_from(
        [datetime(2022, 6, 13, 10, 0, 0, 500, UTC), datetime(2023, 7, 1, tzinfo=UTC), datetime(2021, 6, 30, tzinfo=UTC)]
    ),
    break_glass=st.booleans(),
)


def view_of(reached, **elements):
    """A view of which some of the labels came along references."""
    return ResourceView(**elements, reached=elements["labels"] & reached)


all_labels = st.one_of(
    st.sampled_from([(ACT_CODE, code) for code in SENSITIVITIES]),
    st.sampled_from([(CONFIDENTIALITY, code) for code in "LNRV"]),
    st.just(("", "self-pay-restricted")),
)
views = st.builds(
    view_of,
    reached=st.frozensets(all_labels, max_size=4),
    labels_known=either(st.just(True), st.just(False)),
    type=st.sampled_from(["Observation", "Coverage", "Encounter", "Condition"]),
    id=st.sampled_from(["o1", "e1", "c1"]),
    member_id=st.sampled_from(MEMBERS),
    labels=st.frozensets(all_labels, max_size=2),
    codes=st.frozensets(st.sampled_from([(LOINC, "1-8"), (LOINC, "2-6")]), max_size=1),
    profiles=st.frozensets(st.just(PROFILE), max_size=1),
    time=st.one_of(
        st.none(),
        st.just(Span(datetime(2022, 6, 13, tzinfo=UTC), datetime(2022, 6, 13, 23, 59, 59, 999999, UTC))),
        st.just(Span(datetime(2020, 5, 1, tzinfo=UTC), None)),
        st.just(Span(None, datetime(2021, 6, 1, tzinfo=UTC))),
    ),
    references=st.frozensets(st.sampled_from(["Encounter/e1", "Condition/c1"]), max_size=1),
    authors=st.frozensets(st.sampled_from(["Practitioner/p1", "r.ortiz@lakeside.example"]), max_size=1),
)

defaults = st.sampled_from(["permit", "deny", "normal", "treatment", "break-glass-only"])
member_defaults = st.dictionaries(st.sampled_from(MEMBERS), defaults, max_size=1)
