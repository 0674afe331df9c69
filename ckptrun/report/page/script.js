// Filter, order and keys. Without it the page shows the same.
(() => {
  const all = (what, from = document) => [...from.querySelectorAll(what)];
  const one = (what) => document.querySelector(what);
  document.documentElement.classList.add("js");
  const cells = all("details.cell"), links = all(".matrix a"), box = one("#filter"), list = one("#list");
  const chosen = new Set();
  function open(id) {
    const body = document.getElementById(id), cell = body && body.closest("details");
    if (!cell) return;
    cell.open = true;
    cell.hidden = false;
    cell.scrollIntoView({block: "start"});
    cell.querySelector("summary").focus({preventScroll: true});
  }
  function filter() {
    const words = (box ? box.value : "").toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    const off = new Set();
    for (const cell of cells) {
      const text = cell.querySelector("summary").textContent.toLowerCase() + " " + cell.dataset.find.toLowerCase();
      const fits = words.every((word) => text.includes(word)) && (!chosen.size || chosen.has(cell.dataset.state));
      cell.hidden = !fits;
      if (fits) shown += 1; else off.add("#" + cell.querySelector(".body").id);
    }
    for (const link of links) link.classList.toggle("off", off.has(link.hash));
    if (one("#shown")) one("#shown").textContent = shown === cells.length ? "" : shown + " of " + cells.length + " shown";
  }
  if (box) box.addEventListener("input", filter);
  for (const button of all("button[data-state]")) button.addEventListener("click", () => {
    const state = button.dataset.state;
    if (!chosen.delete(state)) chosen.add(state);
    button.setAttribute("aria-pressed", chosen.has(state));
    filter();
  });
  const order = one("#order");
  if (order) order.addEventListener("change", () => {
    const key = order.value, number = (cell) => Number(cell.dataset[key] || -1);
    const down = key !== "number" && key !== "worst";
    list.append(...cells.slice().sort((a, b) => (down ? number(b) - number(a) : number(a) - number(b)) || a.dataset.number - b.dataset.number));
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#cell-']");
    if (link) {
      event.preventDefault();
      history.replaceState(null, "", link.getAttribute("href"));
      open(link.getAttribute("href").slice(1));
    }
    const copy = event.target.closest("button.copy");
    if (copy) {
      const pre = copy.parentElement.querySelector("pre"), range = document.createRange();
      range.selectNodeContents(pre);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      const told = (text) => { copy.textContent = text; };
      if (navigator.clipboard) navigator.clipboard.writeText(pre.textContent).then(() => told("copied"), () => told("press Ctrl-C"));
      else told(document.execCommand("copy") ? "copied" : "press Ctrl-C");
    }
  });
  const bad = () => cells.filter((cell) => !cell.hidden && !["equal", "done", "skipped"].includes(cell.dataset.state));
  let at = -1;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === box || event.target === order) {
      if (event.key === "Escape") { if (event.target === box) { box.value = ""; filter(); } event.target.blur(); }
      return;
    }
    const link = event.target.closest ? event.target.closest(".matrix a") : null;
    if (link && event.key.startsWith("Arrow")) {
      event.preventDefault();
      move(link, event.key);
    } else if (event.key === "/" && box) {
      event.preventDefault();
      box.focus();
    } else if (event.key === "n" || event.key === "p") {
      const found = bad();
      if (!found.length) return;
      at = (at + (event.key === "n" ? 1 : -1) + found.length + (at < 0 && event.key === "p" ? 1 : 0)) % found.length;
      open(found[at].querySelector(".body").id);
    } else if (event.key === "m" && links.length) {
      links[0].focus();
    }
  });
  function move(link, key) {
    const from = link.getBoundingClientRect(), x = (r) => r.left + r.width / 2, y = (r) => r.top + r.height / 2;
    const side = key === "ArrowLeft" || key === "ArrowRight", sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
    let best = null, least = Infinity;
    for (const other of links) {
      const to = other.getBoundingClientRect();
      const along = sign * (side ? x(to) - x(from) : y(to) - y(from)), across = Math.abs(side ? y(to) - y(from) : x(to) - x(from));
      const far = along + 4 * across;
      if (other !== link && along > 2 && far < least) { best = other; least = far; }
    }
    if (best) best.focus();
  }
  if (location.hash.startsWith("#cell-")) open(location.hash.slice(1));
})();
