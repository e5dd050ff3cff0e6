"""The deep pool: each kind of data in the store that suits it, behind verbs of its own."""

from cenote.engine.chores import Chore
from cenote.engine.machines import Machines
from cenote.engine.search_index import EVERY_S, SearchIndex


def chores(machines: Machines) -> list[Chore]:
    """What these rooms want done by the process that flushes."""
    return [
        Chore("search-index", EVERY_S, SearchIndex(machines.core).tend),
    ]
