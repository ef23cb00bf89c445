import pytest

from hie.audit.log import AuditLog
from tests.audit.samples import BASE, Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(database, clock):
    opened = AuditLog(database, clock, BASE)
    yield opened
    opened.close()
