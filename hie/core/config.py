"""Configuration from the environment (contract section 2). A wrong value stops start-up with one line."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hie.core.errors import ConfigurationError


class Environment(StrEnum):
    """Where the exchange runs; only `development` allows plain-http and loopback member endpoints."""

    PRODUCTION = "production"
    DEVELOPMENT = "development"


class ConsentDefault(StrEnum):
    """What a person without a consent gets: opt-out (`permit`) or opt-in (`deny`) states."""

    PERMIT = "permit"
    DENY = "deny"


class Settings(BaseSettings):
    """All settings; read once by `Settings.load()`."""

    model_config = SettingsConfigDict(env_prefix="HIE_", frozen=True, extra="ignore")

    home: Path = Path("./var")
    database_url: str = ""
    base_url: str = "http://127.0.0.1:8080"
    env: Environment = Environment.PRODUCTION
    query_deadline_ms: int = Field(default=5000, ge=100, le=120_000)
    consent_default: ConsentDefault = ConsentDefault.PERMIT
    consent_rules: Path | None = None
    match_model: Path | None = None
    value_sets: Path | None = None
    log_key: SecretStr = SecretStr("")
    witnesses: str = ""
    witness_seconds: float = Field(default=60, ge=0.1, le=86_400)
    retention_years: int = Field(default=6, ge=6, le=100)

    @field_validator("base_url")
    @classmethod
    def _absolute(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an absolute http or https address without query")
        return value.rstrip("/")

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:", "postgresql+psycopg:")):
            raise ValueError("must start with sqlite: or postgresql+psycopg:")
        return value

    @classmethod
    def load(cls) -> Settings:
        """The settings of this process; raises ConfigurationError with one line."""
        try:
            settings = cls()
        except ValidationError as error:
            first = error.errors()[0]
            name = "HIE_" + "_".join(str(part) for part in first["loc"]).upper()
            raise ConfigurationError(f"{name} {_reason(first['msg'])}") from None
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return settings

    @property
    def development(self) -> bool:
        return self.env is Environment.DEVELOPMENT

    @property
    def effective_database_url(self) -> str:
        return self.database_url or f"sqlite:///{(self.home / 'hie.sqlite').absolute()}"

    @property
    def fhir_base(self) -> str:
        return f"{self.base_url}/fhir"

    @property
    def log_origin(self) -> str:
        """The name of a log that is begun under this address: where it is served, without the scheme."""
        return f"{self.base_url.split('://', 1)[1]}/log"

    @property
    def query_deadline(self) -> float:
        """Seconds for the whole fan-out."""
        return self.query_deadline_ms / 1000


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "should be")
