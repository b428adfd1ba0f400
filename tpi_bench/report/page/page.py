"""Gathers what a page shows, and fills its templates. The figures come from who calls it."""

from __future__ import annotations

import base64
import datetime
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpi_bench.report.collection import has_rows
from tpi_bench.report.ledger.entries import VERDICTS
from tpi_bench.report.ledger.verdicts import Judged
from tpi_bench.report.page.notes import Notes, Part, Section
from tpi_bench.report.page.svg import Picture, glyphs_svg
from tpi_bench.report.results import load
from tpi_bench.report.sweep_table import sweep_frame

if TYPE_CHECKING:
    import pandas as pd

Draw = Callable[[str, Path], "Drawn"]
_MOST_ROWS = 400
_ID, _LINK = re.compile(r'\bid="([^"]+)"'), re.compile(r'<a href="#([^"]+)"')
_HOST = {
    "host": "host",
    "cpu": "processor",
    "cores": "cores",
    "platform": "system",
    "python": "Python",
    "torch_version": "torch",
    "transformers_version": "Transformers",
    "numpy_version": "numpy",
}


@dataclass(frozen=True)
class Drawn:
    """An experiment's figure and its own table as text; empty where it has none."""

    picture: Picture | None = None
    text: str = ""
    why_not: str = ""


@dataclass(frozen=True)
class Experiment:
    """A results folder on the page."""

    name: str
    slug: str
    folder: Path
    command: str
    drawn: Drawn
    table: pd.DataFrame
    num_points: int
    num_failed: int
    clocks: str
    commits: str
    dates: str
    minutes: float

    @property
    def shown(self) -> list[list[str]]:
        return [list(map(str, row)) for row in self.table.head(_MOST_ROWS).to_numpy().tolist()]

    @property
    def num_more(self) -> int:
        return max(0, len(self.table) - _MOST_ROWS)


@dataclass
class Page:
    """All that the templates ask for."""

    title: str
    ledger: Sequence[Judged]
    notes_name: str
    lead: Sequence[Part]
    sections: list[Section]
    experiments: Mapping[str, Experiment]
    hosts: list[dict[str, str]]
    command: str
    made: str = field(default_factory=lambda: datetime.date.today().isoformat())

    @property
    def counts(self) -> dict[str, int]:
        return {v: sum(j.verdict == v for j in self.ledger) for v in VERDICTS}

    @property
    def glyphs(self) -> str:
        """The letters of all figures."""
        found: dict[str, str] = {}
        for experiment in self.experiments.values():
            if experiment.drawn.picture is not None:
                found |= experiment.drawn.picture.glyphs
        return glyphs_svg(found)

    @staticmethod
    def embedded(image: Path | None) -> str:
        """A picture as a URL that has all of it; nothing where there is none, or rows to draw."""
        if image is None or image.suffix != ".png" or not image.is_file():
            return ""
        if has_rows(image.parent):
            return ""
        return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"

    @property
    def host_columns(self) -> list[str]:
        return [*_HOST.values(), "experiments"]


def gathered(
    folders: Mapping[str, Path],
    ledger: Sequence[Judged],
    notes: Sequence[Notes],
    draw: Draw,
    *,
    notes_name: str,
    command: str,
) -> Page:
    """`folders` are results folders by name; `draw` makes the figure of one."""
    experiments, hosts = {}, dict[tuple[str, ...], dict[str, str]]()
    for name, path in folders.items():
        runs = load(path).runs
        experiments[name] = _experiment(name, path, runs, draw)
        _add_hosts(hosts, name, runs)
    sections = [
        section for each in notes for section in each.sections if _is_told(section, experiments)
    ]
    _place_those_without(sections, experiments, notes)
    lead = notes[0].lead if notes else []
    return Page(
        title="What holds of TPI-LLM, and what was measured",
        ledger=ledger,
        notes_name=notes_name,
        lead=lead,
        sections=sections,
        experiments=experiments,
        hosts=list(hosts.values()),
        command=command,
    )


