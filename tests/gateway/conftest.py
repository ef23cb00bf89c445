"""Real identity, consent and log behind the one door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hie.core import schema
from hie.gateway.gateway_ids import GatewayIds
from hie.gateway.release import Release
from hie.gateway.services import Services
from tests.gateway.door import LAKESIDE, MEADOW, NOW, PATIENT, Members
from tests.gateway.outside import manifest, manifest_dict, settings


@pytest.fixture
def services(tmp_path: Path) -> Services:
    from hie.app import build_services

    built = build_services(settings(tmp_path), lambda: NOW)
    schema.upgrade(built.database)
    community = manifest_dict()
    community["members"][1]["part2"] = False
    built.directory.apply(manifest(community))
    for member, identifier in (("lakeside", LAKESIDE), ("meadow", MEADOW)):
        named = {"identifier": [{"system": identifier.system, "value": identifier.value}]}
        built.identity.record(
            member, identifier, PATIENT | named | {"telecom": [{"system": "phone", "value": "617-555-0107"}]}
        )
    return built


@pytest.fixture
def members() -> Members:
    return Members()


@pytest.fixture
def make(services: Services, members: Members) -> Callable[..., Release]:
    def build(**instead: Any) -> Release:
        parts: dict[str, Any] = {
            "fhir_base": services.settings.fhir_base,
            "query_deadline": 2.0,
            "clock": lambda: NOW,
            "directory": services.directory,
            "identity": services.identity,
            "consents": services.consents,
            "portal": services.portal,
            "notices": services.notices,
            "audit": services.audit,
            "transport": members,
            "gateway_ids": GatewayIds(services.database, b"k" * 32),
        }
        return Release(**parts | instead)

    return build
