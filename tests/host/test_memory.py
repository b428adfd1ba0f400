"""Areas for weights: where they begin and that they are whole."""

from __future__ import annotations

import mmap

import pytest

from tpi_bench.host.memory import anonymous_area

HUGE_PAGE = 2 << 20


@pytest.mark.parametrize("nbytes", [1, 4096, HUGE_PAGE // 2, HUGE_PAGE, HUGE_PAGE + 4096, 5 << 20])
def test_an_area_begins_a_page_and_can_be_written_to_its_end(nbytes: int) -> None:
    area = anonymous_area(nbytes)
    is_large = nbytes >= HUGE_PAGE // 2 and hasattr(mmap, "MADV_HUGEPAGE")
    assert area.nbytes == nbytes
    assert area.ctypes.data % (HUGE_PAGE if is_large else mmap.PAGESIZE) == 0
    area.fill(7)
    assert area[0] == area[-1] == 7
