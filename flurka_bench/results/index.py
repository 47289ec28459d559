"""Which cases have a record, in memory that does not grow with them."""

import hashlib
from array import array

from flurka_bench.results.records import STATUSES

_STATUS_BITS = 4  # the last bits of an entry: 1 + the status' place, so that no entry is 0


class CaseIndex:
    """case_id -> status as 8-byte entries, 60 bits of a digest and the status, in a table made in
    advance.

    A run of 100,000 cases so takes the 2 MB that it began with, and no name is kept. Beyond two
    thirds of ``num_slots`` the table doubles. Two of 100,000 names share a digest with a chance of
    one in 200 million.
    """

    def __init__(self, num_slots: int = 1 << 18) -> None:
        self._slots, self._num = array("Q", bytes(8 * num_slots)), 0

    def __len__(self) -> int:
        return self._num

    def __contains__(self, case_id: str) -> bool:
        return self.get(case_id) is not None

    def get(self, case_id: str) -> str | None:
        """The status of that case's record, None without one."""
        entry = self._slots[self._find(_digest(case_id))]
        return STATUSES[entry % (1 << _STATUS_BITS) - 1] if entry else None

    def add(self, case_id: str, status: str) -> None:
        """Note that the case has its record."""
        if 3 * (self._num + 1) > 2 * len(self._slots):
            entries, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for entry in filter(None, entries):
                self._slots[self._find(entry >> _STATUS_BITS)] = entry
        place = self._find(digest := _digest(case_id))
        self._num += not self._slots[place]
        self._slots[place] = digest << _STATUS_BITS | STATUSES.index(status) + 1

    def _find(self, digest: int) -> int:
        """The slot that holds the digest, or the free one where it belongs."""
        place = digest % len(self._slots)
        while (entry := self._slots[place]) and entry >> _STATUS_BITS != digest:
            place = (place + 1) % len(self._slots)
        return place


def _digest(case_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(case_id.encode(), digest_size=8).digest()) >> _STATUS_BITS
