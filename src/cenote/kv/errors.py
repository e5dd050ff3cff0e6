"""What can go wrong between this process and JetStream, told apart by what may be done next (flow rule 16).

`NotSent`, `NoResponders` and a `JsError` prove that nothing was accepted: the same bytes may be sent again.
`AnswerLost` proves nothing: read at the leader before writing again.
"""

from cenote.errors import (
    BackpressureError,
    CenoteError,
    ConflictError,
    OutcomeUnknownError,
    UnavailableError,
)


class NotSent(UnavailableError):
    """There is no connection, or its write buffer is full: not a byte left this process."""


class NoResponders(UnavailableError):
    """The server found nobody to serve the request (503), as during the election of a stream leader."""


class AnswerLost(OutcomeUnknownError):
    """The request left this process; its answer did not come in time or the connection broke."""


class JsError(CenoteError):
    """JetStream's own refusal; the request had no effect.

    Attributes:
        status: JetStream's HTTP-like `code`.
        err_code: the server's error number, by which errors are told apart.
        description: the server's words.
    """

    def __init__(self, status: int, err_code: int, description: str) -> None:
        super().__init__(f"JetStream refused: {description} ({status}, error {err_code})")
        self.status = status
        self.err_code = err_code
        self.description = description

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.status, self.err_code, self.description), self.__dict__


class WrongSequence(JsError, ConflictError):
    """The expected last sequence of the subject is another one."""


class StreamFull(JsError, BackpressureError):
    """`max_bytes` of the stream is reached; no unflushed entry is dropped to make room."""


class JsUnavailable(JsError, UnavailableError):
    """JetStream cannot serve now (election, offline stream); nothing was accepted."""


class NoSpace(JsError, BackpressureError):
    """The server or the account has no room for more; nothing was stored."""


class NoBatches(JsError):
    """The stream takes no atomic batches."""


class TooManyResults(JsError):
    """The read matches more entries than the server gives in one answer (1,024)."""


class JsNotFound(JsError):
    """No such stream, consumer or message."""


NO_PEERS = 10005
"""Too few servers of the cluster are known to be up, as in the first second after an election."""

_KINDS: dict[int, type[JsError]] = {
    NO_PEERS: JsUnavailable,
    10071: WrongSequence,
    10164: WrongSequence,  # the same refusal, when the expectation cannot be met by any sequence
    10002: NoSpace,  # resource limits exceeded for the account
    10023: NoSpace,  # insufficient resources
    10028: NoSpace,  # insufficient memory resources
    10047: NoSpace,  # insufficient storage resources
    10174: NoBatches,
    10176: JsUnavailable,  # members of a batch are missing: the server gave it up, as after a change of leader
    10210: JsUnavailable,  # 50 batches are open on this stream
    10014: JsNotFound,  # consumer
    10037: JsNotFound,  # message
    10059: JsNotFound,  # stream
}


def js_error(status: int, err_code: int, description: str) -> JsError:
    """The typed error for JetStream's answer `{"error": {"code": …, "err_code": …, "description": …}}`."""
    kind = _KINDS.get(err_code)
    if err_code == 10077:  # the store refused; only the words tell a full stream from a full disk
        kind = StreamFull if "maximum" in description else NoSpace
    if kind is None:
        kind = JsUnavailable if status == 503 else JsError
    return kind(status, err_code, description)
