"""The codes and identifier systems of the exchange's AuditEvents (FHIR R4, DICOM part 16, IHE BALP)."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from hie.core.fhir import Resource


class Coding(NamedTuple):
    """One FHIR Coding."""

    system: str
    code: str
    display: str

    def json(self) -> Resource:
        """To be read only: an entry is made of many codings, and each is the same object every time."""
        return _json(self)

    def concept(self) -> Resource:
        """As a CodeableConcept."""
        return {"coding": [_json(self)]}


@cache
def _json(coding: Coding) -> Resource:
    return {"system": coding.system, "code": coding.code, "display": coding.display}


DCM = "http://dicom.nema.org/resources/ontology/DCM"
_BALP = "https://profiles.ihe.net/ITI/BALP"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_RESTFUL = "http://hl7.org/fhir/restful-interaction"

PROFILE = f"{_BALP}/StructureDefinition/IHE.BasicAudit."
OUTCOME = f"{_TERMINOLOGY}/audit-event-outcome"
ACTION = "http://hl7.org/fhir/audit-event-action"
RESOURCE_TYPES = "http://hl7.org/fhir/resource-types"
ACT_CODE = f"{_TERMINOLOGY}/v3-ActCode"
CONFIDENTIALITY = f"{_TERMINOLOGY}/v3-Confidentiality"

# AuditEvent.type
REST = Coding(f"{_TERMINOLOGY}/audit-event-type", "rest", "Restful Operation")
EXPORT = Coding(DCM, "110106", "Export")
SECURITY_ALERT = Coding(DCM, "110113", "Security Alert")
USER_AUTHENTICATION = Coding(DCM, "110114", "User Authentication")
AUDIT_LOG_USED = Coding(DCM, "110101", "Audit Log Used")
TYPES = (REST, EXPORT, SECURITY_ALERT, USER_AUTHENTICATION, AUDIT_LOG_USED)

# AuditEvent.subtype
DISCLOSE = Coding(f"{_TERMINOLOGY}/iso-21089-lifecycle", "disclose", "Disclose Record Lifecycle Event")
AUTHZ_CONSENT = Coding(
    f"{_BALP}/CodeSystem/AuthZsubType", "AuthZ-Consent", "Authorization Decision using Roles and Consent"
)
AUTHZ_ROLE = Coding(f"{_BALP}/CodeSystem/AuthZsubType", "AuthZ-Role", "Authorization Decision using only Roles")
LOGIN = Coding(DCM, "110122", "Login")
INTERACTIONS = {
    code: Coding(_RESTFUL, code, code) for code in ("create", "read", "update", "delete", "search-type", "operation")
}
SUBTYPES = (DISCLOSE, AUTHZ_CONSENT, AUTHZ_ROLE, LOGIN, *INTERACTIONS.values())

# AuditEvent.agent.type
APPLICATION = Coding(DCM, "110150", "Application")
DESTINATION = Coding(DCM, "110152", "Destination Role ID")
SOURCE = Coding(DCM, "110153", "Source Role ID")
RECIPIENT = Coding(f"{_TERMINOLOGY}/v3-ParticipationType", "IRCP", "information recipient")
AUTHOR = Coding(f"{_TERMINOLOGY}/v3-ParticipationType", "AUT", "author (originator)")
PROVIDER = Coding(f"{_TERMINOLOGY}/v3-RoleClass", "PROV", "healthcare provider")
AUTHORIZER = Coding(f"{_TERMINOLOGY}/extra-security-role-type", "authserver", "authorization server")
CUSTODIAN = Coding(f"{_TERMINOLOGY}/provenance-participant-type", "custodian", "Custodian")
RECORD_KEEPER = Coding("http://snomed.info/sct", "159541003", "Record keeping/library clerk")
OAUTH_USER = Coding(f"{_BALP}/CodeSystem/UserAgentTypes", "UserOauthAgent", "User OAuth Agent participant")

# AuditEvent.source.type
APPLICATION_SERVER = Coding(f"{_TERMINOLOGY}/security-source-type", "4", "Application Server")

# AuditEvent.entity.type and .role
PERSON = Coding(f"{_TERMINOLOGY}/audit-entity-type", "1", "Person")
SYSTEM_OBJECT = Coding(f"{_TERMINOLOGY}/audit-entity-type", "2", "System Object")
OTHER = Coding(f"{_TERMINOLOGY}/audit-entity-type", "4", "Other")
REQUEST_ID = Coding(
    f"{_BALP}/CodeSystem/BasicAuditEntityType",
    "XrequestId",
    "transport specific unique identifier where http X-Request-Id is used",
)
PATIENT_ROLE = Coding(f"{_TERMINOLOGY}/object-role", "1", "Patient")
DOMAIN_RESOURCE = Coding(f"{_TERMINOLOGY}/object-role", "4", "Domain Resource")
SECURITY_RESOURCE = Coding(f"{_TERMINOLOGY}/object-role", "13", "Security Resource")
DATA_REPOSITORY = Coding(f"{_TERMINOLOGY}/object-role", "17", "Data Repository")
QUERY_ROLE = Coding(f"{_TERMINOLOGY}/object-role", "24", "Query")

# Resource.meta.security
REDACTED = Coding(f"{_TERMINOLOGY}/v3-ObservationValue", "REDACTED", "redacted")

# Identifier systems of the exchange, below its FHIR base address
CLIENT_ID = "/NamingSystem/client-id"
USER_ID = "/NamingSystem/user-id"
SESSION_ID = "/NamingSystem/session-id"
ROLE = "/CodeSystem/role"

JTI = "urn:ietf:params:oauth:jti:"
"""BALP 3:5.7.6: the prefix of a token's id."""


def resource_type(reference: str) -> Coding:
    """The entity type of a reference such as `Consent/abc/_history/2`."""
    name = reference.split("/", 1)[0]
    return Coding(RESOURCE_TYPES, name, name)
