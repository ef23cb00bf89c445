"""Imports every package's tables, so that `hie.core.database.metadata` is whole (migrations and tests need it)."""

import hie.audit.tables
import hie.audit.tables_officer
import hie.consent.tables
import hie.gateway.tables
import hie.mpi.tables  # noqa: F401
