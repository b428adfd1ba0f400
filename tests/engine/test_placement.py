"""Where streamed blocks lie: those held together never overlap, and nothing is read too soon."""

from __future__ import annotations

import itertools

import pytest

from tpi_bench.engine.placement import fullest_bytes, pieces_of, place_at_ends, place_blocks

SIZES = [[90, 3, 5, 3, 5, 3, 5, 90], [3, 5, 3, 5, 3, 5], [4, 9, 2, 7, 1], [8, 8], [6]]


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("sizes", SIZES[:3])
def test_blocks_held_together_never_overlap(sizes: list[int], window: int) -> None:
    offsets, total = place_blocks(sizes, window, alignment=1)
    count = len(sizes)
    for first in range(count):
        held = [(first + i) % count for i in range(min(window, count))]
        spans = sorted((offsets[i], offsets[i] + sizes[i]) for i in held)
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))
        assert spans[-1][1] <= total


def test_window_memory_follows_proposition_5() -> None:
    attn, ffn, embedding = 3, 5, 90
    master = [embedding, *[attn, ffn] * 6, embedding]
    worker = [attn, ffn] * 6
    assert place_blocks(master, 1, alignment=1)[1] == embedding
    assert place_blocks(master, 2, alignment=1)[1] == 2 * embedding
    assert place_blocks(master, 4, alignment=1)[1] == 2 * embedding + attn + ffn
    assert place_blocks(worker, 2, alignment=1)[1] == attn + ffn
    assert place_blocks(worker, 4, alignment=1)[1] == 2 * (attn + ffn)


@pytest.mark.parametrize("num_layers", [11, 22, 26, 32, 80])
@pytest.mark.parametrize("ends", [[], [90]], ids=["worker", "master"])
def test_a_window_takes_little_more_than_its_fullest_moment(
    num_layers: int, ends: list[int]
) -> None:
    """And a wider one never less. At most one more block of each kind while windows are short."""
    attn, ffn = 3, 5
    sizes = [*ends, *[attn, ffn] * num_layers, *ends]
    areas = [place_blocks(sizes, window, alignment=1)[1] for window in range(1, 17)]
    assert areas == sorted(areas)
    for window, area in enumerate(areas, start=1):
        fullest = fullest_bytes(sizes, window)
        assert fullest <= area
        if (window + 1) // 2 <= num_layers // ((window + 1) // 2):
            assert area <= max(fullest, (window + 1) // 2 * (attn + ffn)) + attn + ffn
        if num_layers % max(1, window // 2) == 0 and window % 2 == 0 and not ends:
            assert area == fullest == window // 2 * (attn + ffn)


@pytest.mark.parametrize("ahead", [0, 1, 3, 8, 40])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_ends_take_the_largest_and_what_is_read_ahead(sizes: list[int], ahead: int) -> None:
    places, area = place_at_ends(sizes, ahead)
    assert all(0 <= p <= p + s <= area for p, s in zip(places, sizes, strict=True))
    assert area <= sum(sizes)
    if min(sizes) >= ahead:
        assert area == min(max(sizes) + ahead, sum(sizes))


def placed(sizes: list[int], way: int | str) -> tuple[list[int], int | None]:
    """Places, and the window that they are for: at the ends there is none."""
    if isinstance(way, int):
        return place_blocks(sizes, way, alignment=1)[0], way
    return place_at_ends(sizes, int(way))[0], None


@pytest.mark.parametrize("way", [1, 2, 3, "0", "1", "3", "8", "40"])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_place_is_read_to_when_it_is_free_and_no_later(sizes: list[int], way: int | str) -> None:
    """Every byte against who lay there before, over three tokens."""
    count = len(sizes)
    places, window = placed(sizes, way)
    pieces = pieces_of(sizes, places, window)
    owner: dict[int, int] = {}  # the last visit to each address
    for visit in range(3 * count):
        block = visit % count
        found = sorted(pieces[block], key=lambda piece: piece.begin)
        assert [p.begin for p in found] == [0, *(p.end for p in found[:-1])]
        assert found[-1].end == sizes[block]
        for piece in found:
            assert piece.distance <= (window or count)
            addresses = range(places[block] + piece.begin, places[block] + piece.end)
            before = max((owner[a] for a in addresses if a in owner), default=-count)
            assert visit - before >= piece.distance
            if window is None and visit >= count:
                assert visit - before == piece.distance
        owner |= dict.fromkeys(range(places[block], places[block] + sizes[block]), visit)


@pytest.mark.parametrize("count", [2, 4, 6])
def test_so_much_is_read_while_a_block_is_held(count: int) -> None:
    """Blocks of 100 with 30 ahead: of the next, all that the one in use leaves free."""
    sizes = [100] * count
    places, area = place_at_ends(sizes, 30)
    assert area == 130
    for pieces in pieces_of(sizes, places):
        early = [piece for piece in pieces if piece.distance == 2]
        late = [piece for piece in pieces if piece.distance == 1]
        assert sum(piece.end - piece.begin for piece in early) == 30
        assert sum(piece.end - piece.begin for piece in late) == 70
