(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Views: every element with data-mode or data-metric is shown when it fits what is chosen.
  const chosen = { ...document.body.dataset };
  const show = () => {
    for (const name of ["mode", "metric"]) {
      all(`button[data-choose=${name}]`).forEach((button) =>
        button.setAttribute("aria-pressed", String(button.value === chosen[name])));
    }
    all("[data-mode],[data-metric]").forEach((element) => {
      if (element === document.body) return;
      const { mode, metric } = element.dataset;
      element.hidden = (mode && mode !== chosen.mode) || (metric && metric !== chosen.metric);
    });
  };
  all("button[data-choose]").forEach((button) => button.addEventListener("click", () => {
    chosen[button.dataset.choose] = button.value;
    show();
  }));
  show();

  // The legend hides a recipe everywhere, and lights it up while pointed at.
  const series = (recipe) => all(".series").filter((g) => g.dataset.recipe === recipe);
  all(".legend button").forEach((button) => {
    const recipe = button.value;
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      all(".legend button").filter((other) => other.value === recipe)
        .forEach((other) => other.setAttribute("aria-pressed", String(on)));
      series(recipe).forEach((g) => { g.style.display = on ? "" : "none"; });
    });
    const light = (on) => {
      document.body.classList.toggle("focus", on);
      series(recipe).forEach((g) => g.classList.toggle("lit", on));
    };
    for (const [event, on] of [["mouseenter", 1], ["focus", 1], ["mouseleave", 0], ["blur", 0]]) {
      button.addEventListener(event, () => light(Boolean(on)));
    }
  });

  // One tooltip for all marks and cells.
  const tip = document.getElementById("tip");
  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest?.("[data-tip]");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const box = mark.getBoundingClientRect();
    const x = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2),
      innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${x}px`;
    tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // Tables sort by a click on a heading.
  all("table.sortable th button").forEach((button) => button.addEventListener("click", () => {
    const heading = button.parentElement;
    const table = heading.closest("table");
    const down = heading.getAttribute("aria-sort") !== "descending";
    all("th", table).forEach((th) => th.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[heading.cellIndex].dataset.value;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      const numbers = !isNaN(parseFloat(x)) && !isNaN(parseFloat(y));
      return (numbers ? x - y : String(x).localeCompare(String(y))) * (down ? -1 : 1);
    };
    const body = table.tBodies[0];
    [...body.rows].sort(order).forEach((row) => body.append(row));
  }));
})();
