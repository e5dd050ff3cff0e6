"""Documents under random changes: their merge is a join, and nothing of anybody's is lost or doubled."""

from collections import Counter
from random import Random

from histories import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import cenote
from cenote.model import value as values
from cenote.testing import check_merging_laws

RANDOMS = st.randoms(use_true_random=False)


def change(one: cenote.Document, random: Random, letter: str) -> None:
    """One edit of each kind, and `letter` once into the text, from which nothing is ever deleted."""
    text, items, names = one.doc.get_text("t"), one.doc.get_list("l"), one.doc.get_map("m")
    text.insert(random.randint(0, len(text.to_string())), letter)
    if len(items) and random.random() < 0.4:
        items.delete(random.randrange(len(items)), 1)
    else:
        items.insert(random.randint(0, len(items)), random.choice([1, "a", None, {"b": [True]}]))
    if random.random() < 0.3:
        one.doc.get_tree("tree").create()
    names.insert(random.choice("xy"), random.randrange(9))


def history(random: Random) -> list[cenote.Document]:
    """Three states that come of one another by copies, merges, writes that were won, and writes that were lost."""
    states = [cenote.Document()]
    for i in range(random.randint(2, 8)):
        one = random.choice(states).copy()
        change(one, random, chr(0x4E00 + i))
        if random.random() < 0.7:
            current = random.choice([None, *states])
            settled = one.settle(current, "p")
            states.append(values.decode(*values.encode(settled)))
            if random.random() < 0.5:
                one.adopt(settled)
        states.append(one)
        if random.random() < 0.3:
            states.append(random.choice(states).merge(random.choice(states)))
    return [random.choice(states) for _ in range(3)]


def test_its_merge_is_a_join() -> None:
    with examples(40):
        check_merging_laws(cenote.Document, RANDOMS.map(history))


@settings(max_examples=40)
@given(RANDOMS)
def test_every_change_is_there_once(random: Random) -> None:
    states = history(random)
    joined = states[0].merge(states[1]).merge(states[2])
    letters = Counter(joined.value.get("t", ""))
    assert set(letters.values()) <= {1}
    assert set(letters) == set().union(*(state.value.get("t", "") for state in states))
