"""Who had a partition after whom: every change of owner, as the database saw it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from e2e.site import Site

# Of the tests alone. In the transaction that changes the owner, so nothing is missed and nothing is out of order.
_RECORD = """
CREATE TABLE e2e_taken (n bigserial PRIMARY KEY, partition_id int NOT NULL, owner text NOT NULL);
CREATE FUNCTION e2e_take() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO e2e_taken (partition_id, owner) VALUES (NEW.partition_id, NEW.owner); RETURN NULL; END $$;
CREATE TRIGGER e2e_take AFTER UPDATE ON sync_partition FOR EACH ROW
    WHEN (NEW.owner IS NOT NULL AND NEW.owner IS DISTINCT FROM OLD.owner) EXECUTE FUNCTION e2e_take();
"""


class Moves:
    """Records from now on who takes which partition."""

    def __init__(self, site: Site) -> None:
        self._site = site
        site.rows(_RECORD)

    def mark(self) -> tuple[int, dict[int, str | None]]:
        """This moment: how many were taken so far, and who has what."""
        taken = self._site.rows("SELECT coalesce(max(n), 0) AS n FROM e2e_taken")[0]["n"]
        return taken, self._site.owners()

    def since(self, mark: tuple[int, dict[int, str | None]]) -> Counter[int]:
        """Partition -> how often another node took it than had it last; to come back to the same is no move."""
        taken, before = mark
        owners = {partition: [owner] for partition, owner in before.items()}
        rows = self._site.rows("SELECT partition_id, owner FROM e2e_taken WHERE n > %s ORDER BY n", taken)
        for row in rows:
            owners[row["partition_id"]].append(row["owner"])
        return Counter({number: sum(a != b for a, b in pairwise(each)) for number, each in owners.items()})
