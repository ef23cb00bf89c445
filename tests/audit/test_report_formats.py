"""Reports as files: what a spreadsheet, a program, a verifier and a reader on paper get."""

import csv
import hashlib
import io
import json
import zipfile
from dataclasses import replace
from functools import partial

import pytest
import rfc8785

from hie.audit.accounting import Accounting, Asked, ReportKind, Subject
from hie.audit.checkpoint import Proof
from hie.audit.event import Released
from hie.audit.log import AuditLog
from hie.audit.merkle import leaf_hash
from hie.audit.note import VerifierKey
from hie.audit.proved import proofs_for, proved_entries
from hie.audit.report_formats import FORMS, Format, file_name, render
from hie.core import fhir
from tests.audit.pdf_text import text_of
from tests.audit.samples import BASE, caller, disclosure, seal

MARTA = Subject("person-1", ("person-1",), "Marta Lindqvist")


@pytest.fixture
def made(sqlite_database, clock, tmp_path):
    """A report about `disclosures` at the clock's time."""
    log = AuditLog(sqlite_database, clock, BASE, seal(tmp_path))

    def make(*disclosures, kind=ReportKind.ACCOUNTING, subject=MARTA):
        log.record(*disclosures)
        clock.forward(days=1)
        return Accounting(sqlite_database, clock).report(Asked(kind, (subject,)))

    make.log = log
    yield make
    log.close()


def rows(report):
    return list(csv.DictReader(io.StringIO(render(report, Format.CSV).decode(), newline="")))


def test_csv_has_a_heading_and_carriage_returns_and_quotes_what_needs_it(made):
    report = made(disclosure(caller=caller(organization_name='Lakeside, "the" Hospital\nNorth')))
    raw = render(report, Format.CSV)
    assert raw.startswith(b"patient,first_date,last_date,count,recipient,recipient_person,")
    assert b'"Lakeside, ""the"" Hospital\nNorth"' in raw
    assert raw.endswith(b"\r\n")
    assert rows(report)[0]["recipient"] == 'Lakeside, "the" Hospital\nNorth'


@pytest.mark.parametrize(
    "name", ["=HYPERLINK(1)", "+1", "-1+1", "@SUM(A1)", "\t=1", " =1+1", "\u00a0=1", "＝1", "\r=1", "\n=1"]
)
def test_a_name_never_becomes_a_formula(made, name):
    (row,) = rows(made(disclosure(caller=caller(subject_name=name))))
    assert row["recipient_person"].startswith("'")
    assert row["recipient_person"][1:] == name


def test_json_has_the_same_rows_untouched_and_says_whether_it_is_complete(made):
    report = made(disclosure(caller=caller(subject_name="=cmd|calc")))
    found = json.loads(render(report, Format.JSON))
    assert found["rows"] == [dict(row) for row in report.rows]
    assert found["rows"][0]["recipient_person"] == "=cmd|calc"
    assert found["complete"] is True
    assert found["patients"] == [{"id": "person-1", "ids": ["person-1"], "name": "Marta Lindqvist"}]
    assert (found["report"], found["law"], found["from"]) == (
        "accounting",
        "45 CFR 164.528",
        "2020-03-02T08:00:00.250000Z",
    )
    lines = render(report, Format.JSONL).decode().splitlines()
    assert [json.loads(line) for line in lines] == found["rows"]


def test_the_bundle_holds_the_entries_as_audit_events(made):
    bundle = json.loads(render(made(disclosure(), disclosure("person-2")), Format.BUNDLE))
    assert (bundle["resourceType"], bundle["type"], len(bundle["entry"])) == ("Bundle", "collection", 1)
    fhir.validate(bundle["entry"][0]["resource"], "AuditEvent")
    assert bundle["entry"][0]["fullUrl"].endswith(bundle["entry"][0]["resource"]["id"])
    assert "entry" not in json.loads(render(made(subject=Subject("p", ("p",))), Format.BUNDLE))


