"use strict";
(() => {
  const canvas = document.getElementById("canvas");
  const { rows, types } = JSON.parse(document.getElementById("net").textContent);
  // A link names a layer by its place in the net; the rows are in the order of the boxes.
  const place = new Map(rows.map((row, i) => [row.index, i]));
  const views = [...canvas.querySelectorAll("svg")].map((svg) => {
    const name = svg.id.slice(5);
    let first = 0;
    const boxes = JSON.parse(document.getElementById("data-" + name).textContent).map(([folded, count]) => {
      const box = { folded, first, rows: rows.slice(first, first + count) };
      first += count;
      return box;
    });
    const nodes = [...svg.querySelectorAll("g.b")];
    nodes.forEach((node, i) => {
      node.setAttribute("tabindex", "0");
      node.setAttribute("role", "button");
      // The button is named by its text; the full names are in the details.
      node.querySelector("title").remove();
      node.addEventListener("click", () => select(i));
      node.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(i); }
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (step && nodes[i + step]) { event.preventDefault(); reach(i + step); }
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

  function button(text, action) {
    const made = element("button", text);
    made.type = "button";
    made.addEventListener("click", action);
    return made;
  }

  function list(pairs) {
    const made = element("dl");
    for (const [name, value, quiet] of pairs) {
      if (!value) continue;
      const term = element("dt", name), text = element("dd", value);
      if (quiet) { text.className = "quiet"; text.append(" (default)"); }
      made.append(term, text);
    }
    return made;
  }

  function part(title, ...content) {
    const made = element("section");
    made.append(element("h3", title), ...content);
    details.append(made);
  }

  // Blobs with their shapes, and the layers at their other ends.
  function links(blobs, what) {
    const made = element("ul");
    for (const [blob, shape, layers] of blobs) {
      const item = element("li");
      item.append(element("strong", blob));
      if (shape) item.append(" " + shape);
      const others = layers.map((index) => place.get(index));
      others.forEach((row, i) => {
        const open = button(rows[row].layer, () => jump(row));
        open.className = "link";
        item.append(i ? ", " : " " + what + " ", open);
      });
      made.append(item);
    }
    return made;
  }

  function weights(blobs) {
    const made = element("ul");
    for (const [name, shape, statistics, values] of blobs) {
      const item = element("li");
      item.append(element("strong", name), " " + shape);
      if (statistics) item.append(element("p", statistics));
      if (values) item.append(element("code", values));
      made.append(item);
    }
    return made;
  }

  function select(index) {
    view.nodes.forEach((node, i) => node.classList.toggle("on", i === index));
    const box = view.boxes[index];
    details.replaceChildren();
    details.scrollTop = 0;
    if (!box) return overview();
    if (box.folded) {
      details.append(element("h2", box.folded + (box.folded > 1 ? " repeated blocks" : " repeated block")));
      details.append(button("Show them", () => jump(box.first)), element("p", box.rows.map((row) => row.layer).join(", ")));
      return;
    }
    for (const row of box.rows) {
      details.append(element("h2", row.layer), list([
        ["Type", row.type],
        ["Parameters", row.parameters ? row.parameters.toLocaleString("en") : ""],
        ["MACs", row.macs ? row.macs.toLocaleString("en") : ""],
        ["Note", row.note],
      ]));
      if (row.settings.length) part("Settings", list(row.settings));
      if (row.inputs.length) part("Inputs", links(row.inputs, "from"));
      if (row.outputs.length) part("Outputs", links(row.outputs, "to"));
      if (row.blobs.length) part("Weights", weights(row.blobs));
      if (types[row.type]) part("About " + row.type, element("p", types[row.type]));
      const source = element("details");
      source.append(element("summary", "Prototxt"), element("pre", row.text));
      details.append(source);
    }
  }

  // What is shown while no layer is selected: what goes into the net and what comes out.
  function overview() {
    details.append(element("h2", document.querySelector("h1").textContent));
    const inputs = rows.filter((row) => !row.inputs.length).flatMap((row) => row.outputs);
    const outputs = rows.flatMap((row) => row.outputs).filter(([, , layers]) => !layers.length);
    if (inputs.length) part("Inputs", links(inputs, "to"));
    if (outputs.length) part("Outputs", links(outputs, ""));
    const hint = element("p", "Select a layer to see its settings. Keys: ");
    hint.className = "hint";
    for (const [keys, words] of [[["/"], "search"], [["Enter"], "next match"], [["↑", "↓"], "layer before and after"], [["Esc"], "this page"], [["+", "−"], "zoom"], [["0"], "fit"]]) {
      keys.forEach((key) => hint.append(element("kbd", key), " "));
      hint.append(words + (words === "fit" ? "." : ", "));
    }
    details.append(hint);
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

  function reach(index) {
    select(index);
    center(view.nodes[index]);
    view.nodes[index].focus({ preventScroll: true });
  }

  // Select the box of a row, unfolding the blocks where it is hidden in some.
  function jump(row) {
    const holds = (box) => row >= box.first && row < box.first + box.rows.length;
    if (view.boxes.find(holds).folded) show(views[views.length - 1]);
    reach(view.boxes.findIndex(holds));
  }

  function find() {
    const words = search.value.trim().toLowerCase();
    hits = [];
    view.boxes.forEach((box, i) => {
      const hit = words !== "" && box.rows.some((row) => [row.layer, row.type, ...row.outputs.map(([blob]) => blob)].some((text) => text.toLowerCase().includes(words)));
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
    if (event.key === "Escape") select(-1);
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
  select(-1);
})();
