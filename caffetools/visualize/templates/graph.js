"use strict";
(() => {
  const canvas = document.getElementById("canvas");
  const views = [...canvas.querySelectorAll("svg")].map((svg) => {
    const name = svg.id.slice(5);
    const boxes = JSON.parse(document.getElementById("data-" + name).textContent);
    const nodes = [...svg.querySelectorAll("g.b")];
    nodes.forEach((node, i) => {
      node.setAttribute("tabindex", "0");
      node.setAttribute("role", "button");
      // The button is named by its text; the full names are in the details.
      node.querySelector("title").remove();
      node.addEventListener("click", () => select(i));
      node.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(i); }
      });
    });
    return { svg, boxes, nodes, width: +svg.dataset.width + 48, height: +svg.dataset.height + 48 };
  });
  let view = views[0], scale = 1, hits = [], at = -1;
  const details = document.getElementById("details"), search = document.getElementById("search"), found = document.getElementById("found");
  const fold = document.getElementById("fold");

  function zoom(next) {
    const middle = (canvas.scrollTop + canvas.clientHeight / 2) / scale;
    scale = Math.min(4, Math.max(0.05, next));
    for (const each of views) {
      each.svg.setAttribute("width", each.width * scale);
      each.svg.setAttribute("height", each.height * scale);
    }
    canvas.scrollTop = middle * scale - canvas.clientHeight / 2;
  }
  const fit = () => zoom(Math.min(1.25, canvas.clientWidth / view.width));

  function element(tag, text) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function select(index) {
    view.nodes.forEach((node, i) => node.classList.toggle("on", i === index));
    const box = view.boxes[index];
    details.replaceChildren();
    if (box.folded) {
      details.append(element("h2", box.folded + (box.folded > 1 ? " repeated blocks" : " repeated block")));
      const open = element("button", "Show them");
      open.type = "button";
      open.addEventListener("click", () => { unfold(box.rows[0].layer); });
      details.append(open, element("p", box.rows.map((row) => row.layer).join(", ")));
      return;
    }
    for (const row of box.rows) {
      const list = element("dl");
      const add = (name, value) => { if (value) list.append(element("dt", name), element("dd", value)); };
      add("Type", row.type);
      add("Output", row.shapes.filter(Boolean).join(", "));
      add("Parameters", row.parameters ? row.parameters.toLocaleString("en") : "");
      add("MACs", row.macs ? row.macs.toLocaleString("en") : "");
      add("Note", row.note);
      details.append(element("h2", row.layer), list, element("pre", row.text.trim()));
    }
  }

  function center(node) {
    const box = node.getBoundingClientRect(), frame = canvas.getBoundingClientRect();
    canvas.scrollBy(box.left + box.width / 2 - frame.left - frame.width / 2, box.top + box.height / 2 - frame.top - frame.height / 2);
  }

  function show(next) {
    view.svg.setAttribute("hidden", "");
    view = next;
    view.svg.removeAttribute("hidden");
    if (fold) fold.setAttribute("aria-pressed", String(view === views[0]));
    find();
  }

  function unfold(layer) {
    show(views[1]);
    const index = view.boxes.findIndex((box) => box.rows.some((row) => row.layer === layer));
    select(index);
    center(view.nodes[index]);
    view.nodes[index].focus({ preventScroll: true });
  }

  function find() {
    const words = search.value.trim().toLowerCase();
    hits = [];
    view.boxes.forEach((box, i) => {
      const hit = words !== "" && box.rows.some((row) => row.layer.toLowerCase().includes(words) || row.type.toLowerCase().includes(words));
      view.nodes[i].classList.toggle("hit", hit);
      if (hit) hits.push(i);
    });
    at = -1;
    found.textContent = words === "" ? "" : hits.length + (hits.length === 1 ? " box" : " boxes");
  }

  function next(step) {
    if (!hits.length) return;
    at = (at + step + hits.length) % hits.length;
    select(hits[at]);
    center(view.nodes[hits[at]]);
    found.textContent = at + 1 + " of " + hits.length;
  }

  search.addEventListener("input", find);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") next(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") { search.value = ""; find(); canvas.focus(); }
  });
  if (fold) fold.addEventListener("click", () => show(view === views[0] ? views[1] : views[0]));
  document.getElementById("in").addEventListener("click", () => zoom(scale * 1.25));
  document.getElementById("out").addEventListener("click", () => zoom(scale / 1.25));
  document.getElementById("fit").addEventListener("click", fit);
  document.addEventListener("keydown", (event) => {
    if (event.target === search || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); search.focus(); }
    if (event.key === "+" || event.key === "=") zoom(scale * 1.25);
    if (event.key === "-") zoom(scale / 1.25);
    if (event.key === "0") fit();
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(scale * (event.deltaY < 0 ? 1.1 : 1 / 1.1));
  }, { passive: false });
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button === 0 && !event.target.closest("g.b")) drag = [event.clientX, event.clientY];
  });
  window.addEventListener("pointermove", (event) => {
    if (!drag) return;
    canvas.scrollBy(drag[0] - event.clientX, drag[1] - event.clientY);
    drag = [event.clientX, event.clientY];
  });
  window.addEventListener("pointerup", () => { drag = null; });
  fit();
  canvas.scrollTop = 0;
})();
