"""Areas for weights: where they begin and that they are whole. Memory that is kept when freed."""

from __future__ import annotations

import ctypes
import mmap
import resource

import pytest
import torch

from tpi_bench.host import memory
from tpi_bench.host.fork import in_helper
from tpi_bench.host.memory import anonymous_area, keep_freed_memory

HUGE_PAGE = 2 << 20


@pytest.mark.parametrize("nbytes", [1, 4096, HUGE_PAGE // 2, HUGE_PAGE, HUGE_PAGE + 4096, 5 << 20])
def test_an_area_begins_a_page_and_can_be_written_to_its_end(nbytes: int) -> None:
    area = anonymous_area(nbytes)
    is_large = nbytes >= HUGE_PAGE // 2 and hasattr(mmap, "MADV_HUGEPAGE")
    assert area.nbytes == nbytes
    assert area.ctypes.data % (HUGE_PAGE if is_large else mmap.PAGESIZE) == 0
    area.fill(7)
    assert area[0] == area[-1] == 7


NUM_LAYERS, NUM_AT_ONCE, NUM_VALUES = 10, 4, 3 << 20


def faults_of_activations(keeps: bool) -> int:
    """Pages made for a few large tensors at once, again in each layer; -1 where none are kept."""
    if not keep_freed_memory():
        return -1
    if not keeps:  # as glibc begins, and changes later in one process more than in another
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(memory._M_TRIM_THRESHOLD, 128 << 10)
        mallopt(memory._M_MMAP_THRESHOLD, 128 << 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(NUM_LAYERS):
        activations = [torch.ones(NUM_VALUES) for _ in range(NUM_AT_ONCE)]
        del activations
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_what_is_freed_is_used_again() -> None:
    """All but the first layer's, give or take two: what lies in between moves their places."""
    pages_of_layer = NUM_AT_ONCE * NUM_VALUES * 4 / mmap.PAGESIZE
    found = in_helper(faults_of_activations, True)
    if found < 0:
        pytest.skip("this C library gives freed memory back as it likes")
    assert found < 3 * pages_of_layer
    assert in_helper(faults_of_activations, False) > 0.9 * NUM_LAYERS * pages_of_layer
