"""The parent's end of the other process (`hand.py`)."""

import asyncio
import json
import sys
from types import TracebackType
from typing import Any, Self

_PATIENCE_S = 240.0


class Worker:
    """One such process."""

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cenote.bench.hand", stdin=pipe, stdout=pipe
        )
        return self

    async def ask(self, order: str, **details: Any) -> Any:
        """Its answer to one order."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"order": order, **details}).encode() + b"\n")
        async with asyncio.timeout(_PATIENCE_S):
            line = await stdout.readline()
        assert line, f"the process that was told to {order} has ended"
        return json.loads(line)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
