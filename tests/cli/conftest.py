"""A cluster whose nodes are rows."""

from __future__ import annotations

import pytest
from command_stage import Cluster


@pytest.fixture
def cluster(database_url: str) -> Cluster:
    """One leader with three partitions of four."""
    cluster = Cluster(database_url)
    cluster.lead("one", cluster.join("one", 0, 1, 2))
    return cluster
