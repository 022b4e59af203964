"""The batches a run draws, and what is worth knowing about their coming."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import cast

from auricle.data.batching import Batch, Skip
from auricle.errors import TooManySkipsError


class Stream:
    """Endless `batches`, of which those without a readable clip are passed over.

    Counts the batches `taken` (passed over or not), the time `waited_s` for them, and the clips `skipped`. Raises
    `TooManySkipsError` when none of the `clips` can be read.
    """

    def __init__(self, batches: Iterator[Batch], clips: int, taken: int = 0) -> None:
        self.batches, self.clips, self.taken = batches, clips, taken
        self.waited_s = 0.0
        self.skipped: list[Skip] = []

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        unreadable: set[str] = set()
        while True:
            batch = next(self.batches)
            self.taken += 1
            self.skipped += batch.skipped
            if batch.clip_ids:
                self.waited_s += time.perf_counter() - asked
                return batch
            unreadable |= {skip.clip_id for skip in batch.skipped}
            if len(unreadable) >= self.clips:
                last = batch.skipped[-1]
                raise TooManySkipsError(f"none of the {self.clips} clips can be used ({last.path}: {last.reason})")

    def close(self) -> None:
        """Let the readers go."""
        cast(Generator[Batch, None, None], self.batches).close()
