"""Letters on their way from the outbox to the broker: side by side, but those of one key one after the other."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from cohortium_kit.bus import Outgoing
from cohortium_kit.errors import BrokerUnavailable, BusError


@dataclass(frozen=True, slots=True)
class Letter:
    """A committed message. `id`: its row in the outbox."""

    id: int
    ordering_key: str
    outgoing: Outgoing

    @property
    def lane(self) -> str:
        """What must go one after the other: a key's letters, or a letter without a key by itself."""
        return f"key:{self.ordering_key}" if self.ordering_key else f"row:{self.id}"


class Lanes:
    """Letters in hand. Each lane is a task while it has some.

    A lane whose letter is refused drops what it has, and tells `refused`; when the broker is away all lanes do. What is
    dropped is not lost: the outbox has it.
    """

    def __init__(
        self,
        publish: Callable[[Letter], Awaitable[None]],
        refused: Callable[[Letter, Exception], None],
        window: int,
    ) -> None:
        self._publish = publish
        self._refused = refused
        self._window = asyncio.Semaphore(window)
        self._queues: dict[str, deque[Letter]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.in_hand: set[int] = set()
        """Ids of letters that were taken: waiting, sent, or confirmed and not `forget`-ed yet."""
        self.confirmed: list[int] = []
        self.away: BrokerUnavailable | None = None
        self._failure: BaseException | None = None

    def take(self, letters: Iterable[Letter]) -> None:
        """Send these, behind those of the same lanes. One that is in hand already is not taken twice."""
        for letter in letters:
            if letter.id in self.in_hand:
                continue
            self.in_hand.add(letter.id)
            queue = self._queues.get(letter.lane)
            if queue is not None:
                queue.append(letter)
                continue
            self._queues[letter.lane] = deque([letter])
            # Of a context of its own: what the handler that committed was about does not stick to later letters.
            carrying = self._carry(letter.lane)
            task = asyncio.create_task(carrying, name=f"outbox:{letter.lane}", context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._over)

    async def settled(self) -> None:
        """Return when every letter in hand is confirmed or dropped; raises what no rule covers."""
        while self._tasks:
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)  # the tasks' callbacks have their turn
        self.check()

    def check(self) -> None:
        """Raise the error that no rule covers, if a lane met one: it must end the service, loudly."""
        if self._failure is not None:
            raise self._failure

    def forget(self, ids: Iterable[int]) -> None:
        """These are marked as sent: the outbox will not offer them again."""
        done = set(ids)
        self.in_hand -= done
        self.confirmed = [one for one in self.confirmed if one not in done]

    async def close(self) -> None:
        """Let go of everything."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, lane: str) -> None:
        queue = self._queues[lane]
        try:
            while queue and await self._send(queue[0]):
                self.confirmed.append(queue.popleft().id)
        finally:
            self.in_hand.difference_update(letter.id for letter in queue)
            del self._queues[lane]

    async def _send(self, letter: Letter) -> bool:
        async with self._window:
            if self.away is not None:
                return False
            try:
                await self._publish(letter)
            except BrokerUnavailable as error:
                self.away = error
                return False
            except (BusError, TypeError) as error:
                self._refused(letter, error)
                return False
        return True

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
