"""The evaluator against the slow, literal reading of the rule book, and laws that hold whatever the consents say.

`HIE_CONSENT_EXAMPLES=20000 pytest tests/consent/test_oracle.py` searches longer.
"""

import os
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hie.consent.fhir import compile_consent
from hie.consent.policy import PersonPolicy, could_release, could_withhold, decide, reads_labels, restricts
from tests.consent import oracle, strategies

EXAMPLES = int(os.environ.get("HIE_CONSENT_EXAMPLES", "300"))
searching = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
strict = st.booleans()


def policy_of(consents, default, member_defaults, strict=False):
    return PersonPolicy(
        consents=tuple(compile_consent(consent, 1, "p") for consent in consents),
        exchange_default=default,
        member_defaults=member_defaults,
        part2_members=strategies.PART2,
        person_ids=frozenset({"p"}),
        strict_break_glass=strict,
    )


@searching
@given(
    strategies.people_consents(),
    strategies.requests,
    strategies.views,
    strategies.defaults,
    strategies.member_defaults,
    strict,
)
def test_the_evaluator_agrees_with_the_rule_book(consents, request, view, default, member_defaults, strict):
    decision = decide(policy_of(consents, default, member_defaults, strict), request, view)
    permit, rule = oracle.decide(
        consents,
        request,
        view,
        default=default,
        member_defaults=member_defaults,
        part2=strategies.PART2,
        people={"p"},
        strict=strict,
    )
    assert decision.permit == permit
    assert decision.rule in (rule if permit else {rule})


@searching
@given(
    strategies.people_consents(1),
    strategies.requests,
    st.lists(strategies.views, min_size=1, max_size=8),
    strategies.defaults,
    strategies.member_defaults,
    strict,
)
def test_a_member_that_could_release_something_is_asked(consents, request, views, default, member_defaults, strict):
    policy = policy_of(consents, default, member_defaults, strict)
    for view in views:
        if decide(policy, request, view).permit:
            assert could_release(policy, request, view.member_id)


@searching
@given(
    strategies.people_consents(),
    strategies.requests,
    st.lists(strategies.views, min_size=1, max_size=8),
    strategies.defaults,
    strategies.member_defaults,
    strict,
)
def test_where_nothing_could_be_withheld_nothing_is(consents, request, views, default, member_defaults, strict):
    """But for what needs a permit by name, which `could_withhold` leaves aside."""
    policy = policy_of(consents, default, member_defaults, strict)
    for view in views:
        if not could_withhold(policy, request, view.member_id):
            decision = decide(policy, request, view)
            assert decision.permit or decision.rule in ("psychotherapy-notes", "part2", "self-pay")


@searching
@given(strategies.people_consents(), strategies.requests, strategies.views, strategies.defaults)
def test_labels_decide_only_where_they_are_read(consents, request, view, default):
    policy = policy_of(consents, default, {})
    if not reads_labels(policy, request, view.member_id):
        own = replace(view, labels=view.labels - view.reached, reached=frozenset(), labels_known=True)
        assert decide(policy, request, view).permit == decide(policy, request, own).permit


@searching
@given(strategies.people_consents(), strategies.requests, strategies.views, strategies.defaults)
def test_what_is_not_known_of_labels_never_releases(consents, request, view, default):
    policy = policy_of(consents, default, {})
    if decide(policy, request, replace(view, labels_known=False)).permit:
        assert decide(policy, request, replace(view, labels_known=True)).permit


@searching
@given(strategies.people_consents(), strategies.requests, st.lists(strategies.views, max_size=12), strategies.defaults)
def test_a_remembered_decision_is_the_same_as_a_new_one(consents, request, views, default):
    policy = policy_of(consents, default, {})
    for view in views:
        assert decide(policy, request, view) == decide(policy_of(consents, default, {}), request, view)


@searching
@given(
    strategies.people_consents(),
    strategies.requests,
    strategies.views,
    strategies.defaults,
    strategies.consents,
    st.sampled_from(strategies.MEMBERS),
)
def test_one_more_denying_consent_never_releases_more(consents, request, view, default, denying, member):
    """In a group of its own: inside a group the newest counts, so that a newer consent may take an older one back."""
    before = policy_of([{**c, "organization": [{"reference": "Organization/exchange"}]} for c in consents], default, {})
    extra = {**denying, "id": "extra", "organization": [{"reference": f"Organization/{member}"}], "verification": []}
    extra["provision"] = only_denying(extra.get("provision", {}))
    after = replace(before, consents=(*before.consents, compile_consent(extra, 1, "p")))
    if not decide(before, request, view).permit:
        assert not decide(after, request, view).permit


def only_denying(provision):
    children = [only_denying(child) for child in provision.get("provision", [])]
    return {**provision, "type": "deny"} | ({"provision": children} if children else {})


@searching
@given(strategies.people_consents(), strategies.requests, strategies.views)
def test_whoever_is_not_restricted_is_denied_nothing_by_consent(consents, request, view):
    policy = replace(policy_of(consents, "normal", {}), as_of=request.now)
    decision = decide(policy, request, view)
    if not restricts(policy):
        assert decision.rule != "consent" or decision.permit
