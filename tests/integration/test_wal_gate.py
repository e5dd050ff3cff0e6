"""A gate without a stopwatch: what a write costs PostgreSQL's log, through the whole flow from put to commit."""

import statistics

import pytest

from cenote.bench.ground import bare_postgres
from cenote.bench.volume import WalMeter
from cenote.store import Store

WAL_BYTES_MAX = 560
HOT_PERCENT_MIN = 99
KEYS, BATCHES, ROUNDS = 10_000, 4, 3


@pytest.mark.alone
@pytest.mark.judge
async def test_wal_per_hot_row_through_the_whole_flow(cenote_store: Store) -> None:
    """Updates of random keys, 200 bytes a value, heartbeats and everything else that the flush writes included."""
    connection = await bare_postgres(cenote_store)
    try:
        meter = WalMeter(cenote_store, connection, KEYS)
        await meter.fill()
        bytes_per_row = statistics.median([await meter.round(BATCHES) for _ in range(ROUNDS)])
        hot_percent = await meter.hot_percent()
    finally:
        await connection.close()
    assert meter.updates == ROUNDS * BATCHES * 500
    assert 100 < bytes_per_row <= WAL_BYTES_MAX, f"{bytes_per_row:.0f} bytes a row"
    assert hot_percent >= HOT_PERCENT_MIN, f"{hot_percent:.1f} % of {meter.updates} updates were HOT"
