"use strict";
// Elements, axes and scales of charts.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 320, LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 44;
let width = 560; // of a chart, in pixels

function create(name, attributes = {}, text = null) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

function draw(parent, name, attributes, text = null) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
}

function ticksOf(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-9); k++) ticks.push(k * step);
  return ticks;
}

function logTicksOf(low, high) {
  const factors = high / low > 300 ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}

const short = (number) => String(Number(number.toPrecision(3)));

function panel(svg, xTicks, yTicks, x, y, xName, yName) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  for (const tick of yTicks) {
    draw(svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) });
    draw(svg, "text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick));
  }
  for (const tick of xTicks) {
    draw(svg, "line", { class: "grid", x1: x(tick), x2: x(tick), y1: TOP, y2: HEIGHT - BOTTOM });
    draw(svg, "text", { x: x(tick), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, short(tick));
  }
  const bottom = HEIGHT - BOTTOM;
  draw(svg, "line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: bottom, y2: bottom });
  const middle = (LEFT + width - RIGHT) / 2;
  draw(svg, "text", { x: middle, y: HEIGHT - 6, "text-anchor": "middle" }, xName);
  const turned = { transform: `translate(13 ${(TOP + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" };
  draw(svg, "text", turned, yName);
}

function scale(low, high, from, to) {
  const factor = (to - from) / (high - low || 1);
  return (value) => from + (value - low) * factor;
}

const round = (number) => Math.round(number * 100) / 100;
