import pytest

from hie.core.scopes import Scope, Scopes


@pytest.mark.parametrize("text", ["system/Patient.sr", "system/Patient.dus", "system/Patient.", "user/Patient.rs", "x"])
def test_scopes_out_of_order_or_of_another_context_are_not_understood(text):
    assert Scope.parse(text) is None


def test_what_is_held_covers_what_is_asked():
    held = Scopes.parse("system/*.rs system/Patient.cruds")
    assert held.covers(Scope.parse("system/Patient.cud"))
    assert not held.covers(Scope.parse("system/Consent.c"))
    assert held.allows("Observation", "s")
    assert str(Scopes.parse("system/Observation.read")) == "system/Observation.rs"
