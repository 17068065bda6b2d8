// Sorting, filtering and drawing of a board's page. Texts are set as textContent, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const table = document.getElementById("board");
const body = table.tBodies[0];
const rows = [...body.rows];
const byId = (id) => document.getElementById(id);
// Dashes differ as well as colours, so that lines can be distinguished in greyscale.
const DASHES = ["", "7 4", "9 3 2 3", "2 3", "10 3 2 3 2 3", "1 5", "12 4", "5 2 1 2"];
const NUM_COLOURS = 8;
const DRAWN_SHARE = 0.01; // a curve's panel ends where fewer images would still change their class

// Sorting

function sortBy(header, descending) {
  const column = header.cellIndex, isText = header.dataset.kind === "text";
  const value = (row) => row.cells[column].dataset.value;
  const compare = isText
    ? (a, b) => value(a).localeCompare(value(b), "en", { numeric: true })
    : (a, b) => Number(value(a)) - Number(value(b));
  const isMissing = (row) => value(row) === "";
  rows.sort((a, b) => {
    // Rows without a value are last in both directions.
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
    return descending ? compare(b, a) : compare(a, b);
  });
  body.append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  redraw();
}

for (const header of table.tHead.querySelectorAll("th[data-kind]")) {
  header.querySelector("button").addEventListener("click", () => {
    const current = header.getAttribute("aria-sort");
    const first = header.dataset.kind === "number"; // numbers start with the largest
    sortBy(header, current === null ? first : current === "ascending");
  });
}

// Filters and selection

const boxOf = (row) => row.querySelector("input[type=checkbox]");

function filterRows() {
  const text = byId("text-filter").value.trim().toLowerCase();
  const least = Number(byId("accuracy-filter").value) / 100;
  for (const row of rows) {
    const searched = `${row.cells[1].dataset.value} ${row.cells[2].dataset.value}`.toLowerCase();
    // Tolerance: 98.57 / 100 is not exactly the accuracy 0.9857.
    row.hidden = !searched.includes(text) || Number(row.dataset.accuracy) < least - 1e-9;
  }
  redraw();
}

byId("text-filter").addEventListener("input", filterRows);
byId("accuracy-filter").addEventListener("input", filterRows);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());

function select(wanted) {
  for (const row of rows) if (!row.hidden) boxOf(row).checked = wanted;
  redraw();
}

byId("select-shown").addEventListener("click", () => select(true));
byId("clear").addEventListener("click", () => {
  for (const row of rows) boxOf(row).checked = false;
  redraw();
});
body.addEventListener("change", redraw);

// Drawing

function seriesOf(row, number) {
  return {
    row: data.rows[Number(row.dataset.row)],
    colour: `var(--series-${number % NUM_COLOURS})`,
    // After all colours, each one is used again with the next dashes.
    dash: DASHES[(number + Math.floor(number / NUM_COLOURS)) % DASHES.length],
  };
}

function styleOf(series) {
  return `stroke: ${series.colour}; stroke-dasharray: ${series.dash || "none"}`;
}

function curveOf(series) {
  const { budget, accuracy } = series.row.curves[byId("budget-kind").value];
  return { budget, accuracy: accuracy[byId("method").value] };
}

function drawnUntil({ budget, accuracy }) {
  const last = accuracy[accuracy.length - 1];
  const index = accuracy.findIndex((value) => value - last <= DRAWN_SHARE);
  return 1.05 * budget[index] || budget[budget.length - 1] || 1;
}

let maxBudget = 1;

