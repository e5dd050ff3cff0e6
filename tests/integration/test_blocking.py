"""The store without `await`: the same verbs, from many threads, with an end to everything."""

import inspect
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import cenote
from cenote import agent as agents
from cenote import blocking, storage, store_repair, typed
from cenote import store as stores
from cenote.blocking import agents as blocking_registry
from cenote.blocking import answers as blocking_answers
from cenote.blocking import health as blocking_health
from cenote.blocking import knowledge as blocking_knowledge
from cenote.blocking import messages as blocking_messages
from cenote.blocking import repairs as blocking_repairs
from cenote.blocking import sessions as blocking_sessions
from cenote.blocking import storage as blocking_storage
from cenote.blocking import tasks as blocking_tasks
from cenote.blocking import transactions as blocking_transactions
from cenote.engine import letters
from cenote.health import face
from cenote.repositories import agents as registry
from cenote.repositories import cached, knowledge, messages, sessions, tasks, tasks_work
from cenote.testing import TestServers

PAIRS = [
    (stores.Store, blocking.Store),
    (face.StoreHealth, blocking_health.StoreHealth),
    (agents.AgentState, blocking.AgentState),
    (cenote.Receipt, blocking.Receipt),
    (typed.Typed, blocking.Typed),
    (messages.Messages, blocking_messages.Messages),
    (knowledge.Knowledge, blocking_knowledge.Knowledge),
    (tasks.Tasks, blocking_tasks.Tasks),
    (tasks_work.Job, blocking_tasks.Job),
    (cenote.Transaction, blocking_transactions.Transaction),
    (registry.Agents, blocking_registry.Agents),
    (sessions.Sessions, blocking_sessions.Sessions),
    (cached.Answers, blocking_answers.Answers),
    (storage.DataStorage, blocking_storage.DataStorage),
    (letters.DeadLetters, blocking_repairs.DeadLetters),
    (store_repair.StoreRepair, blocking_repairs.StoreRepair),
]


@pytest.fixture
def store(cenote_servers: TestServers) -> Iterator[blocking.Store]:
    with cenote.blocking.open(**cenote_servers.fresh()) as opened:
        yield opened


@pytest.mark.parametrize(("waiting", "plain"), PAIRS, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_verb_has_its_twin_with_the_same_parameters(waiting: type, plain: type) -> None:
    verbs = {name for name in vars(waiting) if not name.startswith("_")} - {"aclose"}
    assert verbs
    attributes = {name for name in dir(plain) if not name.startswith("_")}
    assert verbs <= attributes
    for name in verbs:
        ours, theirs = inspect.getattr_static(plain, name), inspect.getattr_static(waiting, name)
        if not inspect.isfunction(theirs):
            continue
        wanted = [(p.name, p.kind, _plain(p.default)) for p in inspect.signature(theirs).parameters.values()]
        found = [(p.name, p.kind, _plain(p.default)) for p in inspect.signature(ours).parameters.values()]
        assert found == wanted, name
        assert not inspect.iscoroutinefunction(ours)
        assert not inspect.isasyncgenfunction(ours)


def test_open_takes_what_the_other_open_takes() -> None:
    assert list(inspect.signature(blocking.open).parameters) == list(inspect.signature(cenote.open).parameters)


def _plain(default: Any) -> Any:
    """A default; marks of absence are all one."""
    return default if isinstance(default, str | int | float | type(None)) or default is inspect._empty else "absent"


def test_the_verbs(store: blocking.Store) -> None:
    scout = store.agent("scout")
    receipt = scout.put("plan", {"step": 1}, if_version=0)
    assert receipt.durable(10).durability == "sql"
    assert scout.put("plan", {"step": 2}, if_version=receipt).version > receipt.version
    with pytest.raises(cenote.ConflictError):
        scout.put("plan", {"step": 3}, if_version=receipt)
    assert scout.update("plan", lambda plan: plan | {"step": plan["step"] + 1}).value == {"step": 3}
    assert scout.entry("plan").value == scout.get("plan") == {"step": 3}
    many = {f"k{i}": i for i in range(600)}
    assert len(scout.put_many(many)) == 600
    assert dict(scout.items("k")) == many
    assert set(scout.keys()) == {"plan", *many}
    assert scout.get_many(["k1", "nothing"]) == {"k1": 1}
    scout.delete("k1")
    assert scout.get("k1", "gone") == "gone"
    scout.flush(10)
    store.flush(10)
    assert store.stats().dirty_entries == 0
    _until(lambda: store.health().verdict is cenote.Verdict.HEALTHY, 30)  # a late flush is judged for 10 s
    counter = scout.typed("n", int)
    counter.put(1)
    assert counter.update(lambda n: n + 1).value == counter.get() == 2


def test_a_transaction_of_plain_functions(store: blocking.Store) -> None:
    def work(tx: blocking_transactions.Transaction) -> list[int]:
        tx.execute("CREATE TEMP TABLE t (n int PRIMARY KEY) ON COMMIT DROP")
        tx.executemany("INSERT INTO t VALUES ($1)", [(1,), (2,)])
        with pytest.raises(cenote.AlreadyExistsError), tx.savepoint():
            tx.execute("INSERT INTO t VALUES (3), (1)")
        return [row["n"] for row in tx.fetch("SELECT n FROM t ORDER BY n")]

    assert store.transact(work) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        store.transact(lambda tx: 1 / 0)


def test_many_threads_change_one_key(store: blocking.Store) -> None:
    def add(_: int) -> None:
        store.agent("shared").update("n", lambda n: n + 1, default=0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(80)))
    assert store.agent("shared").get("n") == 80


