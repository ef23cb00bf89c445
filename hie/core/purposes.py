"""Purposes of use: HL7 v3 ActReason codes, their hierarchy, and the URI form that UDAP's `hl7-b2b` carries."""

from __future__ import annotations

ACT_REASON_OID = "urn:oid:2.16.840.1.113883.5.8"
ACT_REASON_URL = "http://terminology.hl7.org/CodeSystem/v3-ActReason"

KNOWN = frozenset({"TREAT", "ETREAT", "BTG", "HPAYMT", "HOPERAT", "PATRQT", "PUBHLTH"})
"""What a caller may assert (contract section 3)."""

PROVIDER_DEFAULT = frozenset({"TREAT", "ETREAT", "BTG", "HOPERAT"})
"""What a member holds when its manifest lists no `purposes`."""

DISPLAY = {
    "TREAT": "treatment",
    "ETREAT": "emergency treatment",
    "BTG": "break the glass",
    "HPAYMT": "healthcare payment",
    "HOPERAT": "healthcare operations",
    "PATRQT": "patient requested",
    "PUBHLTH": "public health",
}


def parse_purpose(uri: str) -> str | None:
    """The code of `urn:oid:2.16.840.1.113883.5.8#TREAT`; None when it is not one the exchange knows."""
    system, _, code = uri.partition("#")
    return code if system in (ACT_REASON_OID, ACT_REASON_URL) and code in KNOWN else None
