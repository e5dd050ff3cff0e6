"""Messages: what the verbs promise, on real servers."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

import cenote
from cenote import limits
from cenote.model.uuid7 import uuid7
from cenote.store import Store
from cenote.testing import TestServers
from witness import another, reached

HOSTILE = ["'; DROP TABLE messages.log; --", "a\x00b", "\ud800", "\x1a0000", "% _ \\ {messages} $1", "水" * 200]


async def everything(store: Store, **which: Any) -> list[cenote.Message]:
    """All pages of a list, one after another."""
    found, cursor = [], None
    while True:
        page = await store.messages.read(**which, cursor=cursor)
        found += page.items
        cursor = page.next
        if cursor is None:
            return found


def at(moment: datetime) -> UUID:
    """An id made by a clock that shows this."""
    ms = int(moment.timestamp() * 1000)
    return UUID(int=(ms << 80) | (uuid7().int & ((1 << 80) - 1)))


# --- sending and reading ------------------------------------------------------------------------------------


async def test_what_comes_back_is_what_was_sent(cenote_store: Store) -> None:
    messages = cenote_store.messages
    body = {"at": datetime(2026, 1, 2, tzinfo=UTC), "set": {1, 2}, "bytes": b"\0", "big": 10**30, "float": 1e300}
    first = await messages.send(body, sender="scout-7", to="base", conversation="dive", metadata={"lang": "en"})
    answer = await messages.send(None, sender=uuid4(), to=uuid4(), reply_to=first.id)
    for sent in (first, answer):
        assert await messages.get(sent.id) == sent
        assert sent.sent_at is not None
    assert (first.body, first.metadata, first.conversation) == (body, {"lang": "en"}, "dive")
    assert (answer.body, answer.metadata, answer.conversation, answer.reply_to) == (None, {}, None, first.id)
    assert first.sent_at < answer.sent_at  # type: ignore[operator]  # neither is None: see above


async def test_two_recipients_are_apart_and_pages_go_both_ways(cenote_store: Store) -> None:
    messages = cenote_store.messages
    sent = await messages.send_many(
        [{"body": n, "sender": f"s{n % 2}", "to": f"r{n % 3}", "conversation": f"c{n % 5}"} for n in range(60)]
    )
    assert [one.body for one in sent] == list(range(60))
    for which, fits in (
        ({}, lambda n: True),
        ({"to": "r1"}, lambda n: n % 3 == 1),
        ({"sender": "s0"}, lambda n: n % 2 == 0),
        ({"conversation": "c4"}, lambda n: n % 5 == 4),
        ({"conversation": "c4", "to": "r1", "sender": "s1"}, lambda n: (n % 5, n % 3, n % 2) == (4, 1, 1)),
        ({"to": "nobody"}, lambda n: False),
    ):
        wanted = [n for n in range(60) if fits(n)]
        for limit in (1, 7, 1000):
            assert [one.body for one in await everything(cenote_store, **which, limit=limit)] == wanted
            back = await everything(cenote_store, **which, limit=limit, newest_first=True)
            assert [one.body for one in back] == wanted[::-1]


async def test_a_reader_goes_on_after_a_message(cenote_store: Store) -> None:
    messages = cenote_store.messages
    sent = await messages.send_many([{"body": n, "sender": "a", "to": "b"} for n in range(5)])
    later = await messages.read(to="b", cursor=sent[2].position)
    earlier = await messages.read(to="b", cursor=sent[2].position, newest_first=True)
    assert ([one.body for one in later], [one.body for one in earlier]) == ([3, 4], [1, 0])


@pytest.mark.judge
async def test_a_page_of_large_bodies_ends_early_and_misses_none(cenote_store: Store) -> None:
    messages = cenote_store.messages
    for n in range(12):
        await messages.send(f"{n:02}" + "x" * 900_000, sender="a", to="b")
    page = await messages.read(to="b")
    assert 8 <= len(page) <= 10
    assert page.next is not None
    assert [one.body[:2] for one in await everything(cenote_store, to="b")] == [f"{n:02}" for n in range(12)]


async def test_a_forged_or_foreign_cursor_is_told_like_an_absent_page(
    cenote_store: Store, cenote_servers: TestServers
) -> None:
    messages = cenote_store.messages
    sent = await messages.send_many([{"body": n, "sender": "a", "to": "b"} for n in range(3)])
    page = await messages.read(to="b", limit=1)
    assert page.next is not None
    async with cenote.open(**cenote_servers.fresh()) as stranger:
        theirs = await stranger.messages.send(1, sender="a", to="b")
    wrong: list[dict[str, Any]] = [
        {"to": "b", "cursor": "AAAA"},
        {"to": "b", "cursor": page.next[:-2] + "AA"},
        {"to": "b", "cursor": theirs.position},
        {"to": "c", "cursor": page.next},
        {"to": "b", "cursor": page.next, "newest_first": True},
        {"cursor": page.next},
    ]
    told = set()
    for given in wrong:
        with pytest.raises(cenote.NotFoundError) as caught:
            await messages.read(**given)
        told.add(str(caught.value))
    with pytest.raises(cenote.NotFoundError) as caught:
        await messages.search("x", cursor=page.next)
    assert told == {str(caught.value)}
    with pytest.raises(cenote.NotFoundError):
        await anext(aiter(messages.subscribe(to="b", since=page.next)))
    assert len(await messages.read(to="b", cursor=sent[0].position)) == 2


# --- once ---------------------------------------------------------------------------------------------------


async def test_a_message_sent_again_under_its_id_is_the_same(cenote_store: Store) -> None:
    messages, known = cenote_store.messages, uuid7()
    given: Any = {"sender": "a", "to": "b", "conversation": "c", "message_id": known, "metadata": {"k": [1]}}
    first = await messages.send({"n": 1, "m": 2}, **given)
    assert await messages.send({"m": 2, "n": 1}, **given) == first
    assert await asyncio.gather(*(messages.send({"n": 1, "m": 2}, **given) for _ in range(10))) == [first] * 10
    both = await messages.send_many([{"body": "new", "sender": "a", "to": "b"}, {"body": {"n": 1, "m": 2}, **given}])
    assert both[1] == first
    assert [one.body for one in await everything(cenote_store, to="b")] == [{"n": 1, "m": 2}, "new"]


async def test_another_message_under_a_known_id_is_refused(cenote_store: Store) -> None:
    messages = cenote_store.messages
    given: Any = {"body": 1, "sender": "a", "to": "b", "message_id": uuid7()}
    first = await messages.send(**given)
    for other in ({"body": 2}, {"body": True}, {"to": "z"}, {"sender": "z"}, {"metadata": {"a": 1}}):
        with pytest.raises(cenote.AlreadyExistsError, match="another message has it"):
            await messages.send(**(given | other))
    assert (await messages.read()).items == [first]


async def test_the_clock_of_a_sender_decides_nothing(cenote_store: Store) -> None:
    """Ids a day ahead and a day behind: order and place are those of arrival, and ids are told apart as ever."""
    messages, now = cenote_store.messages, datetime.now(UTC)
    ids = [at(now + timedelta(days=days)) for days in (1, -1, 0, 400, -400)]
    for n, known in enumerate(ids):
        await messages.send(n, sender="a", to="b", message_id=known)
    for n, known in enumerate(ids):
        again = await messages.send(n, sender="a", to="b", message_id=known)
        assert again.sent_at is not None
        assert abs(again.sent_at - now) < timedelta(hours=1)
    assert [one.id for one in await everything(cenote_store, to="b")] == ids


@pytest.mark.judge
async def test_many_senders_of_one_process_share_statements(cenote_store: Store) -> None:
    """500 at once are done in few commits; each gets its own answer, and a refused one does not take others along."""
    messages, taken = cenote_store.messages, uuid7()
    await messages.send("taken", sender="a", to="b", message_id=taken)
    before = await cenote_store._core.db.fetchval("SELECT pg_current_xact_id()::text::bigint")
    wrong = messages.send("other", sender="a", to="b", message_id=taken)
    right = [messages.send(n, sender="a", to="c") for n in range(500)]
    outcome, *sent = await asyncio.gather(wrong, *right, return_exceptions=True)
    used = await cenote_store._core.db.fetchval("SELECT pg_current_xact_id()::text::bigint") - before
    assert isinstance(outcome, cenote.AlreadyExistsError)
    assert [one.body for one in sent if isinstance(one, cenote.Message)] == list(range(500))
    assert used < 250  # other rooms of the server use some, too
    assert [one.body for one in await everything(cenote_store, to="c")] == list(range(500))


@pytest.mark.judge
async def test_a_process_that_sends_faster_than_postgresql_takes_is_told(
    cenote_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MESSAGES_WAITING_BYTES_MAX", 10_000)
    messages = cenote_store.messages
    outcomes = await asyncio.gather(
        *(messages.send("x" * 1000, sender="a", to="b") for _ in range(50)), return_exceptions=True
    )
    refused = [one for one in outcomes if isinstance(one, cenote.BackpressureError)]
    assert 0 < len(refused) < 50
    assert len(await everything(cenote_store)) == 50 - len(refused)
    await messages.send("there is room again", sender="a", to="b")


# --- transactions -------------------------------------------------------------------------------------------


async def test_a_message_of_a_transaction_is_there_with_its_commit(cenote_store: Store) -> None:
    messages = cenote_store.messages
    heard: list[Any] = []

    async def listen() -> None:
        async for one in messages.subscribe(to="b"):
            heard.append(one.body)

    listener = asyncio.create_task(listen())
    within, go_on = asyncio.Event(), asyncio.Event()

    async def work(tx: Any) -> cenote.Message:
        sent = await messages.send("within", sender="a", to="b", tx=tx)
        within.set()
        await go_on.wait()
        return sent

    await messages.send("first", sender="a", to="b")
    await reached(lambda: _nudged(cenote_store, heard), "the subscriber")
    running = asyncio.create_task(cenote_store.transact(work))
    await within.wait()
    await messages.send("beside", sender="a", to="b")  # nobody waits for a transaction that has still to do
    assert "within" not in [one.body for one in await everything(cenote_store)]
    go_on.set()
    sent = await running
    assert sent.position is None
    stored = await messages.get(sent.id)
    assert stored.position is not None
    await reached(lambda: heard[-2:] == ["beside", "within"], "the message of the transaction")
    listener.cancel()


async def _nudged(store: Store, heard: list[Any]) -> bool:
    await store.messages.send("nudge", sender="a", to="b")
    return bool(heard)


async def test_a_transaction_that_fails_sends_nothing(cenote_store: Store) -> None:
    messages = cenote_store.messages
    first = await messages.send(1, sender="a", to="b")

    async def raises(tx: Any) -> None:
        await messages.send(2, sender="a", to="b", tx=tx)
        raise ValueError("its own")

    async def another_body(tx: Any) -> None:
        await messages.send(3, sender="a", to="b", tx=tx)
        await messages.send(4, sender="a", to="b", message_id=first.id, tx=tx)

    async def the_same(tx: Any) -> None:
        await messages.send(1, sender="a", to="b", message_id=first.id, tx=tx)

    with pytest.raises(ValueError, match="its own"):
        await cenote_store.transact(raises)
    with pytest.raises(cenote.AlreadyExistsError):
        await cenote_store.transact(another_body)
    await cenote_store.transact(the_same)
    assert [one.body for one in await everything(cenote_store)] == [1]


# --- what is refused ----------------------------------------------------------------------------------------


async def test_hostile_text_is_text(cenote_store: Store) -> None:
    messages = cenote_store.messages
    for text in HOSTILE:
        sent = await messages.send({text: text}, sender=text, to=text, conversation=text, metadata={text: text})
        for field in ("sender", "to", "conversation"):
            assert (await messages.read(**{field: text})).items == [sent]  # type: ignore[arg-type]  # mypy joins them
        assert (await messages.search(text)).next is None
        assert await anext(aiter(messages.subscribe(to=text, since=0))) == sent
        assert await messages.forget(text) == 1


NOT_SENT: list[tuple[dict[str, Any], str]] = [
    ({"body": "x" * limits.MESSAGE_BYTES_MAX}, "body: 1048578 bytes encoded; the limit is 1048576"),
    ({"body": {"deep": [float("nan")]}}, "body: "),
    ({"body": object()}, "body: "),
    ({"metadata": {"k": "x" * limits.MESSAGE_METADATA_BYTES_MAX}}, "metadata: 65544 bytes encoded; the limit is 65536"),
    ({"metadata": [1]}, "metadata: a mapping is needed, not list"),
    ({"metadata": {1: 1}}, "metadata: "),
    ({"sender": ""}, "sender: 0 characters; 1 to 200"),
    ({"to": "x" * 201}, "to: 201 characters; 1 to 200"),
    ({"to": None}, "to: a str or a UUID is needed, not NoneType"),
    ({"conversation": 7}, "conversation: a str or a UUID is needed, not int"),
    ({"message_id": "7"}, "message_id: a UUID is needed, not str"),
    ({"reply_to": 7}, "reply_to: a UUID is needed, not int"),
]


async def test_what_cannot_be_sent_is_told_with_its_field(cenote_store: Store) -> None:
    messages, good = cenote_store.messages, {"body": 1, "sender": "a", "to": "b"}
    for given, told in NOT_SENT:
        with pytest.raises(cenote.RejectedError, match=told):
            await messages.send(**(good | given))  # type: ignore[arg-type]  # that is the point
        with pytest.raises(cenote.RejectedError, match=r"messages\[1\]\." + told):
            await messages.send_many([good, good | given])  # type: ignore[list-item]  # that is the point
    assert await everything(cenote_store) == []


async def test_what_cannot_be_meant_is_refused(cenote_store: Store) -> None:
    messages, one = cenote_store.messages, {"body": 1, "sender": "a", "to": "b"}
    twice: Any = {**one, "message_id": uuid7()}
    calls: list[tuple[Any, str]] = [
        (messages.send_many([one] * 1001), "messages: 1001 of them; up to 1000"),
        (messages.send_many([one | {"body": "x" * 1_000_000}] * 9), "bytes; up to 8388608"),
        (messages.send_many([twice, twice]), "two of them have the same message_id"),
        (messages.send_many([{"sender": "a", "to": "b"}]), "body: it is missing"),
        (messages.send_many([one | {"cc": "c"}]), "'cc': a message has no such field"),
        (messages.send_many([7]), "a mapping with the fields of a message is needed, not int"),
        (messages.read(limit=0), "limit"),
        (messages.read(to=7), "to: "),
        (messages.search(""), "text: 0 characters"),
        (messages.search("x" * 1001), "text: 1001 characters"),
        (messages.get("x"), "message_id"),
        (messages.delete(None), "message_id"),
        (anext(aiter(messages.subscribe(since=7))), "since: 7 is no position"),
        (anext(aiter(messages.subscribe(since=False))), "since: False is no position"),
    ]
    for call, told in calls:
        with pytest.raises(cenote.RejectedError, match=told):
            await call
    with pytest.raises(cenote.NotFoundError, match="there is no such message"):
        await messages.get(uuid4())
    assert await messages.send_many([]) == []


# --- searching and removing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("indexed", [False, True], ids=["without an index", "with one"])
async def test_words_are_found_the_newest_first(cenote_servers: TestServers, indexed: bool) -> None:
    async with cenote.open(**cenote_servers.fresh(messages__search_index=indexed)) as store:
        messages = store.messages
        texts = ["the flooded tunnel", "a dry Tunnel", "tunnel vision", "flooded cellar", "nothing", "tunnel flooded"]
        await messages.send_many(
            [{"body": {"says": [text]}, "sender": "a", "to": f"r{n % 2}"} for n, text in enumerate(texts)]
        )
        await messages.send("a\x00flooded\ud800tunnel", sender="a", to="r1")  # exact bytes beside a projection

        async def found(text: str, **which: Any) -> list[str]:
            return [one.body["says"][0] for one in await messages.search(text, **which) if type(one.body) is dict]

        assert await found("tunnel") == [texts[n] for n in (5, 2, 1, 0)]
        assert await found("tunnel -vision flooded") == [texts[5], texts[0]]
        assert await found('"flooded tunnel"') == [texts[0]]
        assert await found("cellar or vision", to="r1") == [texts[3]]
        assert await found("says") == []  # names of fields are no words
        assert await found("!?") == []
        page = await messages.search("tunnel", limit=2)
        assert page.next is not None
        rest = await messages.search("tunnel", limit=1000, cursor=page.next)
        assert len(page) + len(rest) >= 4
        assert rest.next is None


async def test_a_search_without_an_index_reads_the_whole_log(
    cenote_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MESSAGES_SLICE_ROWS", 7)
    await cenote_store.messages.send_many(
        [{"body": f"word{n} {'rare' if n % 25 == 0 else ''}", "sender": "a", "to": "b"} for n in range(100)]
    )
    assert [one.body.split()[0] for one in await cenote_store.messages.search("rare")] == [
        "word75", "word50", "word25", "word0",
    ]  # fmt: skip


async def test_forgotten_is_gone_and_nothing_else(cenote_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESSAGES_FORGET_ROWS", 10)
    messages = cenote_store.messages
    await messages.send_many([{"body": n, "sender": "a", "to": "b", "conversation": f"c{n % 2}"} for n in range(50)])
    assert await messages.forget("c1") == 25
    assert await messages.forget("c1") == 0
    kept = await everything(cenote_store)
    assert [one.body for one in kept] == list(range(0, 50, 2))
    await messages.delete(kept[0].id)
    await messages.delete(kept[0].id)
    assert [one.body for one in await everything(cenote_store)] == list(range(2, 50, 2))


# --- subscribing --------------------------------------------------------------------------------------------


async def test_a_subscriber_hears_what_it_asked_for_in_order(cenote_store: Store) -> None:
    """Two processes send and one listens: woken by NATS, for polling would come too late."""
    heard: dict[str, list[Any]] = {"to": [], "in": [], "all": []}

    async def listen(store: Store, name: str, **which: Any) -> None:
        async for one in store.messages.subscribe(since=0, **which):
            heard[name].append(one.body)

    async with another(cenote_store, messages__poll_ms=60_000) as other, asyncio.timeout(10):
        tasks = [
            asyncio.create_task(listen(other, "to", to="b")),
            asyncio.create_task(listen(other, "in", conversation="c", sender="a")),
            asyncio.create_task(listen(other, "all")),
        ]
        for n in range(40):
            await cenote_store.messages.send(
                n, sender="a", to="b" if n % 2 else "z", conversation="c" if n % 3 else None
            )
        await reached(lambda: len(heard["all"]) == 40, "all messages")
        await reached(lambda: len(heard["to"]) == 20 and len(heard["in"]) == 26, "the others")
        for task in tasks:
            task.cancel()
    assert heard["all"] == list(range(40))
    assert heard["to"] == [n for n in range(40) if n % 2]
    assert heard["in"] == [n for n in range(40) if n % 3]


async def test_a_subscriber_resumes_after_what_it_dealt_with(cenote_store: Store) -> None:
    messages = cenote_store.messages
    await messages.send_many([{"body": n, "sender": "a", "to": "b"} for n in range(10)])
    seen, position = [], None
    for _ in range(5):
        async for one in messages.subscribe(to="b", since=position or 0):
            seen.append(one.body)
            position = one.position
            if len(seen) % 2 == 0:
                break
    assert seen == list(range(10))


async def test_a_closed_store_ends_its_subscribers(cenote_servers: TestServers) -> None:
    async with cenote.open(**cenote_servers.fresh()) as store:
        await store.messages.send(1, sender="a", to="b")
        feed = aiter(store.messages.subscribe(since=0))
        assert (await anext(feed)).body == 1
        waiting = asyncio.ensure_future(anext(feed))
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await waiting
