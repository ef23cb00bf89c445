"""The exchange's own rules: the file, and what they do."""

import json
from datetime import UTC, date, datetime

import pytest

from hie.consent.policy import Minor, PersonPolicy, Request, ResourceView, Span, decide
from hie.consent.rules import FILE_NAME, Rules, load
from hie.core.caller import Role
from hie.core.errors import ConfigurationError
from tests.consent.strategies import ACT_CODE

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
WHOLE = {
    "legal_bases": [{"id": "105-CMR-300", "purpose": "PUBHLTH", "types": ["Condition"]}],
    "payer_types": ["Coverage", "Procedure"],
    "break_glass": "consent-only",
    "minors": {"default_state": "MA", "states": {"MA": {"majority": 18, "ages": {"ETH": 12}}}},
    "representatives": [{"person": "p1", "actor": "mother@mail.example", "until": "2026-06-30"}],
}


def written(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    return load(None, tmp_path)


def test_without_a_file_there_are_no_rules(tmp_path):
    assert load(None, tmp_path) == Rules()


def test_the_file_is_read(tmp_path):
    rules = written(tmp_path, WHOLE)
    assert rules.legal_bases[0].types == {"Condition"}
    assert rules.payer_types == {"Coverage", "Procedure"}
    assert rules.strict_break_glass
    assert rules.acting_for(frozenset({"p1"}), date(2026, 6, 30)) == {"mother@mail.example"}
    assert rules.acting_for(frozenset({"p1"}), date(2026, 7, 1)) == frozenset()
    assert rules.acting_for(frozenset({"p2"}), date(2026, 6, 1)) == frozenset()


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([], "the file"),
        ({"legal_basis": []}, "legal_basis"),
        ({"legal_bases": [{"id": "x", "purpose": "FUN", "types": []}]}, "legal_bases[0].purpose"),
        ({"payer_types": ["coverage"]}, "payer_types"),
        ({"break_glass": "maybe"}, "break_glass"),
        ({"minors": {"states": {"MA": {"majority": 18, "ages": {"XYZ": 12}}}}}, "minors.states.MA.ages"),
        ({"minors": {"states": {"MA": {"ages": {}}}}}, "minors.states.MA"),
        ({"minors": {"default_state": "NY", "states": {}}}, "minors.default_state"),
        ({"representatives": [{"person": "p1", "actor": "a", "until": "soon"}]}, "representatives[0].until"),
    ],
)
def test_a_mistake_stops_the_start_with_its_place(tmp_path, content, place):
    with pytest.raises(ConfigurationError) as wrong:
        written(tmp_path, content)
    assert place in wrong.value.message
    assert "\n" not in wrong.value.message


@pytest.mark.parametrize(
    ("birth_date", "state", "is_minor"),
    [
        ("2010-01-01", "MA", True),
        ("2010-01-01", "ma", True),
        ("2010-01-01", "NY", True),  # by the default state
        ("2008-05-02", "MA", True),
        ("2008-05-01", "MA", False),
        ("1980", "MA", False),
        ("2010", "MA", True),
        (None, "MA", False),
        ("long ago", "MA", False),
    ],
)
def test_who_is_a_minor(tmp_path, birth_date, state, is_minor):
    found = written(tmp_path, WHOLE).minor(birth_date, state, NOW.date())
    assert (found is not None) is is_minor


def seen_by(actor, view):
    minor = Minor(date(2012, 3, 1), 18, {"ETH": 12})
    policy = PersonPolicy(
        person_ids=frozenset({"p1"}), representatives=frozenset({"mother@mail.example"}), minor=minor, as_of=NOW
    )
    request = Request(frozenset({actor}), frozenset({"PATRQT"}), Role.PATIENT, "exchange", NOW)
    return decide(policy, request, view).permit


@pytest.mark.parametrize(
    ("label", "year", "for_the_mother"),
    [("ETH", 2025, False), ("ETHUD", 2025, False), ("ETH", 2022, True), ("ETH", None, False), ("PSY", 2025, True)],
)
def test_what_a_minor_was_treated_for_alone_is_the_minors_own(label, year, for_the_mother):
    time = Span(datetime(year, 4, 1, tzinfo=UTC), datetime(year, 4, 1, tzinfo=UTC)) if year else None
    held = ResourceView("Condition", "c", "meadow", frozenset({(ACT_CODE, label)}), time=time)
    assert seen_by("mother@mail.example", held) is for_the_mother
    assert seen_by("Patient/p1", held)
