"use strict";
// The state of the table of runs is in the address: #sort=objective&dir=descending&filter=lr=0.1
const runs = document.querySelector("#runs table");
const state = () => new URLSearchParams(location.hash.slice(1));

function sortRows(table, header, descending) {
  const place = header.cellIndex, isNumber = header.classList.contains("number");
  const known = [], missing = [];
  for (const row of table.tBodies[0].rows) {
    const cell = row.cells[place], text = cell.textContent.trim();
    const value = isNumber ? parseFloat(cell.dataset.v) : text;
    (isNumber ? Number.isNaN(value) : !text) ? missing.push(row) : known.push([value, row]);
  }
  const sign = descending ? -1 : 1;
  known.sort(isNumber ? (a, b) => sign * (a[0] - b[0])
    : (a, b) => sign * a[0].localeCompare(b[0], "en", {numeric: true}));
  table.tBodies[0].append(...known.map(entry => entry[1]), ...missing);
  for (const other of table.tHead.rows[0].cells) {
    const order = descending ? "descending" : "ascending";
    other.setAttribute("aria-sort", other === header ? order : "none");
  }
}

function filterRows(text, status) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of runs.tBodies[0].rows) {
    const content = (row.textContent + " " + row.dataset.words).toLowerCase();
    row.hidden = (status && row.dataset.status !== status) || !words.every(w => content.includes(w));
    shown += !row.hidden;
  }
  const total = runs.tBodies[0].rows.length;
  document.querySelector("#count").textContent =
    shown === total ? `${total} runs` : `${shown} of ${total} runs`;
}

function apply() {
  const now = state(), filter = document.querySelector("#filter");
  const header = [...runs.tHead.rows[0].cells].find(cell => cell.dataset.key === now.get("sort"));
  if (header) sortRows(runs, header, now.get("dir") === "descending");
  const text = now.get("filter") || "", status = now.get("status") || "";
  if (filter.value !== text) filter.value = text;
  document.querySelector("#status").value = status;
  filterRows(text, status);
}

function change(values) {
  const next = state();
  for (const [key, value] of Object.entries(values)) value ? next.set(key, value) : next.delete(key);
  history.replaceState(null, "", "#" + next);
  apply();
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", event => {
    const header = event.target.closest("th");
    if (!header || !event.target.closest("button")) return;
    const descending = header.getAttribute("aria-sort") === "ascending";
    if (table !== runs) return sortRows(table, header, descending);
    change({sort: header.dataset.key, dir: descending ? "descending" : ""});
  });
}
if (runs) {
  document.querySelector("#filter").addEventListener("input", e => change({filter: e.target.value}));
  document.querySelector("#status").addEventListener("change", e => change({status: e.target.value}));
  window.addEventListener("hashchange", apply);
  apply();
}

// The values behind a point at once, and by touch; without this script browsers show the <title>.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
for (const title of document.querySelectorAll(".point title")) {
  title.parentNode.setAttribute("aria-label", title.textContent);
  title.remove();
}
function nearest(chart, event) {
  let best = null, least = 30 * 30;
  for (const point of chart.querySelectorAll(".point")) {
    const box = point.getBoundingClientRect();
    const x = box.x + box.width / 2 - event.clientX, y = box.y + box.height / 2 - event.clientY;
    if (x * x + y * y < least) [best, least] = [point, x * x + y * y];
  }
  return best;
}
let near = null;
document.addEventListener("pointermove", event => {
  const chart = event.target.closest(".chart"), point = chart && nearest(chart, event);
  if (near) near.classList.remove("near");
  near = point;
  tip.hidden = !point;
  if (!point) return;
  point.classList.add("near");
  tip.textContent = point.getAttribute("aria-label");
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const above = event.clientY + 18 + tip.offsetHeight > innerHeight;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = event.clientY + (above ? -14 - tip.offsetHeight : 18) + "px";
});

// The page of a running sweep reloads itself, but not while its filter is being typed, and more
// rarely the longer nothing has written it.
const written = parseFloat(document.body.dataset.written);
if (written) {
  const age = Math.max(0, Date.now() / 1000 - written);
  const pause = Math.min(120, Math.max(5, age / 10));
  setInterval(() => {
    if (document.activeElement !== document.querySelector("#filter")) location.reload();
  }, 1000 * pause);
}
