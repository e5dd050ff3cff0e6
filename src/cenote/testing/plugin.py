"""The pytest plugin: `cenote_servers` and `cenote_store`. Imports cenote only when a test asks for a fixture."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cenote.store import Store
    from cenote.testing.servers import TestServers


@pytest.fixture(scope="session")
def cenote_servers(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[TestServers]":
    """Real NATS and PostgreSQL for the whole session; `CENOTE_TEST_POSTGRES_BIN` names another PostgreSQL."""
    from cenote.testing.servers import TestServers

    overrides: dict[str, Any] = {}
    if postgres_bin := os.environ.get("CENOTE_TEST_POSTGRES_BIN"):
        overrides["embedded__postgres_bin"] = postgres_bin
    servers = TestServers(tmp_path_factory.mktemp("cenote"), **overrides).start()
    yield servers
    servers.stop()


@pytest.fixture
async def cenote_store(cenote_servers: "TestServers") -> "AsyncIterator[Store]":
    """An open store in a namespace of its own."""
    import cenote

    async with cenote.open(**cenote_servers.fresh()) as store:
        yield store
