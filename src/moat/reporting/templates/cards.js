// The card of a number: a preview where the pointer or the focus is, and kept open, with its links, once it is pressed.
{
  const card = document.getElementById("card");
  const source = document.getElementById("cards");
  const close = card.querySelector(".close");
  let details = null;
  let opener = null;
  let pinned = false;
  let waiting = 0;

  for (const button of document.querySelectorAll("[data-card]")) {
    button.addEventListener("click", () => pin(button));
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && preview(button, 200));
    button.addEventListener("pointerleave", unpreview);
    button.addEventListener("focus", () => button.matches(":focus-visible") && preview(button, 0));
    button.addEventListener("blur", unpreview);
  }
  close.addEventListener("click", hide);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && opener) hide();
  });
  document.addEventListener("pointerdown", (event) => {
    if (pinned && !card.contains(event.target) && !opener.contains(event.target)) hide();
  });
  addEventListener("resize", () => opener && place());

  function preview(button, delay) {
    clearTimeout(waiting);
    if (!pinned) waiting = setTimeout(() => open(button), delay);
  }

  function unpreview() {
    clearTimeout(waiting);
    if (!pinned && opener) hide();
  }

  function pin(button) {
    clearTimeout(waiting);
    if (pinned && opener === button) return hide();
    pinned = true;
    open(button);
    card.classList.add("pinned");
    place();
    const covered = button.getBoundingClientRect().bottom + 8 - card.getBoundingClientRect().top;
    if (card.offsetWidth === innerWidth && covered > 0) scrollBy(0, covered);
    close.focus({ preventScroll: true });
  }

  function open(button) {
    details ??= JSON.parse(source.textContent);
    const { title, lines } = details[button.dataset.card];
    opener?.removeAttribute("aria-describedby");
    opener = button;
    button.setAttribute("aria-describedby", "card");
    card.querySelector("h4").textContent = title;
    card.querySelector("dl").replaceChildren(show(lines));
    if (!card.matches(":popover-open")) card.showPopover();
    card.scrollTop = 0;
    place();
  }

  // Several values of one kind, e.g. a run for each seed, stand under its name once.
  function show(lines) {
    const list = document.createDocumentFragment();
    let before = null;
    for (const [what, value] of lines) {
      if (what !== before) {
        const row = list.appendChild(document.createElement("div"));
        row.appendChild(document.createElement("dt")).textContent = what;
      }
      list.lastChild.appendChild(document.createElement("dd")).append(said(what, value));
      before = what;
    }
    return list;
  }

  // Paths of results are links: the page lies in the folder that they begin with.
  function said(what, value) {
    const { below } = source.dataset;
    const isPath = value.startsWith(below);
    const element = document.createElement(isPath ? "a" : what === "made by" ? "code" : "span");
    if (isPath) element.href = value.slice(below.length);
    if (what === "verdict") {
      element.className = `tag v-${value}`;
      element.textContent = value.replace("-", " ");
    } else {
      // A long path breaks at its slashes.
      element.append(...value.split(/(?<=\/)/).flatMap((part) => [part, document.createElement("wbr")]));
    }
    return element;
  }

  // Below the number, or above it where there is more room, and never over it; a sheet at the bottom of a narrow screen
  // (by the style).
  function place() {
    const at = opener.getBoundingClientRect();
    const [above, below] = [at.top, innerHeight - at.bottom].map((room) => room - 14);
    card.style.maxHeight = "";
    const under = below >= Math.min(card.offsetHeight, above);
    card.style.maxHeight = `${Math.max(120, Math.min(0.7 * innerHeight, under ? below : above))}px`;
    const top = under ? at.bottom + 6 : at.top - card.offsetHeight - 6;
    card.style.left = `${Math.max(8, Math.min(at.right - card.offsetWidth, innerWidth - card.offsetWidth - 8))}px`;
    card.style.top = `${Math.max(8, top)}px`;
  }

  function hide() {
    const before = opener;
    const inside = card.contains(document.activeElement);
    opener.removeAttribute("aria-describedby");
    [opener, pinned] = [null, false];
    card.classList.remove("pinned");
    card.hidePopover();
    if (inside) before.focus({ preventScroll: true });
    // The focus comes back without opening what was just closed.
    clearTimeout(waiting);
  }

  // One stop of the Tab key per table; the arrow keys move between its numbers.
  for (const table of document.querySelectorAll("table.cells")) {
    oneStop(table);
    table.addEventListener("rows", () => oneStop(table));
    table.addEventListener("keydown", (event) => move(event));
    table.addEventListener("focusin", (event) => event.target.dataset.card && oneStop(table, event.target));
  }

  function oneStop(table, wanted) {
    const buttons = [...table.querySelectorAll("tbody [data-card]")];
    const current = wanted ?? buttons.find((button) => button.tabIndex === 0 && !button.closest("tr").hidden);
    const stop = current ?? buttons.find((button) => !button.closest("tr").hidden);
    for (const button of buttons) button.tabIndex = button === stop ? 0 : -1;
  }

  function move(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const cell = event.target.closest("[data-card]")?.closest("td");
    const step = steps[event.key];
    if (!cell || !step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const found = step[1] ? inRow(cell, step[1]) : inColumn(cell, step[0]);
    found?.focus({ focusVisible: true });
  }

  function inRow(cell, step) {
    const buttons = [...cell.parentElement.querySelectorAll("[data-card]")];
    return buttons[buttons.indexOf(cell.querySelector("[data-card]")) + step];
  }

  function inColumn(cell, step) {
    const rows = [...cell.closest("tbody").rows].filter((row) => !row.hidden);
    return rows[rows.indexOf(cell.parentElement) + step]?.cells[cell.cellIndex].querySelector("[data-card]");
  }
}
