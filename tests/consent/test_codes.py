"""Files of codes: their form, packs, the officer's codes, what a change does, and recall on codes of others."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.resources import files

import pytest

from hie.consent.code_files import Row, packaged, read, write
from hie.consent.codes import FOLDER, OFFICERS, CodeSets, difference, recall, sets_of
from hie.consent.vocabulary import ICD10CM, SNOMED
from hie.core.errors import BadRequest, ConfigurationError, NotFound

DAY = date(2026, 11, 25)
ZOSTER = Row("icd10cm", "prefix", "B02", "STD", "zoster, for the test's sake")


def pack(*rows, sources="a made-up list"):
    return write(sources, DAY, rows)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / FOLDER
    made.mkdir()
    return made


# -- their form


def test_what_is_written_reads_back():
    file = read("own.csv", pack(ZOSTER, Row("name", "code", "acme forte (50)", "ETH")))
    assert (file.name, file.sources, file.date) == ("own.csv", "a made-up list", DAY)
    assert file.rows[0] == ZOSTER


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("system,kind,code,label,meaning\n", "begins with `# sources"),
        ("# sources: x\n# date: soon\nsystem,kind,code,label,meaning\n", "must be a day"),
        ("# sources: x\n# date: 2026-11-25\nsystem,code\n", "the columns must be"),
        (pack() + "icd11,code,XX,HIV,\n", "line 4 has a system"),
        (pack() + "icd10cm,glob,B20,HIV,\n", "line 4 has a kind"),
        (pack(ZOSTER) + "icd10cm,code,B20,AIDS,\n", "line 5 has the label AIDS"),
        (pack() + "icd10cm,range,B24..B20,HIV,\n", "line 4 has no range"),
        (pack() + "icd10cm,prefix,B,HIV,\n", "line 4 has no code"),
        (pack() + "icd10cm,pattern,??2,HIV,\n", "line 4 has a pattern"),
        (pack() + "icd10cm,code,B20,HIV\n", "line 4 needs five columns"),
    ],
)
def test_a_mistake_is_said_with_its_line(text, said):
    with pytest.raises(ConfigurationError) as refused:
        read("bad.csv", text)
    assert refused.value.message.startswith("bad.csv")
    assert said in refused.value.message


# -- packs


def test_a_pack_in_the_folder_counts_and_a_change_of_it_is_seen_at_once(folder):
    held = CodeSets(folder)
    assert held.current().of_code(ICD10CM, "B02.9") == set()
    (folder / "zoster.csv").write_text(pack(ZOSTER))
    assert held.current().of_code(ICD10CM, "B02.9") == {"STD"}
    assert [file.name for file in held.files()][-1] == "zoster.csv"
    (folder / "zoster.csv").unlink()
    assert held.current().of_code(ICD10CM, "B02.9") == set()
    assert held.current().of_code(ICD10CM, "B20") == {"HIV"}


def test_a_wrong_pack_stops_the_start(folder):
    (folder / "bad.csv").write_text("nonsense")
    with pytest.raises(ConfigurationError, match=r"bad\.csv"):
        CodeSets(folder)


def test_a_folder_that_is_none_stops_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be read as a folder"):
        CodeSets(tmp_path / "file")


def test_a_pack_that_goes_wrong_leaves_the_codes_that_were_in_force(folder, caplog):
    (folder / "zoster.csv").write_text(pack(ZOSTER))
    held = CodeSets(folder)
    (folder / "zoster.csv").write_text("half of it")
    with caplog.at_level(logging.ERROR, logger="hie"):
        assert held.current().of_code(ICD10CM, "B02.9") == {"STD"}
    assert "value sets" in caplog.text


# -- the officer's


def test_the_officer_adds_and_takes_back_a_code_in_every_process(folder):
    mine, other = CodeSets(folder), CodeSets(folder)
    mine.add(ZOSTER, DAY)
    assert other.officers() == (ZOSTER,)
    assert other.current().of_code(ICD10CM, "B02.2") == {"STD"}
    assert oct(os.stat(folder / OFFICERS).st_mode & 0o777) == "0o600"
    other.take_back(ZOSTER, DAY)
    assert mine.officers() == ()
    assert mine.current().of_code(ICD10CM, "B02.2") == set()


def test_two_officers_at_once_lose_nothing(folder):
    rows = [ZOSTER._replace(code=f"B{number}") for number in range(10, 30)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: CodeSets(folder).add(row, DAY), rows))
    assert set(CodeSets(folder).officers()) == set(rows)


def test_what_the_officer_may_not_add(folder):
    held = CodeSets(folder)
    held.add(ZOSTER, DAY)
    with pytest.raises(BadRequest, match="added already"):
        held.add(ZOSTER._replace(meaning="again"), DAY)
    with pytest.raises(BadRequest, match="no sensitivity code"):
        held.add(ZOSTER._replace(label="ODD"), DAY)
    with pytest.raises(NotFound):
        held.take_back(ZOSTER._replace(code="B03"), DAY)


def test_a_folder_that_is_not_there_is_made_when_it_is_needed(tmp_path):
    held = CodeSets(tmp_path / "later")
    assert len(held.files()) == len(packaged())
    held.add(ZOSTER, DAY)
    assert CodeSets(tmp_path / "later").officers() == (ZOSTER,)


def test_what_a_change_would_give_away_is_known_before_it_is_made(folder):
    held = CodeSets(folder)
    assert held.with_row(ZOSTER).of_code(ICD10CM, "B02.9") == {"STD"}
    assert held.current().of_code(ICD10CM, "B02.9") == set()
    held.add(ZOSTER, DAY)
    assert held.without_row(ZOSTER).of_code(ICD10CM, "B02.9") == set()
    more, less = difference(packaged(), held.files())
    assert (more, less) == ([ZOSTER], [])


# -- recall


def held_out():
    folder = files("hie.consent") / "heldout"
    return [read(file.name, file.read_text()) for file in folder.iterdir() if file.name.endswith(".csv")]


def test_no_code_that_recall_is_measured_on_stands_in_the_value_sets_itself():
    rows = [row for file in packaged() for row in file.rows if row.kind == "code"]
    own = {(row.system, row.code.upper().replace(".", "")) for row in rows}
    measured = [(row.system, row.code.upper().replace(".", "")) for file in held_out() for row in file.rows]
    assert len(measured) > 600
    assert own.isdisjoint(measured)


@pytest.mark.parametrize(
    ("label", "system", "least"),
    [
        ("HIV", "icd10cm", 1.0),
        ("ETH", "icd10cm", 0.98),
        ("STD", "icd10cm", 0.98),
        ("SDV", "icd10cm", 0.95),
        ("SEX", "icd10cm", 0.95),
        ("GDIS", "icd10cm", 0.85),
        ("PSY", "icd10cm", 0.85),
        ("OPIOIDUD", "rxnorm", 1.0),
        ("MH", "snomed", 0.8),
    ],
)
def test_recall_does_not_fall(label, system, least):
    rows = [row for file in held_out() for row in file.rows if (row.label, row.system) == (label, system)]
    (found,) = recall(sets_of(packaged()), rows)
    assert found.with_words / found.codes >= least, found.missed


def test_recall_counts_what_lies_below_and_names_what_is_missed():
    rows = [
        Row("icd10cm", "code", "F11.20", "ETH"),
        Row("icd10cm", "code", "I10", "ETH"),
        Row("snomed", "code", "1", "HIV", "HIV viral load"),
    ]
    eth, hiv = recall(sets_of(packaged()), rows)
    assert (eth.codes, eth.by_code, eth.missed) == (2, 1, (rows[1],))
    assert (hiv.by_code, hiv.with_words) == (0, 1)
    assert sets_of(packaged()).of_code(SNOMED, "1") == set()
