"""What is written of the experiments (results/README.md), cut into sections for a page.

An image of a results folder becomes a place for that folder's figure; the first table, of folders
and the commands that made them, tells which section is whose.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

_NOT_SHOWN_AS_LINKS = re.compile(r"^(?!https?:|#)")


@dataclass(frozen=True)
class Part:
    """Some HTML, or the place of a folder's figure: `words` say what it shows.

    `image` is the picture that stands there in the notes, for a folder without rows.
    """

    html: str = ""
    folder: str | None = None
    words: str = ""
    image: Path | None = None


@dataclass
class Section:
    """All from one heading of the second level to the next."""

    title: str
    slug: str
    parts: list[Part] = field(default_factory=list)

    @property
    def folders(self) -> list[str]:
        return [part.folder for part in self.parts if part.folder]


@dataclass(frozen=True)
class Notes:
    """`lead` stands before the first heading; `section_of` names a folder's section by its slug,
    `shows` says in words what it shows."""

    lead: list[Part]
    sections: list[Section]
    section_of: dict[str, str]
    shows: dict[str, str]


def read_notes(path: Path, name: str = "") -> Notes:
    """Raises ValueError where the file cannot be read.

    With a name the file is of a folder in the collection: its lead is a section too, which folders
    below that name belong to.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"notes={path} cannot be read: {reason}") from error
    return notes_of(text, name, path.parent)


def notes_of(text: str, name: str = "", beside: Path = Path()) -> Notes:
    """From Markdown, whose images lie `beside` it."""
    prefix = f"{name}-" if name else ""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL))
    slugs = {f"#{slug_of(_inline(tokens, i))}" for i in _headings(tokens)}
    _without_dead_links(tokens, slugs, prefix)
    sections: list[Section] = []
    lead = Section(name, f"of-{name}" if name else "")
    if name:
        sections.append(lead)
    current, held = lead, list[Token]()
    skipped = 0
    for index, token in enumerate(tokens):
        if skipped:
            skipped -= 1
            continue
        if token.type == "heading_open" and token.tag in ("h1", "h2"):
            _close(reader, current, held)
            title = _inline(tokens, index)
            skipped = 2
            if token.tag == "h1" and name:
                lead.title = title
            if token.tag == "h2":
                current = Section(title, prefix + slug_of(title))
                sections.append(current)
            continue
        image = _image(tokens, index)
        if image is not None:
            _close(reader, current, held)
            source = Path(str(image.attrs["src"]))
            words = image.content or source.stem
            folder = source.parent.as_posix()
            current.parts.append(Part(folder=folder, words=words, image=beside / source))
            skipped = 2
            continue
        held.append(token)
    _close(reader, current, held)
    table = [] if name else list(_folders(text))
    section_of = {name: lead.slug} if name else {each: slug for each, slug, _ in table if slug}
    shows = {each: words for each, _, words in table}
    return Notes([] if name else lead.parts, sections, section_of, shows)


def slug_of(title: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _headings(tokens: Sequence[Token]) -> list[int]:
    return [i for i, token in enumerate(tokens) if token.type == "heading_open"]


def _inline(tokens: Sequence[Token], index: int) -> str:
    return tokens[index + 1].content.replace("`", "")


def _image(tokens: Sequence[Token], index: int) -> Token | None:
    """The image that is all of a paragraph."""
    if tokens[index].type != "paragraph_open":
        return None
    children = tokens[index + 1].children or []
    return children[0] if len(children) == 1 and children[0].type == "image" else None


def _close(reader: MarkdownIt, section: Section, held: list[Token]) -> None:
    """What is held becomes a part of the section."""
    if held:
        written = RendererHTML().render(held, reader.options, {}).replace("<th></th>", "<td></td>")
        number = itertools.count(1)
        where = html.escape(f"{section.title or 'the beginning'}, part {len(section.parts) + 1}")

        def scrolling(found: re.Match[str]) -> str:
            words = f'role="region" tabindex="0" aria-label="{where}, {next(number)}"'
            if found[0] == "<pre>":
                return f'<pre class="scroll" {words}>'
            return f'<div class="scroll" {words}>{found[0]}</div>'

        written = re.sub(r"<table>.*?</table>|<pre>", scrolling, written, flags=re.DOTALL)
        section.parts.append(Part(html=written))
    held.clear()


def _without_dead_links(tokens: Sequence[Token], slugs: set[str], prefix: str) -> None:
    """Links to files are none on a page that is sent: their words stay."""
    for token in tokens:
        open_links: list[bool] = []
        for child in token.children or []:
            if child.type == "link_open":
                target = str(child.attrs["href"])
                is_dead = bool(_NOT_SHOWN_AS_LINKS.match(target)) or (
                    target.startswith("#") and target not in slugs
                )
                open_links.append(is_dead)
                if is_dead:
                    child.tag, child.attrs = "span", {"title": target}
                elif target.startswith("#"):
                    child.attrs["href"] = f"#{prefix}{target[1:]}"
            elif child.type == "link_close" and open_links.pop():
                child.tag = "span"


def _folders(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, slug and words of lines as | `fig_lan` | `command` | [words](#slug) |."""
    for line in text.split("\n"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `") or len(cells) != 3:
            continue
        link = re.fullmatch(r"\[(.*)\]\(#([\w-]+)\)", cells[-1])
        words, slug = link.groups() if link else (cells[-1], "")
        for name in re.findall(r"`([\w/]+)`", cells[0]):
            yield name, slug, words
