"""The code systems that consents and labels speak, brought to one spelling, and their hierarchies (pure).

Purposes: HL7 v3 ActReason (value set PurposeOfUse); sensitivities: v3 ActCode (ActInformationSensitivityPolicy) as
CONSENT.md section 2 arranges them; confidentiality: v3 Confidentiality. A code system's R3 address, its OID and its R4
address are the same system.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
CONSENT_ACTION = "http://terminology.hl7.org/CodeSystem/consentaction"
RESOURCE_TYPES = "http://hl7.org/fhir/resource-types"
ICD10CM = "http://hl7.org/fhir/sid/icd-10-cm"
ICD9CM = "http://hl7.org/fhir/sid/icd-9-cm"
SNOMED = "http://snomed.info/sct"
LOINC = "http://loinc.org"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
CPT = "http://www.ama-assn.org/go/cpt"
HCPCS = "https://www.cms.gov/Medicare/Coding/HCPCSReleaseCodeSets"

_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    ACT_REASON: (
        "http://hl7.org/fhir/v3/ActReason",
        "http://terminology.hl7.org/ValueSet/v3-PurposeOfUse",
        "http://hl7.org/fhir/ValueSet/v3-PurposeOfUse",
        "2.16.840.1.113883.5.8",
    ),
    ACT_CODE: ("http://hl7.org/fhir/v3/ActCode", "2.16.840.1.113883.5.4"),
    CONFIDENTIALITY: (
        "http://hl7.org/fhir/v3/Confidentiality",
        "http://terminology.hl7.org/ValueSet/v3-ConfidentialityClassification",
        "2.16.840.1.113883.5.25",
    ),
    PARTICIPATION: ("http://hl7.org/fhir/v3/ParticipationType", "2.16.840.1.113883.5.90"),
    CONSENT_ACTION: ("http://hl7.org/fhir/consentaction",),
    RESOURCE_TYPES: ("http://hl7.org/fhir/fhir-types", "http://hl7.org/fhir/ValueSet/resource-types"),
    ICD10CM: ("http://hl7.org/fhir/sid/icd-10", "2.16.840.1.113883.6.90", "2.16.840.1.113883.6.3"),
    ICD9CM: ("2.16.840.1.113883.6.103",),
    SNOMED: ("2.16.840.1.113883.6.96",),
    LOINC: ("2.16.840.1.113883.6.1",),
    RXNORM: ("2.16.840.1.113883.6.88",),
    CPT: ("2.16.840.1.113883.6.12",),
    HCPCS: (
        "http://www.cms.gov/Medicare/Coding/HCPCSReleaseCodeSets",
        "http://www.cms.gov/medicare/hcpcs",
        "2.16.840.1.113883.6.285",
        "2.16.840.1.113883.6.14",
    ),
}
_SYSTEM = {spelling.lower(): system for system, others in _SPELLINGS.items() for spelling in (system, *others)}

_PURPOSES: Mapping[str, str] = {
    "TREAT": "ETREAT ERTREAT CAREMGT COC CLINTRL POPHLTH",
    "HPAYMT": "CLMATTCH COVAUTH COVERAGE REMITADV",
    "COVERAGE": "ELIGDTRM ELIGVER ENROLLM MILDCRG",
    "HOPERAT": (
        "DONAT FRAUD GOV HACCRED HCOMPL HDECD HDIRECT HDM HLEGAL HOUTCOMS HPRGRP HQUALIMP HSYSADMIN LABELING METAMGT "
        "MEMADMIN MILCDM PATADMIN PATSFTY PERFMSR RECORDMGT SYSDEV TRAIN"
    ),
    "SYSDEV": "HTEST",
    "HRESCH": "BIORCH CLINTRCH DSRCH POARCH PRECLINTRCH TRANSRCH",
    "CLINTRCH": "CLINTRCHNPC CLINTRCHPC",
    "PATRQT": "FAMRQT PWATRNY SUPNWK",
    "PUBHLTH": "DISASTER THREAT",
}
_PURPOSE_PARENT = {child: parent for parent, children in _PURPOSES.items() for child in children.split()}
PURPOSES = frozenset(_PURPOSES) | frozenset(_PURPOSE_PARENT) | {"BTG", "HMARKT"}
"""Codes that mean something as a purpose. `BTG` stands alone: only `BTG` matches it (CONSENT.md section 3)."""

_SENSITIVITIES: Mapping[str, str] = {
    "BH": "PSY ETH COGN DVD EMOTDIS",
    "PSY": "MH PSYTHPN",
    "ETH": "ETHUD OPIOIDUD SUD 42CFRPart2",
    "STD": "HIV",
    "SEX": "PREGNANT",
    "GDIS": "SICKLE",
}
_SENSITIVITY_PARENT = {child: parent for parent, children in _SENSITIVITIES.items() for child in children.split()}
SENSITIVITIES = frozenset(_SENSITIVITIES) | frozenset(_SENSITIVITY_PARENT) | {"SDV", "TBOO", "VIO", "VIP", "ADOL"}

CONFIDENTIALITY_ORDER = ("U", "L", "M", "N", "R", "V")
RANK = {code: rank for rank, code in enumerate(CONFIDENTIALITY_ORDER)}


@lru_cache(maxsize=4096)
def system_of(given: str | None) -> str:
    """The one spelling of a code system's address; unknown ones stay as given, none is the empty string."""
    if not given:
        return ""
    text = given.strip().rstrip("/")
    bare = text.lower().removeprefix("urn:oid:")
    if bare.startswith(SNOMED + "/"):  # an edition or version of SNOMED CT
        return SNOMED
    return _SYSTEM.get(bare, text)


@lru_cache(maxsize=4096)
def purpose_and_above(code: str) -> frozenset[str]:
    """A purpose and every purpose that subsumes it."""
    return frozenset(_chain(code, _PURPOSE_PARENT))


def sensitivities_and_above(codes: Iterable[str]) -> frozenset[str]:
    """Sensitivity codes and every code above one of them."""
    return frozenset(above for code in codes for above in _chain(code, _SENSITIVITY_PARENT))


def _chain(code: str, parents: Mapping[str, str]) -> Iterable[str]:
    step: str | None = code
    while step is not None:
        yield step
        step = parents.get(step)


def label_of(system: str | None, code: str) -> tuple[str, str]:
    """A security label in the one spelling; a known code without a system gets the system it belongs to."""
    known = system_of(system)
    if known == CONFIDENTIALITY or (not known and code.upper() in RANK):
        return CONFIDENTIALITY, code.upper()
    if not known and code in SENSITIVITIES:
        return ACT_CODE, code
    return known, code


def label_key(label: tuple[str, str]) -> str:
    """How criteria name a label that is no confidentiality: a bare v3 ActCode, else `system|code`."""
    system, code = label
    return code if system == ACT_CODE else f"{system}|{code}"
