"""`hie mpi reindex`: lookups, searches and links find everybody again, also while members feed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa

from hie.core.database import Database
from hie.mpi.identity import Identifier, IdentityService
from hie.mpi.index import MatchIndex, Verdict
from hie.mpi.model import Model
from hie.mpi.patient_search import parse_query
from hie.mpi.reindexing import AT_ONCE, Reindexing
from hie.mpi.tables import person_tokens
from hie.mpi.tables_match import match_keys, match_traits, name_variants
from tests.mpi.identity.conftest import Clock, Feed, marta, otto

INDEXES = (match_keys, match_traits, name_variants, person_tokens)


def rows(database: Database) -> list[set[Any]]:
    """Everything but the tokens' own numbers."""
    columns = [[column for column in table.c if column.name != "id"] for table in INDEXES]
    with database.read() as connection:
        return [{tuple(row) for row in connection.execute(sa.select(*chosen))} for chosen in columns]


def emptied(database: Database) -> None:
    with database.write() as connection:
        for table in INDEXES:
            connection.execute(table.delete())


def reindexing(database: Database, clock: Clock, model: Model) -> Reindexing:
    return Reindexing(database, MatchIndex(model, database.is_sqlite), clock)


def test_everybody_is_found_again(
    database: Database, clock: Clock, model: Model, service: IdentityService, feed: Feed
) -> None:
    first = feed("lakeside", "L-1", marta()).record.person_id
    feed("lakeside", "L-2", otto())
    feed("harbor", "H-9", marta(birthDate="1949-11-03"))
    service.delete("harbor", Identifier("urn:oid:2.999.1.2", "H-9"))
    before = rows(database)
    emptied(database)
    heard: list[tuple[int, int]] = []
    assert reindexing(database, clock, model).run(lambda done, total: heard.append((done, total))) == 2
    assert rows(database) == before
    assert heard[-1][0] == heard[-1][1] > 0
    assert [person.id for person in service.search(parse_query([("family", "lindq")])).people] == [first]
    again = feed("meadow", "M-1", marta())
    assert again.decision is not None
    assert again.decision.verdict is Verdict.LINK
    assert again.record.person_id == first


def test_members_feed_meanwhile(
    database: Database, clock: Clock, model: Model, service: IdentityService, feed: Feed
) -> None:
    """Records that are new, changed and deleted during the run end as indexed as if it had not been."""
    for number in range(AT_ONCE + 20):
        feed("lakeside", f"L-{number}", otto(birthDate=f"19{number % 90 + 10}-03-{number % 27 + 1:02}"))
    emptied(database)

    def fed(number: int) -> None:
        feed("lakeside", f"L-{number}", marta(birthDate=f"1949-{number % 12 + 1:02}-{number % 27 + 1:02}"))
        feed("harbor", f"H-{number}", otto(birthDate=f"2001-03-{number % 27 + 1:02}"))
        service.delete("lakeside", Identifier("urn:oid:2.999.1.1", f"L-{number + 40}"))

    with ThreadPoolExecutor(3) as threads:
        run = threads.submit(reindexing(database, clock, model).run)
        for done in [threads.submit(fed, number) for number in range(30)]:
            done.result()
        run.result()
    during = rows(database)
    emptied(database)
    reindexing(database, clock, model).run()
    after = rows(database)
    assert during[0] == after[0]
    assert during[1] == after[1]
    assert during[2] >= after[2]  # names that nobody bears any more are kept
    assert during[3] == after[3]
