"""What a worker tells when it has surveyed a module: messages to those whom it concerns, and facts for everybody.

All of it has ids that are computed from the run and the finding. Whoever tells it again tells nothing twice.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

import cenote
from cenote.demo.journal import Place, digest
from cenote.demo.survey import Module, Step

TASK = "survey"  # the type of all tasks
LEASE_S = 2.0  # so long a dead worker keeps its tasks; in earnest it is half a minute
FACT_CHARS_MAX = 300
MESSAGE, FACT = "message", "fact"


class Telling(NamedTuple):
    """What there is to tell of one module."""

    messages: list[cenote.NewMessage]
    facts: list[cenote.NewFact]

    def parts(self) -> dict[Place, str]:
        """Fingerprints of everything, by kind and id."""
        said = {(MESSAGE, str(one["message_id"])): message_digest(**one) for one in self.messages}
        known = {(FACT, str(one["fact_id"])): fact_digest(**one) for one in self.facts}
        return said | known


def space(run: str) -> str:
    """The conversation, and the namespace of knowledge, of a run."""
    return f"survey/{run}"


def telling(run: str, module: Module, steps: list[Step]) -> Telling:
    """Questions go to the reviewers, the report to the conductor; what is documented is known from now on."""
    return Telling(list(_messages(run, module, steps)), list(_facts(run, module, steps)))


def message_digest(*, sender: str | UUID, to: str | UUID, body: Any, **_: Any) -> str:
    """The fingerprint of a message."""
    return digest([sender, to, body])


def fact_digest(*, text: str, metadata: Any, **_: Any) -> str:
    """The fingerprint of a fact."""
    return digest([text, metadata])


def _messages(run: str, module: Module, steps: list[Step]) -> Iterator[cenote.NewMessage]:
    to = {"questions": "reviewers", "report": "conductor"}
    for number, step in enumerate(steps):
        if step.kind in to:
            yield {
                "sender": module.name, "to": to[step.kind], "conversation": space(run), "body": step.value,
                "message_id": _id(run, MESSAGE, module, number),
            }  # fmt: skip


def _facts(run: str, module: Module, steps: list[Step]) -> Iterator[cenote.NewFact]:
    for number, step in enumerate(steps):
        name, text = module.name, None
        if step.kind == "docs":
            name, text = f"{module.name}.{step.key.partition('/')[2]}", step.value["summary"]
        elif step.kind == "report":
            text = step.value["doc"]
        if text:
            yield {
                "text": f"{name}: {_line(text)}", "metadata": {"module": module.name}, "namespace": space(run),
                "fact_id": _id(run, FACT, module, number),
            }  # fmt: skip


def _id(run: str, kind: str, module: Module, number: int) -> UUID:
    return uuid5(NAMESPACE_URL, f"cenote-demo:{run}:{kind}:{module.name}:{number}")


def _line(text: str) -> str:
    """Its beginning, on one line and readable."""
    words = " ".join(text.split())
    words = "".join(char for char in words if char.isprintable())
    return words if len(words) <= FACT_CHARS_MAX else words[: FACT_CHARS_MAX - 1] + "…"