def _experiment(name: str, path: Path, runs: pd.DataFrame, draw: Draw) -> Experiment:
    import pandas as pd

    from tpi_bench.report.durations import seconds_of

    ok = runs.status == "ok"
    return Experiment(
        name=name,
        slug=f"rows-{slug_of_folder(name)}",
        folder=path,
        command=command_of(name, path),
        drawn=draw(name, path),
        table=sweep_frame(runs) if len(runs) else pd.DataFrame(),
        num_points=len(runs),
        num_failed=int((~ok).sum()),
        clocks=", ".join(_clock(*pair) for pair in _pairs(runs)),
        commits=", ".join(sorted({str(commit)[:9] for commit in runs.commit})),
        dates=" to ".join(dict.fromkeys((min(runs.started)[:10], max(runs.started)[:10]))),
        minutes=seconds_of(runs) / 60,
    )


def slug_of_folder(name: str) -> str:
    """Of an id on the page."""
    return re.sub(r"\W+", "-", name)


def command_of(name: str, path: Path) -> str:
    """What was typed, without where its results went; an experiment of that name, if not known."""
    from tpi_bench.report.folder import ResultsFolder

    typed = ResultsFolder(path).arguments or [f"+experiment={name}"]
    told = [text for text in typed if not text.startswith(("output_dir=", "results_dir="))]
    return f"python -m tpi_bench {shlex.join(told)}"


def _pairs(runs: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(runs.clock.dropna(), runs.cost.dropna(), strict=False)))


def _clock(clock: str, cost: str) -> str:
    return "measured" if clock == "wall" else f"virtual time ({cost} cost)"


def _add_hosts(hosts: dict[tuple[str, ...], dict[str, str]], name: str, runs: pd.DataFrame) -> None:
    columns = [column for column in _HOST if column in runs]
    for _, row in runs[columns].dropna(subset=["host", "cores"]).drop_duplicates().iterrows():
        cells = {_HOST[c]: _plain(row[c]) for c in columns}
        key = tuple(cells.values())
        found = hosts.setdefault(key, cells | {"experiments": ""})
        names = [each for each in found["experiments"].split(", ") if each]
        found["experiments"] = ", ".join(dict.fromkeys([*names, name]))


def _plain(value: Any) -> str:
    if value != value or value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_told(section: Section, experiments: Mapping[str, Experiment]) -> bool:
    """Whether it is about nothing in particular, or about something that is on the page."""
    parts = [part for part in section.parts if part.folder]
    shown = [part for part in parts if part.folder in experiments or Page.embedded(part.image)]
    return bool(shown) or not parts


def _place_those_without(
    sections: list[Section], experiments: Mapping[str, Experiment], notes: Sequence[Notes]
) -> None:
    """Folders that no image shows go to the section that the notes name, or get one."""
    by_slug = {section.slug: section for section in sections}
    shown = {name for section in sections for name in section.folders}
    section_of = {name: slug for each in notes for name, slug in each.section_of.items()}
    shows = {name: words for each in notes for name, words in each.shows.items()}
    for name in experiments:
        if name in shown:
            continue
        section = by_slug.get(_nearest(name, section_of) or "")
        if section is None:
            title = f"{shows[name].capitalize()} ({name})" if name in shows else name
            section = Section(title, f"of-{slug_of_folder(name)}")
            sections.append(section)
        section.parts.append(Part(folder=name, words=shows.get(name, name)))


def _nearest(name: str, section_of: Mapping[str, str]) -> str | None:
    """Its own section, that of the folder it lies in, or of the experiment it is a variant of."""
    begins = [known for known in section_of if re.match(rf"{re.escape(known)}(?:[_/]|$)", name)]
    return section_of[max(begins, key=len)] if begins else None


def html_of(page: Page) -> str:
    """The page as one text; links to sections that are not on it are none."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tpi_bench.report.page", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template("page.html").render(page=page)
    ids = set(_ID.findall(text))
    return _LINK.sub(lambda link: link[0] if link[1] in ids else "<a", text)
