"""A prompt on several devices: in chunks through a pipeline, or under tensor parallelism?

A pipeline of one piece has one device at work at a time; in chunks all are, at the price of a
message a chunk and of weights that are read for each. Tensor parallelism has all at work and sends
every position's sums. TTFT by the length of the prompt, at each link latency, and by the number of
chunks (Jupiter, arXiv 2504.08242). Run it with `python -m tpi_bench +experiment=fig_prefill`; draw
it again with `python -m experiments.fig_prefill FOLDER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpi_bench.report import figures, looks, names
from tpi_bench.report.drawing import Drawing, succeeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def table(rows: pd.DataFrame) -> str:
    """A line a link and prompt, a column a system; then who is first, and what chunks do."""
    text = []
    for (bandwidth, latency), group in _of_links(_whole(rows)):
        text.append(f"TTFT in s, {latency:g} ms a hop, {bandwidth:g} Mbit/s")
        shown = group.pivot_table(
            index="prompt_tokens", columns="line", values="ttft_s", sort=False
        ).sort_index()
        shown.index = shown.index.map("{:.0f} positions".format)
        text.append(shown.to_string(float_format="{:.3g}".format, na_rep="-"))
        text += [f"  {line}" for line in _firsts(group)]
    text += _by_chunks(rows)
    return "\n".join(text)


def _firsts(group: pd.DataFrame) -> list[str]:
    """Who has the first token first, by the length of the prompt."""
    best = group.loc[group.groupby("prompt_tokens").ttft_s.idxmin()]
    words = ", ".join(f"{row.prompt_tokens:.0f} {row.line}" for row in best.itertuples())
    return [f"fastest by positions: {words}"]


def _by_chunks(rows: pd.DataFrame) -> list[str]:
    """The best number of chunks of each prompt and link, and what one piece takes."""
    lines = []
    chunked = _chunked(rows)
    for (latency, prompt), group in chunked.groupby(["link_latency_ms", "prompt_tokens"]):
        best = group.loc[group.ttft_s.idxmin()]
        one = group[group.chunks == 1].ttft_s
        words = f"{prompt:.0f} positions at {latency:g} ms a hop: {best.chunks:.0f} chunks "
        words += f"({best.system_lengths}) {best.ttft_s:.3g} s"
        lines.append(words + (f", one {one.min():.3g} s" if len(one) else ""))
    by_point = chunked.groupby(["prompt_tokens", "chunks"]).ttft_s
    apart = (by_point.max() / by_point.min()).max()
    if apart == apart:
        lines.append(f"links and lengths, equal or planned, are at most {apart - 1:.1%} apart")
    return lines


def draw(rows: pd.DataFrame) -> Figure:
    """A panel a link, TTFT by the length of the prompt; the last by chunks."""
    panels_of = list(_of_links(_whole(rows)))
    chunked = _chunked(rows)
    labels = list(dict.fromkeys(_whole(rows).line))
    styles = looks.line_styles(labels)
    figure = figures.new_figure(2.9, num_columns=2)
    panels = figure.subplots(1, len(panels_of) + bool(len(chunked)), squeeze=False)[0]
    for axes, ((bandwidth, latency), group) in zip(panels, panels_of, strict=False):
        for label in labels:
            line = group[group.line == label].sort_values("prompt_tokens")
            if len(line):
                axes.plot(line.prompt_tokens, line.ttft_s, label=label, **styles[label])
        _finish(axes, group.prompt_tokens, f"{latency:g} ms a hop, {bandwidth:g} Mbit/s")
        axes.set_xlabel("positions of the prompt")
    if len(chunked):
        _draw_chunks(panels[-1], chunked)
    panels[0].set_ylabel("time to first token (s)")
    handles = figures.handles_of(panels[: len(panels_of)])
    figure.legend(*handles, loc="outside lower center", ncol=5, frameon=False)
    first = rows.iloc[0]
    figure.suptitle(
        f"{names.model_name(first.model)} in {first.weights} on {first.device}, "
        f"{first.topology} network; virtual time, modelled cost",
        fontsize=7.5,
    )
    return figure


def _draw_chunks(axes: Axes, chunked: pd.DataFrame) -> None:
    """A line a prompt, over all that were run of it: links and lengths differ by less than a
    marker.
    """
    prompts = sorted(set(chunked.prompt_tokens))
    colours = looks.shades([str(prompt) for prompt in prompts])
    for prompt, (_, marker) in zip(
        prompts, figures.with_markers([str(prompt) for prompt in prompts]), strict=True
    ):
        own = chunked[chunked.prompt_tokens == prompt].groupby("chunks").ttft_s
        colour, name = colours[str(prompt)], f"{prompt:.0f} positions"
        axes.fill_between(own.median().index, own.min(), own.max(), color=colour, alpha=0.3)
        axes.plot(own.median(), marker=marker, color=colour, label=name)
    _finish(axes, chunked.chunks, "Jupiter, all links")
    axes.set_xlabel("chunks")
    axes.legend(fontsize=6, loc="center right")


def _finish(axes: Axes, values: pd.Series, title: str) -> None:
    figures.log_values(axes, list(values))
    figures.log_milliseconds(axes)
    axes.set_title(title, fontsize=7)


def _of_links(rows: pd.DataFrame) -> list[tuple[tuple[float, float], pd.DataFrame]]:
    """By bandwidth and latency; the fastest links first."""
    keys = ["bandwidth_mbps", "link_latency_ms"]
    found = [(key, group) for key, group in rows.groupby(keys) if group.line.nunique() > 1]
    return sorted(found, key=lambda pair: (-pair[0][0], pair[0][1]))


def _whole(rows: pd.DataFrame) -> pd.DataFrame:
    """Without those in which chunks are varied."""
    return rows[rows.chunks.isna()]


def _chunked(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.chunks.notna()]


def _rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Those that succeeded, each with its `line`, and `chunks` where they were given."""
    import pandas as pd

    rows = succeeded(runs)
    rows["line"] = [names.system_label(row) for row in rows.to_dict("records")]
    given = rows.system_chunks if "system_chunks" in rows else pd.Series(index=rows.index)
    rows["chunks"] = pd.to_numeric(given, errors="coerce")
    if "system_lengths" not in rows:
        rows["system_lengths"] = None
    return rows


DRAWING = Drawing(name="fig_prefill", rows=_rows, table=table, draw=draw)

if __name__ == "__main__":
    DRAWING.again()
