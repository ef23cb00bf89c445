import json
from datetime import UTC, datetime

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from hie.audit.entry import canonical, draft
from tests.audit.samples import disclosure

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text(st.characters(max_codepoint=127))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
)


@given(st.dictionaries(KEYS, VALUES))
def test_the_fast_canonical_form_is_that_of_rfc_8785(value):
    assert canonical(value) == rfc8785.dumps(value)


def test_a_disclosures_body_is_canonical():
    entry = draft(disclosure(), datetime(2026, 1, 2, tzinfo=UTC), "https://hie.example/fhir")
    assert entry.body == rfc8785.dumps(json.loads(entry.body))
    assert entry.leaf == rfc8785.dumps(json.loads(entry.leaf))
