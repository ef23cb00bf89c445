import pytest

from hie.audit.log import AuditLog
from tests.audit.samples import BASE, Clock, seal


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(database, clock, tmp_path):
    opened = AuditLog(database, clock, BASE, seal(tmp_path))
    yield opened
    opened.close()
