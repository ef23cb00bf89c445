"""An AuditEvent that carries its own evidence: its place in the log and the proof of it, as an extension (pure).

`<base>/StructureDefinition/log-proof` has an `index`, the `salt`, and as `proof` the entry's c2sp.org/tlog-proof with
leaf and signed checkpoint. The event without it, as canonical JSON (RFC 8785), is the body of the entry: SHA-256 of
salt and body is the leaf's `commit`. An archived entry has no salt any more. `tools/verify_log.py` checks all of this.
"""

from __future__ import annotations

from hie.audit.checkpoint import Proof
from hie.audit.entry import Entry
from hie.audit.note import encode
from hie.core.fhir import Resource

EXTENSION = "/StructureDefinition/log-proof"


def carrying(entry: Entry, proof: Proof, fhir_base: str) -> Resource:
    """The entry's AuditEvent with its proof."""
    # A decimal, since FHIR R4 has no integer of more than 31 bits, and a log may grow beyond.
    parts: list[Resource] = [{"url": "index", "valueDecimal": proof.index}]
    if not entry.archived:
        parts.append({"url": "salt", "valueBase64Binary": encode(entry.salt)})
    parts.append({"url": "proof", "valueBase64Binary": encode(bytes(proof))})
    return {**entry.resource, "extension": [{"url": fhir_base + EXTENSION, "extension": parts}]}
