"""The history of the tables, one module per revision; run by ``store.revisions``."""

from __future__ import annotations

#: The newest revision. Named here, since to ask Alembic costs a fifth of a second in every process that starts.
NEWEST = "0001"


def run(script: str) -> None:
    """Run statements of a revision as they are, or write them down if that is what was asked for."""
    from alembic import op

    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(f"{script.strip().rstrip(';')};\n")
    else:
        op.get_bind().exec_driver_sql(script)
