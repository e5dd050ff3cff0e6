"""The deep pool: each kind of data in the store that suits it, behind verbs of its own."""

from cenote.engine.chores import Chore
from cenote.engine.expiry import Expiry
from cenote.engine.machines import Machines
from cenote.engine.policy import Policy
from cenote.engine.repair import RepairUpkeep
from cenote.engine.restore import EVERY_S as RESTORES_S
from cenote.engine.retention import EVERY_S as RETENTION_S
from cenote.engine.retention import Retention
from cenote.engine.search_index import EVERY_S, SearchIndex
from cenote.repositories.knowledge_index import EVERY_S as VECTORS_S
from cenote.repositories.knowledge_index import IndexUpkeep
from cenote.repositories.messages_upkeep import Upkeep
from cenote.repositories.tasks_upkeep import EVERY_S as TASKS_S
from cenote.repositories.tasks_upkeep import Upkeep as TasksUpkeep
from cenote.sql.messages import MessageTable


def chores(machines: Machines) -> list[Chore]:
    """What these rooms want done by the process that flushes."""
    db = machines.core.db

    async def forget_operations() -> None:
        await db.execute(db.queries["forget_operations"])

    upkeep = Upkeep(machines.core, MessageTable(machines.core.db))
    expiry = Expiry(machines.core, machines.lifecycle)
    repair = RepairUpkeep(machines.core, machines.repair)
    retention = Retention(machines.core, machines.checkpoints)
    policy = Policy(machines.core, machines.checkpoints)
    asked_for = [Chore("checkpoint-policy", policy.every_s, policy.tend)] if policy.wanted else []
    return [
        *asked_for,
        Chore("checkpoints", RETENTION_S, retention.tend),
        Chore("lifecycle", expiry.every_s, expiry.tend),
        Chore("search-index", EVERY_S, SearchIndex(machines.core).tend),
        Chore("operations", 3600, forget_operations),
        Chore("messages", upkeep.every_s, upkeep.tend),
        Chore("repair", repair.every_s, repair.tend),
        Chore("late", repair.late_every_s, repair.look_at_late),
        Chore("restores", RESTORES_S, machines.restorer.tend),
        Chore("vector-index", VECTORS_S, IndexUpkeep(machines.core).tend),
        Chore("tasks", TASKS_S, TasksUpkeep(machines.core).tend),
    ]
