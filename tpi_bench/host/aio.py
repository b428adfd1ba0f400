"""Asynchronous direct reads by the Linux kernel (native AIO), without a thread.

Reader threads take the interpreter lock for every piece, which a device on a slow core pays for in
the middle of its computing; here a read costs one system call to start and one to notice. Used by
`disk.py`, which falls back to threads where the kernel does not offer it. See io_submit(2) and
io_getevents(2); the layout of a request is `struct iocb` of linux/aio_abi.h.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import platform
import struct
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# With 2 MB each a disk is as fast as it gets, and its queue outlasts the computing of a block.
_DEPTH = 8
# A disk serves all requests at once. So a block that is waited for would end together with those
# read ahead, and the disk would idle while it is computed: behind the oldest block in flight others
# begin only when so little of it is left, and no more than a quarter; none while somebody waits.
# A reader of small blocks that began beside each other, and computed between them, took up to a
# quarter longer.
_LEFT_BYTES = 4 << 20
_LEFT_SHARE = 4
# io_setup, io_destroy, io_getevents, io_submit
_SYSTEM_CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
# data, key, rw_flags, opcode (0 reads), priority, file, buffer, bytes, offset, reserved, flags,
# eventfd
_REQUEST = struct.Struct("<QIIHhIQQqQII")
_EVENT = struct.Struct("<QQqq")  # data, request, result, second result


@dataclass(frozen=True)
class ReadRequest:
    """`nbytes` at `offset` of an O_DIRECT file to `address`; all three are multiples of a sector.

    `done` gets the number of bytes read, or minus the error number. Requests of one `block` are
    wanted together, `block_bytes` in all.
    """

    file: int
    address: int
    nbytes: int
    offset: int
    done: Callable[[int], None]
    block: object = None
    block_bytes: int = 0


class KernelAio:
    """Reads in flight, a few at once, the rest queued here in order. Used by one thread."""

    def __init__(self) -> None:
        """Raises OSError where the kernel has no native AIO or refuses it."""
        numbers = _SYSTEM_CALLS.get(platform.machine())
        if sys.platform != "linux" or numbers is None or sys.byteorder != "little":
            raise OSError(errno.ENOSYS, "no native AIO on this platform")
        self._setup, self._destroy, self._getevents, self._submit = numbers
        self._syscall = ctypes.CDLL(None, use_errno=True)["syscall"]
        self._syscall.restype = ctypes.c_long
        self._syscall.argtypes = [ctypes.c_long] * 6
        self._requests = ctypes.create_string_buffer(_REQUEST.size * _DEPTH)
        self._events = ctypes.create_string_buffer(_EVENT.size * _DEPTH)
        self._pointers = (ctypes.c_uint64 * _DEPTH)()
        self._free = list(range(_DEPTH))
        self._flying: dict[int, ReadRequest] = {}
        self._queue: deque[ReadRequest] = deque()
        context = ctypes.c_ulong(0)
        self._call(self._setup, _DEPTH, ctypes.addressof(context))
        self._context = context.value

    def start(self, requests: list[ReadRequest], first: bool = False) -> None:
        """Start the reads in order, as far as there is room; `notice` starts the others.

        With `first` they come before those that are queued.
        """
        if first:
            self._queue.extendleft(reversed(requests))
        else:
            self._queue.extend(requests)
        self.notice(wait=False)
        self._fill(self._left_bytes(), len(requests) if first else 0)

    def notice(self, wait: bool) -> None:
        """Call `done` of reads that ended; with `wait`, sleep until at least one has."""
        if not self._flying:
            return
        count = self._call(
            self._getevents,
            self._context,
            1 if wait else 0,
            _DEPTH,
            ctypes.addressof(self._events),
        )
        for index in range(count):
            slot, _, result, _ = _EVENT.unpack_from(self._events, index * _EVENT.size)
            self._free.append(slot)
            self._flying.pop(slot).done(result)
        if count:
            self._fill(0 if wait else self._left_bytes())

    def run_ahead(self) -> None:
        """Start what there is room for: nobody waits, or will look here for a while."""
        self._fill(math.inf)

    @property
    def is_idle(self) -> bool:
        return not self._flying

    def close(self) -> None:
        """Wait for what is in flight, so that no read outlives its buffer."""
        self._queue.clear()
        while self._flying:
            self.notice(wait=True)
        self._call(self._destroy, self._context)

    def _fill(self, left_bytes: float, num_first: int = 0) -> None:
        """Start reads of the oldest block in flight, and of others beside `left_bytes` of it; the
        first `num_first` in any case.
        """
        slots: list[int] = []
        while self._queue and self._free:
            if len(slots) >= num_first and not self._may_start(self._queue[0], left_bytes):
                break
            request, slot = self._queue.popleft(), self._free.pop()
            place = slot * _REQUEST.size
            target = (request.file, request.address, request.nbytes, request.offset)
            _REQUEST.pack_into(self._requests, place, slot, 0, 0, 0, 0, *target, 0, 0, 0)
            self._pointers[len(slots)] = ctypes.addressof(self._requests) + place
            self._flying[slot] = request
            slots.append(slot)
        started = 0
        while started < len(slots):
            first = ctypes.addressof(self._pointers) + 8 * started
            started += self._call(self._submit, self._context, len(slots) - started, first)

    def _left_bytes(self) -> int:
        """Of the oldest block in flight, beside which others may begin."""
        oldest = next(iter(self._flying.values()), None)
        return min(_LEFT_BYTES, oldest.block_bytes // _LEFT_SHARE) if oldest else 0

    def _may_start(self, request: ReadRequest, left_bytes: float) -> bool:
        oldest = next(iter(self._flying.values()), request)
        flying = self._flying.values()
        return request.block is oldest.block or sum(each.nbytes for each in flying) <= left_bytes

    def _call(self, number: int, *arguments: int) -> int:
        while True:
            result = self._syscall(number, *arguments, *(0,) * (5 - len(arguments)))
            if result >= 0:
                return result
            code = ctypes.get_errno()
            if code not in (errno.EINTR, errno.EAGAIN):
                raise OSError(code, os.strerror(code))