function drawCurves(selected) {
  const curves = selected.map(curveOf);
  maxBudget = Math.max(...curves.map(drawnUntil));
  const top = 100 * Math.max(...curves.map((curve) => curve.accuracy[0]), 0.01);
  const x = scale(0, maxBudget, LEFT, width - RIGHT);
  const y = scale(0, top, HEIGHT - BOTTOM, TOP);
  const svg = byId("curve");
  const p = data.norm;
  const relative = byId("budget-kind").value === "relative";
  const name = relative ? `budget ||dx|| / ||x||, norm ${p}` : `budget ||dx||, norm ${p}`;
  panel(svg, ticksOf(0, maxBudget, 6), ticksOf(0, top, 5), x, y, name, "accuracy, %");
  selected.forEach((series, number) => {
    const { budget, accuracy } = curves[number];
    let path = `M${LEFT} ${round(y(100 * accuracy[0]))}`;
    for (let k = 1; k < budget.length && budget[k] <= maxBudget; k++) {
      path += `H${round(x(budget[k]))}V${round(y(100 * accuracy[k]))}`;
    }
    const line = draw(svg, "path", { class: "line", d: `${path}H${width - RIGHT}` });
    line.setAttribute("data-name", series.row.name);
    line.style.cssText = styleOf(series);
  });
  draw(svg, "line", { class: "cursor", id: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
}

function drawHistogram(selected) {
  const svg = byId("histogram"), edges = data.edges, method = byId("method").value;
  const drawn = selected.filter((series) => edges && series.row.shares[method]);
  if (drawn.length === 0) {
    svg.replaceChildren();
    return;
  }
  const shares = drawn.map((series) => series.row.shares[method]);
  const top = 100 * Math.max(...shares.flat());
  const logX = scale(Math.log(edges[0]), Math.log(edges[edges.length - 1]), LEFT, width - RIGHT);
  const x = (value) => logX(Math.log(value));
  const y = scale(0, top, HEIGHT - BOTTOM, TOP);
  const ticks = logTicksOf(edges[0], edges[edges.length - 1]);
  panel(svg, ticks, ticksOf(0, top, 5), x, y, `||dx|| / ||x||, norm ${data.norm}`, "images, %");
  drawn.forEach((series, number) => {
    let path = `M${LEFT} ${HEIGHT - BOTTOM}`;
    shares[number].forEach((share, bin) => {
      path += `V${round(y(100 * share))}H${round(x(edges[bin + 1]))}`;
    });
    const line = draw(svg, "path", { class: "line", d: `${path}V${HEIGHT - BOTTOM}` });
    line.setAttribute("data-name", series.row.name);
    line.style.cssText = styleOf(series);
  });
}

function drawLegend(selected) {
  const legend = create("table");
  const head = legend.createTHead().insertRow();
  const names = ["line", "name", "accuracy there, %", "median ||dx|| / ||x||"];
  names.forEach((name, column) => {
    head.append(create("th", { scope: "col", class: column > 1 ? "number" : "" }, name));
  });
  const lines = legend.createTBody();
  for (const series of selected) {
    const line = lines.insertRow();
    const sample = draw(line.insertCell(), "svg", { viewBox: "0 0 42 12", "aria-hidden": "true" });
    draw(sample, "path", { class: "line", d: "M0 6H42" }).style.cssText = styleOf(series);
    line.insertCell().textContent = series.row.name;
    line.cells[1].className = "name";
    const accuracy = line.insertCell();
    accuracy.className = "number at-budget";
    const median = series.row.medians[byId("method").value];
    const cell = line.insertCell();
    cell.className = "number";
    cell.textContent = median === null ? "" : median.toPrecision(4);
  }
  byId("legend").replaceChildren(legend);
}

function drawSheets(selected) {
  const figures = selected.filter((series) => series.row.sheet).map((series) => {
    const figure = create("figure");
    const alt = `Contact sheet of ${series.row.name}`;
    figure.append(create("figcaption", {}, series.row.name));
    const link = create("a", { href: series.row.sheet, title: "in its own size" });
    link.append(create("img", { src: series.row.sheet, alt, loading: "lazy" }));
    figure.append(link);
    return figure;
  });
  byId("sheets").replaceChildren(...figures);
  byId("sheets-section").hidden = figures.length === 0;
}

let selected = [];

function readAtBudget() {
  const budget = (byId("budget").value / byId("budget").max) * maxBudget;
  byId("budget-value").textContent = short(budget);
  const position = scale(0, maxBudget, LEFT, width - RIGHT)(budget);
  for (const name of ["x1", "x2"]) byId("cursor").setAttribute(name, position);
  const cells = document.querySelectorAll("#legend .at-budget");
  selected.forEach((series, number) => {
    const curve = curveOf(series);
    // The curve is constant up to the next budget.
    const next = curve.budget.findIndex((value) => value > budget);
    const index = next < 0 ? curve.budget.length - 1 : Math.max(0, next - 1);
    cells[number].textContent = (100 * curve.accuracy[index]).toFixed(2);
  });
}

byId("budget").addEventListener("input", readAtBudget);

function moveCursor(event) {
  const box = byId("curve").getBoundingClientRect();
  const position = ((event.clientX - box.left) / box.width) * width;
  const share = (position - LEFT) / (width - RIGHT - LEFT);
  byId("budget").value = Math.round(Math.min(1, Math.max(0, share)) * byId("budget").max);
  readAtBudget();
}

byId("curve").addEventListener("pointermove", moveCursor);
byId("curve").addEventListener("pointerdown", moveCursor);

function redraw() {
  const shown = rows.filter((row) => !row.hidden);
  const chosen = shown.filter((row) => boxOf(row).checked);
  for (const row of rows) row.classList.toggle("selected", boxOf(row).checked);
  byId("count").textContent = `${shown.length} of ${rows.length} rows, ${chosen.length} selected`;
  selected = chosen.map(seriesOf);
  byId("nothing-selected").hidden = selected.length > 0;
  byId("drawings").hidden = selected.length === 0;
  if (selected.length === 0) return;
  width = Math.max(300, byId("curve").clientWidth);
  drawCurves(selected);
  drawHistogram(selected);
  drawLegend(selected);
  drawSheets(selected);
  readAtBudget();
}

for (const method of data.methods) byId("method").append(create("option", { value: method }, method));
byId("method").addEventListener("change", redraw);
byId("budget-kind").addEventListener("change", redraw);

// The page starts with the most robust row first. It draws that row, the last one, and the reference
// or the middle one.
const best = table.tHead.querySelector("th[data-key$=_best]");
sortBy(best, true);
const reference = rows.find((row) => "reference" in row.dataset);
const drawn = [rows[0], reference || rows[Math.floor(rows.length / 2)], rows[rows.length - 1]];
for (const row of drawn) boxOf(row).checked = true;
window.addEventListener("resize", redraw);
redraw();
document.documentElement.dataset.ready = "true";
