// Everything a page of ours does: figures drawn, one rank or method shown alone, tables sorted, rows shown and saved.
// Without it the page reads the same: still figures, tables in their own order, rows as a compressed file.
(() => {
  "use strict";
  const each = (selector, act, within = document) => within.querySelectorAll(selector).forEach(act);
  const made = (tag, words, about = {}) => Object.assign(document.createElement(tag), { textContent: words }, about);

  // Figures, by Vega's expression interpreter, which needs no right to evaluate text as code.

  const views = [];
  let alone = null;

  const draw = async () => {
    for (const place of document.querySelectorAll(".chart")) {
      const specification = JSON.parse(document.getElementById(place.dataset.figure).textContent);
      const options = {
        mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
        tooltip: { disableDefaultStyle: true },
      };
      try {
        const { view } = await vegaEmbed(place, specification, options);
        if ((specification.params ?? []).some((one) => one.name === "series")) {
          views.push(view);
          view.addDataListener("series_store", (_, tuples) => isolate(tuples.length ? tuples[0].values[0] : null));
        }
      } catch (error) {
        place.textContent = "This figure could not be drawn: " + error.message;
        console.error(error);
      }
      performance.mark("drawn");
    }
    document.documentElement.dataset.drawn = "";
  };

  // One rank or method alone, in all figures at once, whether a legend or a button was used.
  const isolate = (value) => {
    if (value === alone) return;
    alone = value;
    for (const view of views) {
      const fields = view.signal("series_tuple_fields");
      view.data("series_store", value === null ? [] : [{ unit: "", fields, values: [value] }]).runAsync();
    }
    each(".isolate button", (one) => one.setAttribute("aria-pressed", String(one.dataset.value === (value ?? ""))));
  };
  each(".isolate", (group) => {
    group.hidden = false;
    each("button", (one) => one.addEventListener("click", () => {
      const value = one.dataset.value;
      isolate(value === "" || value === alone ? null : value);
    }), group);
  });

  // Tables sorted by the number a cell begins with, else by its words; what is no number comes last.
  const key = (row, column) => {
    const words = row.cells[column].querySelector("bdi")?.textContent ?? row.cells[column].textContent;
    const number = parseFloat(words.replaceAll(",", "").replace("−", "-"));
    return { words, number };
  };
  const sort = (table, column, down) => {
    const body = table.tBodies[0];
    const sign = down ? -1 : 1;
    const numbers = table.tHead.rows[0].cells[column].classList.contains("num");
    const keyed = [...body.rows].map((row) => ({ row, ...key(row, column) }));
    keyed.sort((a, b) => {
      if (!numbers) return sign * a.words.localeCompare(b.words, "en", { numeric: true });
      if (isNaN(a.number) || isNaN(b.number)) return isNaN(a.number) - isNaN(b.number);
      return sign * (a.number - b.number);
    });
    body.append(...keyed.map((one) => one.row));
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      at === column ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort");
    });
  };
  const sortable = (table) => {
    if (!table.tHead || table.tBodies[0].rows.length < 2) return;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = made("button", "", { type: "button", className: "sort" });
      button.setAttribute("aria-label", "Sort by " + head.textContent.trim());
      button.addEventListener("click", () => sort(table, column, head.getAttribute("aria-sort") === "ascending"));
      head.append(button);
    });
  };
  each("table", sortable);

  // The rows: a compressed file inside the page, saved as plain CSV, and shown a run at a time.
  const parsed = (text) => {
    const rows = [[""]];
    let quoted = false;
    for (let i = 0; i < text.length; i += 1) {
      const row = rows[rows.length - 1];
      const c = text[i];
      if (quoted && c === '"' && text[i + 1] === '"') { row[row.length - 1] += c; i += 1; }
      else if (c === '"') quoted = !quoted;
      else if (!quoted && c === ",") row.push("");
      else if (!quoted && c === "\n") rows.push([""]);
      else row[row.length - 1] += c;
    }
    return rows.filter((row) => row.length > 1);
  };
  const unpacked = async (link) => {
    const bytes = Uint8Array.from(atob(link.href.split(",", 2)[1]), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const rows = async () => {
    const link = document.getElementById("rows-file");
    if (!link) return;
    const text = await unpacked(link);
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = link.download.replace(".gz", "");
    const [head, ...lines] = parsed(text);
    const choice = document.getElementById("rows-run");
    const table = document.getElementById("rows-table");
    const of = head.indexOf("run");
    const show = () => {
      const shown = lines.filter((line) => line[of] === choice.value);
      const varied = head.map((_, i) => i).filter((i) => new Set(shown.map((line) => line[i])).size > 1 || head[i] === "corpus");
      const cell = (tag) => (words) => made(tag, words, tag === "th" ? { scope: "col" } : {});
      const row = (words, tag) => { const tr = made("tr", ""); tr.append(...words.map(cell(tag))); return tr; };
      const kinds = varied.map((i) => (shown.every((line) => line[i] === "" || !isNaN(line[i])) ? "num" : "text"));
      table.tHead.replaceChildren(row(varied.map((i) => head[i]), "th"));
      table.tBodies[0].replaceChildren(...shown.map((line) => row(varied.map((i) => line[i]), "td")));
      for (const tr of table.rows) [...tr.cells].forEach((one, i) => { one.className = kinds[i]; });
      sortable(table);
    };
    choice.replaceChildren(...[...new Set(lines.map((line) => line[of]))].map((name) => made("option", name, { value: name })));
    choice.addEventListener("change", show);
    show();
    document.getElementById("rows-shown").hidden = false;
    each("a[data-run]", (one) => one.addEventListener("click", () => {
      choice.value = one.dataset.run;
      show();
    }));
  };

  // What a mark says when it is pointed at is for eyes; ears have the rows.
  const tooltip = made("div", "", { id: "vg-tooltip-element", className: "vg-tooltip", ariaHidden: "true" });
  document.body.append(tooltip);
  draw();
  rows();
})();
