"""NATS loses what it had acknowledged, under load and at random moments: nothing that either side still holds is lost,
nothing acknowledged afterwards is dropped, nothing deleted rises, no version of before matches (flow rules 3, 4)."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import rewinds
from kv_server import config
from rewinds import Arena, Fault

import cenote
from cenote.kv.bucket import stream_info
from cenote.kv.errors import JsNotFound
from cenote.kv.link import Link

ROUNDS = 20


async def bucket_goes(arena: Arena, dice: random.Random) -> Fault:
    """The bucket of the newest namespace is deleted; the stores make it anew. All that was acknowledged up to a moment
    before is in SQL."""
    link = Link(config(arena.kv), name="the fault")
    await link.connect()
    try:
        streams = (await link.api("STREAM.NAMES", {"subject": "$KV.>"}))["streams"]
        name = max((one for one in streams if one.endswith("_AGENT_STATE")), key=lambda one: int(one.split("_")[2]))
        namespace = name.removeprefix("KV_").removesuffix("_AGENT_STATE")
        in_sql = time.monotonic()
        async with cenote.open(**arena.settings(namespace=namespace, flush__enabled=False)) as store:
            await store.flush(20)
        await asyncio.sleep(0.2 + dice.random())
        down = time.monotonic()
        await link.api(f"STREAM.DELETE.{name}")
        while True:
            try:
                info = await stream_info(link, name)
            except JsNotFound:
                info = None
            if info is not None and "cenote.epochs" in info.metadata:
                return Fault(down, time.monotonic(), kv_back_to=in_sql)
            await asyncio.sleep(0.01)
    finally:
        await link.close()


@pytest.mark.judge
@pytest.mark.parametrize("fault", [rewinds.kv_goes_back, bucket_goes], ids=["store put back", "bucket recreated"])
def test_kv_goes_back_under_load(fault: Callable[[Arena, random.Random], Awaitable[Fault]], tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    with rewinds.arena(tmp_path) as arena:
        for number in range(ROUNDS):
            dice = random.Random(f"{fault.__name__}.{number}")
            journal = tmp_path / f"{number}.journal"
            seen.update(asyncio.run(rewinds.round_of(arena, journal, fault, dice, after_s=0.8)))
    print(dict(seen))
    assert seen["lost"], "no fault ever cost anything: they hit nothing"
