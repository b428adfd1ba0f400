"use strict";
// Sorts and filters tables, and shows the value of a point. The page is whole without it.
(() => {
  const make = (tag, given = {}) => Object.assign(document.createElement(tag), given);

  function value(cell, kind) {
    const text = cell.textContent.trim();
    const number = Number.parseFloat(text);
    return kind !== "text" && /^[-+]?[\d.]/.test(text) && !Number.isNaN(number) ? number : text.toLowerCase();
  }

  function order(a, b) {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1; // what is no number stands last
  }

  function sortBy(table, head, column) {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row.cells[column], head.dataset.sort), row]);
    rows.sort((a, b) => (up ? order(a[0], b[0]) : order(b[0], a[0])));
    body.append(...rows.map((pair) => pair[1]));
  }

  function filter(table, search, verdict, said) {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) && (!verdict?.value || row.dataset.verdict === verdict.value);
      row.hidden = !fits;
      shown += fits;
    }
    said.textContent = `${shown} of ${table.tBodies[0].rows.length}`;
  }

  for (const tools of document.querySelectorAll(".tools")) {
    const table = document.getElementById(tools.dataset.for);
    const search = make("input", { type: "search" });
    const label = make("label", { textContent: "Filter" });
    label.append(search);
    tools.append(label);
    let verdict = null;
    const kinds = new Set([...table.tBodies[0].rows].map((row) => row.dataset.verdict).filter(Boolean));
    if (kinds.size) {
      verdict = make("select");
      verdict.append(make("option", { value: "", textContent: "all" }));
      for (const kind of [...kinds].sort()) verdict.append(make("option", { value: kind, textContent: kind }));
      const named = make("label", { textContent: "Verdict" });
      named.append(verdict);
      tools.append(named);
    }
    const said = make("output");
    tools.append(said);
    const again = () => filter(table, search, verdict, said);
    search.addEventListener("input", again);
    verdict?.addEventListener("change", again);
    again();
  }

  for (const head of document.querySelectorAll("th[data-sort]")) {
    const button = make("button", { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => sortBy(head.closest("table"), head, head.cellIndex));
  }

  // A link to rows that are folded away opens them.
  const unfold = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target && target.classList.contains("experiment")) target.querySelector("details")?.setAttribute("open", "");
  };
  addEventListener("hashchange", unfold);
  unfold();

  const tip = document.getElementById("tip");
  for (const mark of document.querySelectorAll(".mark")) {
    mark.dataset.text = mark.querySelector("title").textContent;
    mark.replaceChildren();
  }
  function show(event) {
    const text = event.target.dataset?.text;
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const left = Math.min(event.pageX + 12, scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(scrollX + 8, left)}px`;
    tip.style.top = `${event.pageY + 16}px`;
  }
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
})();
