"""The feed of what is written: each stored entry once more as a core message, at most once.

Core messages can be lost (slow reader, reconnect). A listener finds a gap of one key by its last sequence,
and the loss of the newest entries by asking the leader for the stream's last sequence (rule 10).
"""

from collections.abc import Callable

from cenote.kv.link import Link
from cenote.kv.message import republished_sequence
from cenote.naming import AGENT_STATE, Names

OnEntry = Callable[[str, int, bytes, bytes], None]
"""Takes subject, sequence, header and payload; whoever wants more has `message.republished` read it in the header."""


class Feed:
    """Entries of AGENT_STATE as they are stored, while connected.

    subset: agent and key tokens with wildcards, ">" for all.
    """

    def __init__(self, link: Link, names: Names, on_entry: OnEntry, *, subset: str = ">") -> None:
        self._on_entry = on_entry
        self._prefix = names.subject(AGENT_STATE)
        self._at = len(names.republished(AGENT_STATE))
        self._subscription = link.subscribe(names.republished(AGENT_STATE) + subset, self._on_frame)

    def close(self) -> None:
        """No entry is handed over after this."""
        self._subscription.close()

    def _on_frame(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        name = self._prefix + subject[self._at :].decode("ascii")
        self._on_entry(name, republished_sequence(header), header, payload)