def test_the_zip_proves_itself(made):
    report = made(disclosure(), disclosure("person-2"), disclosure())
    raw = render(report, Format.ZIP, proofs=lambda entries: {f"proofs/{e.index}.txt": b"proof" for e in entries})
    archive = zipfile.ZipFile(io.BytesIO(raw))
    assert archive.testzip() is None
    manifest = json.loads(archive.read("manifest.json"))
    assert set(manifest["sha256"]) == set(archive.namelist()) - {"manifest.json"}
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256(archive.read(name)).hexdigest() == digest
    assert {"proofs/0.txt", "proofs/2.txt", "report.pdf", "report.csv", "report.json", "README.txt"} <= set(
        archive.namelist()
    )
    assert manifest["complete"] is True
    lines = [json.loads(line) for line in archive.read("entries.ndjson").splitlines()]
    assert [line["index"] for line in lines] == [0, 2]
    for line, entry in zip(lines, report.entries, strict=True):
        leaf, salt, body = line["leaf"].encode(), bytes.fromhex(line["salt"]), line["body"].encode()
        assert json.loads(leaf)["commit"] == hashlib.sha256(salt + body).hexdigest()
        assert leaf_hash(leaf) == entry.leaf_hash
        assert body == rfc8785.dumps(json.loads(body))


def test_the_zip_has_a_proof_for_each_entry_that_an_outsider_can_follow(made, sqlite_database):
    report = made(*(disclosure() for _ in range(5)), disclosure("person-2"))
    proofs = partial(proofs_for, sqlite_database, made.log.evidence)
    archive = zipfile.ZipFile(io.BytesIO(render(report, Format.ZIP, proofs=proofs)))
    assert json.loads(archive.read("manifest.json"))["proofs"] is True
    proved = list(proved_entries(archive.read("entries.ndjson").splitlines(), made.log.evidence))
    assert [(one.index, one.leaf_hash) for one in proved] == [(e.index, e.leaf_hash) for e in report.entries]
    for entry in report.entries:
        receipt = Proof.parse(archive.read(f"proofs/{entry.index}.tlog-proof"))
        receipt.require_included()
        receipt.signed.require_signer([VerifierKey.parse(archive.read("log.vkey").decode().strip())])
        assert receipt.leaf == entry.leaf


def test_the_same_report_gives_the_same_bytes(made):
    report = made(disclosure())
    for form in Format:
        assert render(report, form) == render(report, form)


def test_a_file_name_tells_no_patient(made):
    report = made(disclosure())
    assert file_name(report, Format.BUNDLE) == "accounting-2026-03-02.fhir.json"
    assert set(FORMS) == set(Format)


def test_on_paper_the_report_says_who_got_what_and_whether_it_is_complete(made):
    report = made(
        disclosure(
            caller=caller(subject_name="Łucja Żółć <b>bold</b> & co", purposes=frozenset({"PUBHLTH"})),
            released=(Released("Immunization", "gw", "ab" * 32, ("N",)),),
        )
    )
    pdf = render(report, Format.PDF)
    assert pdf.startswith(b"%PDF-")
    text = text_of(pdf)
    for words in (
        "Accounting of disclosures",
        "45 CFR 164.528",
        "Marta Lindqvist",
        "Lakeside Hospital",
        "Łucja Żółć < b > bold < /b > & co",  # a line each string that is set
        "1 vaccination",
        "public health",
        "1 March 2026, 08:00 UTC",
        "Page 1",
    ):
        assert words in text.replace("\n", " "), words
    assert "Complete by two indexes of the log, which agree on 1 entry" in text.replace("\n", " ")
    assert "stands for a letter" not in text


def test_on_paper_a_letter_without_a_glyph_is_told(made):
    text = text_of(render(made(disclosure(caller=caller(subject_name="王芳"))), Format.PDF))
    assert "??" in text
    assert "stands for a letter that cannot be printed here" in text


@pytest.mark.parametrize("kind", list(ReportKind))
def test_every_kind_prints_with_nothing_with_little_and_with_much(made, kind):
    assert "Nothing of this kind is in the log" in text_of(render(made(kind=kind), Format.PDF))
    long = caller(purposes=frozenset({"BTG", "TREAT"}), break_glass_reason="unconscious " * 300)
    marked = (Released("Condition", "gw", "ab" * 32, ("42CFRPart2",)),)
    staff = [caller(subject_id=f"n-{n}", subject_name=f"Nurse {n}", organization=f"o-{n}") for n in range(40)]
    many = [
        disclosure(caller=replace(one, organization_name=f"Ward {n}"), released=marked) for n, one in enumerate(staff)
    ]
    text = text_of(render(made(disclosure(caller=long, released=marked), *many, kind=kind), Format.PDF))
    assert ("o-39" if kind is ReportKind.ONC else "Ward 39") in text
    assert "Page 3" in text
    assert ("the CSV and JSON forms have all of it" in " ".join(text.split("\n"))) == (kind is not ReportKind.ONC)
