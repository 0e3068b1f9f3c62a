"use strict";
(() => {
  const { points, classes, colours } = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg", plot = document.getElementById("plot"), key = document.getElementById("key");
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 960 640");
  plot.append(svg);
  const shapes = ["M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z", "M-4.5-4.5h9v9h-9z", "M0-6L5.5 4.5h-11z", "M0 6L5.5-4.5h-11z", "M0-6.5L5.5 0L0 6.5L-5.5 0z"];
  const shape = (label) => shapes[Math.floor(label / colours) % shapes.length];
  function mark(label) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", shape(label));
    path.setAttribute("class", "k" + (label % colours));
    return path;
  }
  const card = document.createElement("div");
  card.id = "card";
  card.hidden = true;
  plot.append(card);
  const marks = points.map((point) => {
    const path = mark(point.label);
    path.setAttribute("transform", `translate(${30 + 900 * point.x} ${30 + 580 * point.y})`);
    if (point.label !== point.predicted) { path.setAttribute("stroke", "currentColor"); path.setAttribute("stroke-width", "1.5"); }
    path.addEventListener("pointerenter", () => show(point));
    path.addEventListener("pointerleave", () => { card.hidden = true; });
    svg.append(path);
    return path;
  });
  function show(point) {
    card.replaceChildren();
    if (point.image) { const image = document.createElement("img"); image.src = point.image; image.alt = ""; card.append(image); }
    const lines = [classes[point.label], point.name];
    if (point.label !== point.predicted) lines.splice(1, 0, "predicted: " + classes[point.predicted]);
    for (const text of lines) { const line = document.createElement("p"); line.textContent = text; card.append(line); }
    card.hidden = false;
    const box = plot.getBoundingClientRect(), x = (30 + 900 * point.x) / 960 * box.width, y = (30 + 580 * point.y) / 640 * box.height;
    card.style.left = Math.min(x + 12, box.width - card.offsetWidth - 4) + "px";
    card.style.top = Math.max(4, Math.min(y + 12, box.height - card.offsetHeight - 4)) + "px";
  }
  classes.forEach((name, label) => {
    const item = document.createElement("li"), button = document.createElement("button"), icon = document.createElementNS(SVG, "svg");
    icon.setAttribute("viewBox", "-7 -7 14 14");
    icon.append(mark(label));
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(icon, name);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      points.forEach((point, i) => { if (point.label === label) marks[i].style.display = on ? "" : "none"; });
    });
    item.append(button);
    key.append(item);
  });
})();
