"""Asking PostgreSQL until it answers: what may be asked again, and what may be done twice."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from cenote.engine.core import Core
from cenote.errors import CenoteError, OutcomeUnknownError, TransactionError, UnavailableError
from cenote.kv.deadline import patient
from cenote.retry import Backoff
from cenote.sql.transaction import Transaction

T = TypeVar("T")


class Asking:
    """Under the section `retry` of the configuration."""

    def __init__(self, core: Core) -> None:
        self._config = core.config.retry

    async def again(self, ask: Callable[[], Awaitable[T]], tx: Transaction | None = None) -> T:
        """The answer to a question that may be asked again; within a transaction it may not."""
        if tx is not None:
            return await ask()
        backoff = Backoff(patient(self._config), self._config.deadline_ms)
        while True:
            try:
                return await ask()
            except (UnavailableError, TransactionError) as error:
                await backoff.pause(error)

    async def surely(self, do: Callable[[float], Awaitable[T]]) -> T:
        """Do what may be done twice, until an answer comes; a doubt that remains is told."""
        backoff = Backoff(patient(self._config), self._config.deadline_ms)
        doubt: OutcomeUnknownError | None = None
        while True:
            failure: CenoteError
            try:
                return await do(backoff.left_ms)
            except OutcomeUnknownError as error:
                failure = doubt = error
            except (UnavailableError, TransactionError) as error:
                failure = error
            try:
                await backoff.pause(failure)
            except CenoteError as error:
                if doubt is None or doubt is error:
                    raise
                raise doubt from error
