"""A process of its own that writes the log, for the test of two at once."""

import threading

from hie.audit.log import AuditLog
from hie.core.clock import system_clock
from hie.core.database import Database
from tests.audit.samples import BASE, disclosure, seal


def write(url, home, barrier, name, threads, each):
    database = Database(url)
    log = AuditLog(database, system_clock, BASE, seal(home))

    def work(number):
        for _ in range(each):
            log.record(disclosure(f"{name}-{number}"))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    barrier.wait(60)
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    log.close()
    database.close()
