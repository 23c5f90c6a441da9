// Filter the rows of a table by words and verdicts, and all tables at once by what became of the published numbers.
// Rows in which nothing was measured are folded away until they are asked for.
{
  const everywhere = new Set();
  const filters = [...document.querySelectorAll("table[data-what]")].map(filterOf);
  const bar = document.createElement("div");
  for (const tile of document.querySelectorAll(".tile[data-verdicts]")) toggle(tile, everywhere, applyEverywhere);
  makeBar();

  function filterOf(table) {
    const filter = { table, words: [], verdicts: new Set(), folded: true, status: document.createElement("span") };
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
    const idle = rows.filter((row) => row.classList.contains("idle")).length;
    if (idle && idle < rows.length) tools.append(unfold(filter, `${counted(idle, table.dataset.what)} not run`));
    else filter.folded = false;
    tools.append(sideways(table));
    table.parentElement.before(tools);
    apply(filter);
    return filter;
  }

  function chipsOf(table) {
    const before = table.parentElement.previousElementSibling;
    return before?.matches(".chips") ? before : null;
  }

  function unfold(filter, what) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "unfold";
    filter.fold = (folded) => {
      filter.folded = folded;
      button.textContent = `${folded ? "Show" : "Hide"} ${what}`;
      apply(filter);
    };
    button.addEventListener("click", () => filter.fold(!filter.folded));
    button.textContent = `Show ${what}`;
    return button;
  }

  function counted(number, what) {
    return `${number} ${number === 1 ? what.replace(/s$/, "") : what}`;
  }

  // Says that a table goes on to the right, where it does.
  function sideways(table) {
    const hint = document.createElement("span");
    hint.className = "sideways";
    hint.textContent = `${table.tHead.rows[0].cells.length} columns: scroll sideways \u2192`;
    const scroll = table.parentElement;
    new ResizeObserver(() => (hint.hidden = scroll.scrollWidth <= scroll.clientWidth + 1)).observe(scroll);
    return hint;
  }

  // A link to a row or cell that is folded away unfolds it.
  function showTarget() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const fold = target.closest("details");
    if (fold) fold.open = true;
    filters.find(({ table }) => target.closest("tr.idle") && table.contains(target))?.fold?.(false);
    target.scrollIntoView();
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
    const asked = filter.words.length || filter.verdicts.size || everywhere.size;
    const rows = [...filter.table.tBodies[0].rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fit = filter.words.every((word) => text.includes(word)) && fits(row, own, all);
      row.hidden = !fit || (!asked && filter.folded && row.classList.contains("idle"));
      shown += !row.hidden;
    }
    filter.status.textContent = asked && shown < rows.length ? `${shown} of ${rows.length} ${filter.table.dataset.what}` : "";
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
    return cell.dataset.counted !== undefined;
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
    for (const fold of document.querySelectorAll("details.fold")) fold.open = everywhere.size > 0;
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
  addEventListener("hashchange", showTarget);
  showTarget();
}
