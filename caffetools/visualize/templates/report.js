"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  for (const button of document.querySelectorAll("[data-copy]")) {
    const code = button.parentElement.querySelector("code");
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Press Ctrl+C";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const { names, colours, points, notes } = JSON.parse(svg.dataset.chart);
    const figure = svg.closest("figure"), tip = document.createElement("div"), rule = document.createElementNS(SVG, "line");
    tip.className = "tip";
    tip.hidden = true;
    tip.setAttribute("role", "status");
    figure.append(tip);
    rule.setAttribute("class", "rule");
    rule.setAttribute("y1", "14");
    rule.setAttribute("y2", "260");
    rule.setAttribute("visibility", "hidden");
    svg.append(rule);
    const places = [...new Set(points.flat().map((point) => point[0]))].sort((a, b) => a - b);
    let at = -1;

    function show(index) {
      at = Math.max(0, Math.min(places.length - 1, index));
      const x = places[at];
      rule.setAttribute("x1", x);
      rule.setAttribute("x2", x);
      rule.setAttribute("visibility", "visible");
      tip.replaceChildren();
      const head = document.createElement("strong");
      tip.append(head);
      points.forEach((line, i) => {
        const near = line.findIndex((point) => Math.abs(point[0] - x) < 0.06);
        if (near < 0) return;
        head.textContent = line[near][2];
        const row = document.createElement("span"), mark = document.createElement("i");
        mark.className = "c" + colours[i];
        row.append(mark, names[i] + " " + line[near][3] + (notes && notes[i][near] ? " (" + notes[i][near] + ")" : ""));
        tip.append(row);
      });
      tip.hidden = false;
      const box = svg.getBoundingClientRect(), frame = figure.getBoundingClientRect();
      const left = box.left - frame.left + (x / svg.viewBox.baseVal.width) * box.width;
      tip.style.left = Math.max(0, Math.min(left + 10, frame.width - tip.offsetWidth)) + "px";
      tip.style.top = box.top - frame.top + 6 + "px";
    }

    function hide() {
      tip.hidden = true;
      rule.setAttribute("visibility", "hidden");
    }

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      let best = 0;
      places.forEach((place, i) => { if (Math.abs(place - x) < Math.abs(places[best] - x)) best = i; });
      if (places.length) show(best);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") { event.preventDefault(); show(at + 1); }
      if (event.key === "ArrowLeft") { event.preventDefault(); show(at < 0 ? places.length - 1 : at - 1); }
      if (event.key === "Escape") hide();
    });
  }
})();
