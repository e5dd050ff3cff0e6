"""LangGraph's checkpoints in a store: `pip install 'cenote[langgraph]'`.

    from cenote.integrations.langgraph import CenoteSaver

    async with cenote.open() as store:
        graph = builder.compile(checkpointer=CenoteSaver(store))

With `cenote.blocking.open()` the same saver serves programs without an event loop.
"""

from cenote.integrations.langgraph.saver import CenoteSaver as CenoteSaver

__all__ = ["CenoteSaver"]
