"""The history of the tables, one module per revision; run by ``store.schema``."""

from __future__ import annotations

#: The newest revision. Named here, since to ask Alembic costs a fifth of a second in every process that starts.
NEWEST = "0001"
