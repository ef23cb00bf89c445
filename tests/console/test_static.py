"""What the pages are made of: nothing missing, nothing from elsewhere, nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hie.console

ROOT = Path(hie.console.__file__).parent
STATIC = ROOT / "static"


@pytest.mark.parametrize("sheet", sorted(STATIC.rglob("*.css")), ids=lambda path: path.name)
def test_every_file_that_a_style_sheet_names_is_there(sheet: Path) -> None:
    named = [n.strip("'\"") for n in re.findall(r"url\(([^)]*)\)", sheet.read_text()) if n.strip("'\"")]
    assert named
    assert [n for n in named if not (sheet.parent / n).is_file()] == []


def test_templates_hold_nothing_that_the_content_security_policy_refuses() -> None:
    for template in (ROOT / "templates").rglob("*.html"):
        assert not re.search(
            r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|https?://(?!fhir\.)", template.read_text()
        ), template


def test_every_form_that_posts_carries_a_token() -> None:
    for template in (ROOT / "templates").rglob("*.html"):
        forms = re.findall(r'<form method="post".*?</form>', template.read_text(), re.S)
        assert all('name="csrf_token"' in form for form in forms), template


def test_the_whole_is_small() -> None:
    assert sum(file.stat().st_size for file in STATIC.rglob("*") if file.is_file()) < 200_000
