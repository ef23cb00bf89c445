"""Text as it is compared in ITI-78 search and survivorship (pure): case, accents, punctuation and spaces do not count.

The matcher has normalisation of its own (`demographics`), which knows nicknames and addresses; this one follows the
FHIR R4 rule for string parameters (search, section 3.1.1.4.8).
"""

from __future__ import annotations

import re
import unicodedata

_SILENT = str.maketrans("", "", "'’‘`´.")
_NON_DIGITS = re.compile(r"\D+")


def normalised(text: str) -> str:
    """Lower case without accents and punctuation, words parted by one space; empty when nothing is left."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_SILENT)).casefold()
    kept = (c if unicodedata.category(c)[0] in "LNM" else " " for c in decomposed if not unicodedata.combining(c))
    return " ".join("".join(kept).split())


def digits_or_text(value: str) -> str:
    """A phone number's digits without the North American trunk prefix; other addresses in lower case."""
    value = value.strip()
    if "@" in value or "://" in value:
        return value.removeprefix("mailto:").casefold()
    digits = _NON_DIGITS.sub("", value)
    if len(digits) == 11 and digits.startswith("1"):
        return digits[1:]
    return digits or normalised(value)
