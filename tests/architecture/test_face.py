"""The public face, written down: a name that comes or goes is a decision, and an entry in CHANGELOG.md."""

import cenote

FACE = {
    # what you open and hold
    "open", "blocking", "Store", "AgentState", "Config",
    # what you get back
    "Entry", "Health", "Hydrated", "Receipt", "Stats", "Tier", "Verdict", "Version",
    # what can go wrong
    "AlreadyExistsError", "BackpressureError", "CenoteError", "CodecError", "ConflictError", "ConsistencyError",
    "ExpiredError", "NotDurableError", "NotFoundError", "OutcomeUnknownError", "PartialError", "PoolTimeoutError",
    "RejectedError", "ServerStartError", "SetupError", "UnavailableError",
}  # fmt: skip
NAMES_MAX = 30


def test_the_face_is_what_we_promise() -> None:
    assert set(getattr(cenote, "__all__", ())) == FACE


def test_the_face_is_small_and_real() -> None:
    assert len(FACE) <= NAMES_MAX
    assert not [name for name in FACE if not hasattr(cenote, name)]
    assert not [name for name in FACE if name.startswith("_")]
