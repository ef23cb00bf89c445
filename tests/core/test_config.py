import pytest

from hie.core.config import Settings
from hie.core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HIE_ENV", "staging"),
        ("HIE_QUERY_DEADLINE_MS", "soon"),
        ("HIE_QUERY_DEADLINE_MS", "-1"),
        ("HIE_CONSENT_DEFAULT", "maybe"),
        ("HIE_BASE_URL", "exchange.example"),
        ("HIE_DATABASE_URL", "mysql://x"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(monkeypatch, tmp_path, name, value):
    monkeypatch.setenv("HIE_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert caught.value.message.startswith(name + " ")
    assert "\n" not in caught.value.message


def test_defaults(monkeypatch, tmp_path):
    monkeypatch.setenv("HIE_HOME", str(tmp_path / "home"))
    settings = Settings.load()
    assert settings.query_deadline == 5.0
    assert settings.effective_database_url.startswith("sqlite:///")
    assert not settings.development
