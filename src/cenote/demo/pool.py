"""The store that all processes of the demo share."""

from typing import Any

import cenote
from cenote.store import Opening

NAMESPACE = "demo"
IDLE_S = 2.0  # the least that there is; in earnest it is half an hour


def open_store(data_dir: str, *, embedder: str | None = None, **overrides: Any) -> Opening:
    """Embedded servers under `data_dir`, whatever servers the environment names: the demo kills them."""
    return cenote.open(
        data_dir=data_dir, namespace=NAMESPACE, kv__url=None, sql__url=None, state__ttl_s=IDLE_S,
        knowledge__embedder=embedder, **overrides,
    )  # fmt: skip