def test_a_watch_ends_when_another_thread_closes_it(store: blocking.Store) -> None:
    scout, seen = store.agent("scout"), []
    watch = scout.watch(since=0)

    def follow() -> None:
        seen.extend(entry.value for entry in watch)

    follower = threading.Thread(target=follow)
    follower.start()
    for value in range(3):
        scout.put("k", value)
        _until(lambda value=value: value in seen)
    watch.close()
    follower.join(10)
    assert not follower.is_alive()
    assert sorted(set(seen)) == [0, 1, 2]
    watch.close()
    assert list(watch) == []


def test_a_watch_ends_with_its_store(cenote_servers: TestServers) -> None:
    store = cenote.blocking.open(**cenote_servers.fresh())
    watch, ended = store.watch(), threading.Event()

    def follow() -> None:
        list(watch)
        ended.set()

    threading.Thread(target=follow, daemon=True).start()
    store.agent("a").put("k", 1)
    store.close()
    assert ended.wait(10)


def test_a_change_function_must_not_call_the_store(store: blocking.Store) -> None:
    scout = store.agent("scout")
    with pytest.raises(cenote.RejectedError, match="must not call the store"):
        scout.update("k", lambda _: scout.get("other"), default=None)
    assert scout.get("k", "untouched") == "untouched"


def test_a_closed_store_says_so_and_closing_is_fine_from_anywhere(cenote_servers: TestServers) -> None:
    store = cenote.blocking.open(**cenote_servers.fresh())
    scout = store.agent("scout")
    scout.put("k", 1)
    closers = [threading.Thread(target=store.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(20)
    assert not any(closer.is_alive() for closer in closers)
    store.close()
    with pytest.raises(cenote.SetupError, match="closed"):
        scout.get("k")
    with pytest.raises(cenote.SetupError, match="closed"):
        list(scout.keys())


def test_opening_fails_with_the_error_of_opening_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(cenote.UnavailableError):
        cenote.blocking.open(kv="nats://127.0.0.1:1", sql="postgresql://127.0.0.1:1/x")
    with pytest.raises(cenote.SetupError):
        cenote.blocking.open(flush__nonsense=1)
    assert threading.active_count() == before


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # that is the point
def test_a_forked_child_is_told(store: blocking.Store) -> None:
    scout = store.agent("scout")
    scout.put("k", 1)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        verdict = b"no error"
        try:
            scout.get("k")
        except cenote.SetupError:
            verdict = b"told"
        store.close()
        os.write(writer, verdict)
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"told"
    os.close(reader)
    os.close(writer)
    assert scout.get("k") == 1


def _until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
