"""Texts that a model reads for its perplexity: a file of the user's, or a page that comes with us.

The page is plain English about plain things, written for this purpose, so that no model has learnt
it by heart. `prepare.py` asks for the text of a point.
"""

from __future__ import annotations

from pathlib import Path

from tpi_bench.measure.settings import Settings

PAGE_NAME = "page"
PAGE = """\
A river does more than carry water from the hills to the sea. It also carries the hills. Rain
loosens small stones and sand from the slopes, streams bring them down, and the river grinds them
against each other until the sharp edges are gone. That is why the stones at the mouth of a long
river are round and small, while those near its source are large and have corners. In a flood, a
river can move in one day more sand than it moves in all the quiet months of the year.

Where the land is steep, the water runs fast and cuts a narrow valley. Where the land is flat, it
slows down and drops what it has carried. The heaviest pieces fall first, then the sand, and at
last the fine mud. Over thousands of years this mud builds wide plains with deep soil. People have
always settled on such plains, because crops grow well there and because boats were for a long
time the cheapest way to move grain, wood and stone. Many of the oldest cities in the world stand
beside a river, and most of them have been under water more than once.

On a flat plain a river does not stay in its bed. The water on the outside of a bend has a longer
way to go and runs faster, so it eats into the bank, while on the inside it runs slowly and leaves
sand behind. Each bend therefore grows wider from year to year. In the end two bends meet, the
river takes the short way, and the old bend is left as a lake in the shape of a horn. From a plane
one can often see several of these lakes on both sides of a river, each a little older than the
next.

To keep a river in one place, engineers build banks of earth and stone along it. This protects the
fields behind them, but it has a price. The mud that used to spread over the whole plain now
settles in the bed, the bed rises, and the banks must be made higher again. After some centuries
the river may flow above the roofs of the villages. If a bank breaks then, the water does not come
back by itself. For this reason some countries have begun to give their rivers more room. They
move the banks further away, let meadows flood in spring, and pay the farmers for the hay they
lose.
"""


def read_text(name: str) -> str:
    """The page, or what is in a file. Raises ValueError."""
    if name == PAGE_NAME:
        return PAGE
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"workload.text={name} cannot be read ({reason}); give a text file in UTF-8, or "
            f"{PAGE_NAME} for one that comes with the program"
        ) from error


def refuse_text(settings: Settings) -> None:
    """Raises ValueError where a text is asked for and cannot be read token by token."""
    if settings.workload.text is None:
        return
    if settings.system.max_devices == 1:
        raise ValueError(
            f"workload.text with system={settings.system.name}, a library that generates by "
            "itself; use tpi, pipeline, mmap, blocking, edgeshard or galaxy"
        )
    if settings.check:
        raise ValueError(
            "check=true compares generated tokens, and with workload.text none are; leave out one "
            "of them"
        )
