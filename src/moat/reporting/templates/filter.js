// Filter the rows of a table by words and verdicts, and all tables at once by what became of the published numbers.
{
  const everywhere = new Set();
  const filters = [...document.querySelectorAll("table[data-what]")].map(filterOf);
  const bar = document.createElement("div");
  for (const tile of document.querySelectorAll(".tile[data-verdicts]")) toggle(tile, everywhere, applyEverywhere);
  makeBar();

  function filterOf(table) {
    const filter = { table, words: [], verdicts: new Set(), status: document.createElement("span") };
    const rows = [...table.tBodies[0].rows];
    filter.status.setAttribute("role", "status");
    const tools = document.createElement("div");
    tools.className = "tools";
    const chips = chipsOf(table);
    if (chips) {
      for (const chip of chips.children) toggle(chip.dataset.verdicts ? chip : null, filter.verdicts, () => apply(filter));
      tools.append(chips);
    }
    if (rows.length > 3) tools.append(search(filter));
    tools.append(filter.status);
    table.parentElement.before(tools);
    return filter;
  }

  function chipsOf(table) {
    const before = table.parentElement.previousElementSibling;
    return before?.matches(".chips") ? before : null;
  }

  function search(filter) {
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = `Filter ${filter.table.dataset.what}`;
    input.setAttribute("aria-label", `${input.placeholder} of ${filter.table.parentElement.getAttribute("aria-label")}`);
    input.addEventListener("input", () => {
      filter.words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      apply(filter);
    });
    return input;
  }

  // Makes what an element says a button that puts its verdicts into a set, or takes them out.
  function toggle(element, chosen, changed) {
    if (!element) return;
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.append(...element.childNodes);
    element.append(button);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      for (const verdict of element.dataset.verdicts.split(" ")) chosen[on ? "add" : "delete"](verdict);
      changed();
    });
  }

  function apply(filter) {
    const own = (verdict) => !filter.verdicts.size || filter.verdicts.has(verdict);
    const all = (verdict) => !everywhere.size || everywhere.has(verdict);
    let shown = 0;
    const rows = [...filter.table.tBodies[0].rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(filter.words.every((word) => text.includes(word)) && fits(row, own, all));
      shown += !row.hidden;
    }
    filter.status.textContent = shown < rows.length ? `${shown} of ${rows.length} ${filter.table.dataset.what}` : "";
    filter.table.dispatchEvent(new CustomEvent("rows"));
    return shown;
  }

  // A row fits by its own verdict or that of any of its cells; cells that do not fit are dimmed.
  function fits(row, own, all) {
    if (row.dataset.verdict) return own(row.dataset.verdict) && (all(row.dataset.verdict) || !claimed(row));
    const cells = [...row.querySelectorAll(":scope > .entry")];
    let any = !cells.length;
    for (const cell of cells) {
      const fit = own(cell.dataset.verdict) && (!everywhere.size || (isPublished(cell) && all(cell.dataset.verdict)));
      cell.classList.toggle("dim", !fit);
      any ||= fit;
    }
    return any;
  }

  // Only what was published is among what the overview counts.
  function isPublished(cell) {
    return cell.querySelector(":scope > .published") !== null;
  }

  function claimed(row) {
    return row.closest("#claims") !== null;
  }

  function applyEverywhere() {
    for (const filter of filters) {
      const shown = apply(filter);
      const article = filter.table.closest("article");
      if (article) article.hidden = everywhere.size > 0 && shown === 0;
    }
    for (const figure of document.querySelectorAll("article:not(:has(table))")) figure.hidden = everywhere.size > 0;
    bar.hidden = everywhere.size === 0;
    const names = [...document.querySelectorAll(".tile [aria-pressed=true] .name")].map((name) => name.textContent);
    bar.firstElementChild.textContent = `Only what is ${names.join(" or ")}. `;
  }

  function makeBar() {
    bar.className = "bar";
    bar.hidden = true;
    bar.setAttribute("role", "status");
    const all = document.createElement("button");
    all.type = "button";
    all.textContent = "Show everything";
    all.addEventListener("click", () => {
      for (const button of document.querySelectorAll(".tile [aria-pressed=true]")) button.click();
    });
    bar.append(document.createElement("span"), all);
    document.body.append(bar);
  }

  for (const input of document.querySelectorAll(".tools input")) input.value = "";
}
