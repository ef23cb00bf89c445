"""The evidence that goes with an answer: `HIE-Receipt`, the address of the proof that it was recorded.

Public and free of patient data. What is there is a c2sp.org/tlog-proof: whoever keeps it can show, without the
exchange, that the entry is in the log.
"""

from __future__ import annotations

from collections.abc import Sequence

from flask import Response, after_this_request

from hie.audit.entry import Receipt
from hie.gateway.services import current

HEADER = "HIE-Receipt"


def give(receipts: Sequence[Receipt]) -> None:
    """Name the proof of the last entry in this request's answer; it is under a checkpoint that signs the others too."""
    if not receipts:
        return
    address = f"{current().settings.base_url}/log/receipt/{receipts[-1].entry_id}"

    @after_this_request
    def _name(response: Response) -> Response:
        response.headers[HEADER] = address
        return response
