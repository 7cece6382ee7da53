"use strict";

// Values under the pointer.
for (const plot of document.querySelectorAll(".plot")) {
  const data = JSON.parse(plot.querySelector("script").textContent);
  const [left, right, top, bottom, width] = data.plot;
  const [low, high] = data.x;
  const add = (name) => {
    const part = plot.appendChild(document.createElement("div"));
    part.className = name;
    part.hidden = true;
    return part;
  };
  const cursor = add("cursor"), tip = add("tip");
  const number = (value) => Math.abs(value) >= 1000
    ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(5)));
  const clock = (seconds) => seconds >= 5400 ? `${(seconds / 3600).toFixed(2)} h`
    : seconds >= 90 ? `${(seconds / 60).toFixed(1)} min` : `${seconds.toFixed(1)} s`;

  function nearest(points, x) {
    let first = 0, last = points.length - 1;
    while (last - first > 1) {
      const middle = (first + last) >> 1;
      if (points[middle][0] < x) first = middle; else last = middle;
    }
    return Math.abs(points[first][0] - x) <= Math.abs(points[last][0] - x) ? points[first] : points[last];
  }

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect(), scale = box.width / width;
    const x = low + ((event.clientX - box.left) / scale - left) / (right - left) * (high - low);
    const shown = data.curves.filter((curve) => curve.points.length && !hidden.has(curve.name));
    const found = shown.map((curve) => [curve, nearest(curve.points, x)])
      .filter(([, point]) => Math.abs(point[0] - x) < 0.1 * (high - low));
    cursor.hidden = tip.hidden = !found.length;
    if (!found.length) return;
    const at = found.reduce((best, entry) =>
      Math.abs(entry[1][0] - x) < Math.abs(best - x) ? entry[1][0] : best, found[0][1][0]);
    tip.replaceChildren();
    const head = tip.appendChild(document.createElement("div"));
    head.textContent = data.time ? clock(at) : `${number(at)} images`;
    for (const [curve, point] of found) {
      const line = tip.appendChild(document.createElement("div"));
      line.appendChild(document.createElement("i")).className = `key ${curve.colour}`;
      line.append(`${curve.name} `);
      line.appendChild(document.createElement("b")).textContent = number(point[1]);
      if (point.length > 2) line.append(` (${number(point[2])} to ${number(point[3])})`);
      if (point[0] !== at) line.append(data.time ? ` at ${clock(point[0])}` : ` at ${number(point[0])}`);
    }
    const place = (left + (at - low) / (high - low) * (right - left)) * scale;
    Object.assign(cursor.style, {left: `${place}px`, top: `${top * scale}px`, height: `${(bottom - top) * scale}px`});
    const before = place > box.width / 2;
    Object.assign(tip.style, {
      top: `${top * scale}px`,
      left: before ? "auto" : `${place + 10}px`,
      right: before ? `${box.width - place + 10}px` : "auto",
    });
  });
  plot.addEventListener("pointerleave", () => { cursor.hidden = tip.hidden = true; });
}

// A click on a name hides that curve in all charts.
const hidden = new Set();
for (const entry of document.querySelectorAll(".entry")) {
  entry.addEventListener("click", () => {
    const name = entry.dataset.curve;
    if (!hidden.delete(name)) hidden.add(name);
    for (const part of document.querySelectorAll("[data-curve]")) {
      if (part.dataset.curve !== name) continue;
      if (part.classList.contains("entry")) part.classList.toggle("off", hidden.has(name));
      else part.style.display = hidden.has(name) ? "none" : "";
    }
  });
}

for (const button of document.querySelectorAll(".range")) {
  button.addEventListener("click", () => {
    const all = button.closest(".chart").classList.toggle("all");
    button.textContent = all ? "closer" : "whole range";
  });
}

for (const image of document.querySelectorAll(".strip img")) {
  image.addEventListener("click", () => image.classList.toggle("large"));
}
