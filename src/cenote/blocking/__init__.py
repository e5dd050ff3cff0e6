"""The store without `await`: for programs that have no event loop, from any number of threads.

    with cenote.blocking.open() as store:
        scout = store.agent("scout-7")
        scout.put("plan", {"goal": "map the cave"}).durable()

Each open store has one background thread with an event loop, on which everything happens; a call waits for its answer
there. Iterators are plain iterators; an endless one (`watch`) is ended with `.close()`, from any thread.

- A change function given to `update` runs on the background thread: it must be quick, and must not call the store.
- A store belongs to the process that opened it. After a fork the child's calls raise SetupError: it opens its own.
- Close a store. One that is forgotten dies with the process without waiting for PostgreSQL; KV has everything.
"""

from pathlib import Path
from typing import Any

from cenote import store as stores
from cenote.blocking.iteration import Iteration
from cenote.blocking.receipt import Receipt
from cenote.blocking.thread import LoopThread
from cenote.blocking.twins import AgentState, Store, Typed
from cenote.config import Config

__all__ = ["AgentState", "Iteration", "Receipt", "Store", "Typed", "open"]


def open(  # the word users expect; the builtin is not used here
    config: Config | Path | str | None = None,
    *,
    kv: str | None = None,
    sql: str | None = None,
    namespace: str | None = None,
    data_dir: Path | str | None = None,
    **overrides: Any,
) -> "Store":
    """Open a store: `with cenote.blocking.open() as store`, or call `store.close()`. Takes and raises what
    `cenote.open` and its opening do."""
    import cenote

    opening = cenote.open(config, kv=kv, sql=sql, namespace=namespace, data_dir=data_dir, **overrides)

    async def opened() -> stores.Store:
        return await opening

    thread = LoopThread()
    try:
        return Store(thread, thread.run(opened()))
    except BaseException:
        thread.stop()
        raise
