"""The cluster of the table: started once, for all tests of this folder."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_input.cluster import Cluster, running_cluster


@pytest.fixture(scope="package")
def bad_input_cluster() -> Iterator[Cluster]:
    """Give the running cluster. Its path is short: the tests use the nodes' unix sockets."""
    directory = Path(tempfile.mkdtemp(prefix="kvp2p-", dir="/tmp")).resolve()
    try:
        with running_cluster(directory) as cluster:
            yield cluster
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def cluster(bad_input_cluster: Cluster) -> Cluster:
    """Give the running cluster."""
    return bad_input_cluster
