"use strict";
(() => {
  const { facts, token } = JSON.parse(document.getElementById("facts").textContent);
  const get = (id) => document.getElementById(id);
  const canvas = get("input"), context = canvas.getContext("2d", { willReadFrequently: true }), video = get("video");
  const blob = get("blob"), unit = get("unit"), method = get("method");
  // Counts the pictures, videos and webcams that were chosen: an answer about an earlier one is not shown.
  let source = 0;
  let ended = false, busy = false, again = false, frozen = false, last = null, sheet = null, times = [], files = [], at = -1;
  const view = { gamma: 1, common: false, back: false, crop: false, colour: false, zoom: 0, timing: false, origin: null, tops: "" };
  history.replaceState(null, "", "/");
  // Two pages may be open at once: each has its own last picture.
  const page = crypto.randomUUID();
  let seen = null;

  // Asks the server. Where it has ended, the page says so, and the webcam and videos stop.
  async function reach(address, options = {}) {
    try {
      return await fetch(address, { ...options, headers: { "X-Token": token } });
    } catch {
      stop();
      throw new Error("The server does not answer: it was ended. Start caffetools visualize live again and open the new address.");
    }
  }

  async function ask(path, body, more = {}) {
    const query = new URLSearchParams({ page, blob: blob.value, unit: unit.value, ...more }), of = source;
    const response = await reach(path + "?" + query, { method: body === undefined ? "GET" : "POST", body });
    const answer = await response.json();
    if (path === "/api/frame" && of !== source) return null;
    if (path !== "/api/run" || answer.error) get("error").textContent = answer.error || "";
    if (answer.error) throw new Error(answer.error);
    return answer;
  }

  // The unit that is explained: the selected one, or the one that was kept.
  const origin = () => view.origin || { blob: blob.value, unit: +unit.value };
  const backward = () => (facts.backward.includes(method.value) ? method.value : facts.backward[0]);
  function looks() {
    const from = origin(), query = { gamma: view.gamma, common: +view.common };
    return view.back ? { ...query, back: backward(), from: from.blob, of: from.unit } : query;
  }

  function tell() {
    const from = origin(), notes = [];
    if (view.back) notes.push(backward() + " of unit " + from.unit + " of " + from.blob);
    if (view.gamma !== 1) notes.push("gamma " + view.gamma);
    if (view.common) notes.push("channels scaled alike");
    get("view").textContent = notes.join(", ");
    get("origin").textContent = view.origin ? "of unit " + from.unit + " of " + from.blob : "";
    const shown = [null, get("unit-map"), get("explanation")][view.zoom], zoomed = get("zoomed");
    zoomed.hidden = !shown || !shown.getAttribute("src");
    document.querySelector(".sheet").hidden = !zoomed.hidden;
    if (!zoomed.hidden) { zoomed.src = shown.src; zoomed.alt = shown.alt + ", enlarged"; }
  }

  const units = () => facts.blobs.find((each) => each.name === blob.value).units;

  function mark() {
    if (!sheet) return;
    const u = +unit.value, spot = get("mark").style;
    get("mark").hidden = u >= 400;
    // The sheet is as wide as its place: positions are shares of its own size.
    const across = 100 / sheet.columns, down = 100 / sheet.rows;
    spot.left = (u % sheet.columns) * across + "%";
    spot.top = Math.floor(u / sheet.columns) * down + "%";
    spot.width = across + "%";
    spot.height = down + "%";
  }

  async function send() {
    if (!last) return;
    if (busy) { again = true; return; }
    busy = true;
    try {
      const began = performance.now();
      const answer = await ask("/api/frame", last, looks());
      if (answer) await show(answer, performance.now() - began);
    } catch (error) {
      get("error").textContent = error.message;
    }
    busy = false;
    if (again) { again = false; send(); }
  }

  async function show(answer, took) {
    sheet = { columns: answer.columns, rows: answer.rows };
    get("sheet").src = answer.sheet;
    get("unit-map").src = answer.unit;
    get("value").textContent = answer.value === null ? "not a number: the net gives NaN or infinite values" : "largest value " + answer.value.toPrecision(4);
    get("predictions").replaceChildren(...answer.predictions.map(([name, share]) => {
      const row = document.createElement("li"), bar = document.createElement("i");
      if (share !== null) bar.style.width = Math.max(0, Math.min(100, 100 * share)) + "%";
      row.append(name, document.createElement("span"), bar);
      row.children[0].textContent = share === null ? "NaN" : share >= 0 && share <= 1 ? (100 * share).toFixed(1) + "%" : share.toPrecision(4);
      return row;
    }));
    mark();
    const now = performance.now();
    times = [...times.filter((time) => now - time < 2000), now];
    get("fps").textContent = times.length > 2 ? (((times.length - 1) * 1000) / (now - times[0])).toFixed(1) + " frames/s" : "";
    if (view.timing) get("fps").textContent += " " + took.toFixed(0) + " ms";
    tell();
    if (get("always").checked) await explain();
  }

  function paint(image, width, height, crop) {
    // Without a crop the whole picture is resized, as the net's preprocessing does.
    const shape = facts.size[0] / facts.size[1], [w, h] = crop ? [Math.min(width, height * shape), Math.min(height, width / shape)] : [width, height];
    canvas.width = Math.round(Math.min(w, 480, (480 * w) / h)) || 1;
    canvas.height = Math.round((h * canvas.width) / w) || 1;
    context.drawImage(image, (width - w) / 2, (height - h) / 2, w, h, 0, 0, canvas.width, canvas.height);
  }

  const encoded = () => new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));

  async function draw(image, width, height, crop = false, file = null) {
    const of = source;
    paint(image, width, height, crop);
    const data = file || (await encoded());
    if (of !== source) return;
    last = data;
    await send();
  }

  async function picture(file) {
    const of = source, bitmap = await createImageBitmap(file);
    // The file itself where it can be read: then the net sees exactly what its preprocessing makes of it.
    const whole = /jpeg|png/.test(file.type) && !view.crop && file.size < 16e6;
    if (of === source) await draw(bitmap, bitmap.width, bitmap.height, view.crop, whole ? file : null);
  }

  // Shows a picture of those that the page was given, or the one after the last one shown.
  async function go(index) {
    if (!files.length) return;
    at = (index + files.length) % files.length;
    stop();
    const of = source;
    let file;
    try {
      file = await files[at]();
    } catch (error) {
      get("error").textContent = error.message;
      return;
    }
    if (of !== source) return;
    get("name").textContent = file.name + (files.length > 1 ? " (" + (at + 1) + " of " + files.length + ")" : "");
    try {
      await picture(file);
    } catch (error) {
      get("error").textContent = file.name + ": not a picture (" + error.message + ")";
    }
  }

  function list(made) {
    files = made;
    for (const id of ["before", "after"]) get(id).disabled = files.length < 2;
  }

  async function served(index) {
    const response = await reach("/api/picture?index=" + index);
    if (!response.ok) throw new Error((await response.json()).error);
    const data = await response.blob(), name = decodeURIComponent(response.headers.get("X-Name"));
    return new File([data], name, { type: /\.png$/i.test(name) ? "image/png" : /\.jpe?g$/i.test(name) ? "image/jpeg" : "" });
  }

  // Shows the video's frames one after the other, as fast as the server answers, until something else is chosen.
  async function play() {
    const of = source;
    await video.play();
    while (of === source) {
      if (!frozen && !busy && video.readyState >= 2) await draw(video, video.videoWidth, video.videoHeight);
      await new Promise(requestAnimationFrame);
    }
  }

  function stop() {
    source += 1;
    again = false;
    times = [];
    get("fps").textContent = "";
    if (video.srcObject) video.srcObject.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    if (video.src) URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    get("webcam").setAttribute("aria-pressed", "false");
  }

  async function open(chosen) {
    const file = chosen[0];
    if (!file) return;
    if (!file.type.startsWith("video/")) {
      list([...chosen].map((each) => async () => each));
      await go(0);
      return;
    }
    stop();
    const of = source;
    try {
      get("name").textContent = file.name;
      video.src = URL.createObjectURL(file);
      video.loop = true;
      await play();
    } catch (error) {
      if (of !== source) return;
      stop();
      get("error").textContent = file.name + ": the browser cannot play this video (" + error.message + ")";
    }
  }

  async function webcam() {
    if (video.srcObject) { stop(); await go(Math.max(0, at)); return; }
    stop();
    const of = source;
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640 } });
      if (of !== source) { stream.getTracks().forEach((track) => track.stop()); return; }
      video.srcObject = stream;
      get("webcam").setAttribute("aria-pressed", "true");
      get("name").textContent = "";
      await play();
    } catch (error) {
      if (of === source) get("error").textContent = "The webcam cannot be opened: " + error.message;
    }
  }

  async function explain() {
    const from = origin();
    get("explanation").src = (await ask("/api/explain", undefined, { method: method.value, blob: from.blob, unit: from.unit, colour: +view.colour })).image;
    tell();
  }
  async function slow(button, work) {
    button.disabled = true;
    try { await work(); } catch (error) { get("error").textContent = error.message; }
    button.disabled = false;
  }
  const synthesize = () => slow(get("synthesize"), async () => { get("synthesized").src = (await ask("/api/synthesize")).image; });
  const top = () => slow(get("top"), async () => {
    const of = blob.value, { images } = await ask("/api/top");
    view.tops = of;
    get("tops").replaceChildren(...images.map((src, i) => { const image = document.createElement("img"); image.src = src; image.alt = "top picture " + (i + 1); return image; }));
  });

  function forgetTop() { get("tops").replaceChildren(); view.tops = ""; }

  function choose(next) {
    unit.value = Math.max(0, Math.min(units() - 1, Math.round(next) || 0));
    get("synthesized").removeAttribute("src");
    if (!view.origin) get("explanation").removeAttribute("src");
    // Those of another unit of the same blob are known already.
    if (view.tops === blob.value) top();
    else forgetTop();
    mark();
    tell();
    send();
  }

  function step(by) {
    blob.selectedIndex = Math.max(0, Math.min(blob.length - 1, blob.selectedIndex + by));
    choose(0);
  }

  function always(on) { get("always").checked = on; if (on) send(); else get("explanation").removeAttribute("src"); tell(); }

  // Explains each frame by the next of the methods with one backward pass, then not any more.
  function cycle() {
    const next = get("always").checked ? facts.backward.indexOf(method.value) + 1 : 0;
    if (next < facts.backward.length) method.value = facts.backward[next];
    always(next < facts.backward.length);
  }

  function reset() {
    Object.assign(view, { gamma: 1, common: false, back: false, zoom: 0, origin: null });
    always(false);
    blob.selectedIndex = 0;
    choose(0);
  }

  async function quit() {
    ended = true;
    stop();
    await reach("/api/quit", { method: "POST" });
    document.body.replaceChildren("The server has stopped; this page can be closed.");
  }

  blob.addEventListener("change", () => choose(0));
  unit.addEventListener("change", () => choose(+unit.value));
  method.addEventListener("change", () => explain().catch(() => {}));
  get("explain").addEventListener("click", () => slow(get("explain"), explain));
  get("synthesize").addEventListener("click", synthesize);
  get("top").addEventListener("click", top);
  get("before").addEventListener("click", () => go(at - 1));
  get("after").addEventListener("click", () => go(at + 1));
  get("always").addEventListener("change", () => always(get("always").checked));
  get("webcam").addEventListener("click", webcam);
  get("freeze").addEventListener("click", () => { frozen = !frozen; get("freeze").setAttribute("aria-pressed", String(frozen)); });
  get("help").addEventListener("click", () => { get("keys").hidden = !get("keys").hidden; get("help").setAttribute("aria-expanded", String(!get("keys").hidden)); });
  get("file").addEventListener("change", (event) => open(event.target.files));
  get("sheet").addEventListener("click", (event) => {
    if (!sheet) return;
    const box = event.target.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * sheet.rows), column = Math.floor(((event.clientX - box.left) / box.width) * sheet.columns);
    choose(row * sheet.columns + column);
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => { event.preventDefault(); open(event.dataTransfer.files); });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || (event.target instanceof Element && event.target.matches("select, input"))) return;
    const columns = sheet ? sheet.columns : 1, u = +unit.value, press = (id) => () => get(id).click();
    const change = (name, value) => () => { view[name] = value; tell(); send(); };
    const moves = { ArrowLeft: -1, j: -1, ArrowRight: 1, l: 1, ArrowUp: -columns, i: -columns, ArrowDown: columns, k: columns, J: -4, L: 4, I: -4 * columns, K: 4 * columns };
    const actions = {
      c: webcam, w: () => go(at - 1), e: () => go(at + 1), f: press("freeze"), h: press("help"), x: press("explain"), q: quit, Escape: reset, b: cycle,
      u: () => step(-1), U: () => step(-1), "[": () => step(-1), o: () => step(1), O: () => step(1), "]": () => step(1),
      n: () => { method.selectedIndex = (method.selectedIndex + 1) % method.length; explain().catch(() => {}); },
      m: () => { view.colour = !view.colour; explain().catch(() => {}); },
      d: () => { view.origin = view.origin ? null : origin(); tell(); send(); },
      a: change("back", !view.back), t: change("gamma", { 1: 0.5, 0.5: 0.25, 0.25: 1 }[view.gamma]), T: change("common", !view.common),
      z: change("zoom", (view.zoom + 1) % 3), 5: change("timing", !view.timing), 0: () => { view.crop = !view.crop; if (!video.src && !video.srcObject) go(at); },
      8: () => { get("predictions").hidden = !get("predictions").hidden; },
      9: () => { if (view.tops) forgetTop(); else press("top")(); },
      s: () => { if (get("synthesized").getAttribute("src")) get("synthesized").removeAttribute("src"); else synthesize(); },
    };
    for (const [key, by] of Object.entries(moves)) actions[key] = () => choose(u + by);
    if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
  });

  const NAMES = { loss: "Loss", accuracy: "Accuracy", lr: "Learning rate" };
  function curves(lines) {
    const panels = Object.groupBy ? Object.groupBy(lines, (line) => line.panel) : lines.reduce((all, line) => ({ ...all, [line.panel]: [...(all[line.panel] || []), line] }), {});
    get("curves").replaceChildren(...Object.entries(panels).map(([name, group]) => {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), x = group.flatMap((line) => line.x), y = group.flatMap((line) => line.y).filter(Number.isFinite);
      const x1 = Math.max(...x, 1), y0 = Math.min(...y, 0), y1 = Math.max(...y, 1e-9);
      svg.setAttribute("viewBox", "0 0 300 150");
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", name + ": " + group.map((line) => line.phase + " " + line.name + " " + line.y[line.y.length - 1]).join(", "));
      const caption = document.createElement("p"), figure = document.createElement("div");
      caption.className = "note";
      caption.append(NAMES[name] || name);
      group.forEach((line, i) => {
        const path = document.createElementNS(svg.namespaceURI, "path"), key = document.createElement("i"), end = line.y[line.y.length - 1], last = end === null ? "NaN" : end.toPrecision(3);
        const known = line.x.map((value, k) => [value, line.y[k]]).filter(([, y]) => y !== null);
        if (known.length) path.setAttribute("d", "M" + known.map(([value, y]) => (290 * value) / x1 + 5 + " " + (138 - (128 * (y - y0)) / (y1 - y0))).join("L"));
        path.style.stroke = key.style.background = "var(--line-" + (i % 5) + ")";
        svg.append(path);
        caption.append(" ", key, (line.phase === "lr" ? "" : " " + line.phase + " " + line.name) + " " + last);
      });
      figure.append(svg, caption);
      return figure;
    }));
  }

  async function follow() {
    if (ended) return;
    try {
      const answer = await ask("/api/run", undefined, seen === null ? {} : { seen });
      if (ended) return;
      seen = answer.iteration;
      curves(answer.lines);
      if (answer.iteration !== null) get("iteration").textContent = "weights of iteration " + answer.iteration;
      if (answer.filters) { get("filters").src = answer.filters; get("t-filters").hidden = false; }
      if (answer.changed) { forgetTop(); send(); }
    } catch (error) {
      if (ended) return;
      get("error").textContent = error.message;
    }
    setTimeout(follow, 3000);
  }
  if (facts.hasRun) follow();
  list(Array.from({ length: facts.pictures }, (_, index) => () => served(index)));
  go(0);
  window.caffetoolsLive = { picture, choose, open };
})();
