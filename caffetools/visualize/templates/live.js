"use strict";
(() => {
  const { facts, token } = JSON.parse(document.getElementById("facts").textContent);
  const get = (id) => document.getElementById(id);
  const canvas = get("input"), context = canvas.getContext("2d", { willReadFrequently: true }), video = get("video");
  const blob = get("blob"), unit = get("unit"), method = get("method");
  let busy = false, again = false, frozen = false, last = null, sheet = null, times = [];
  history.replaceState(null, "", "/");

  async function ask(path, body, more = {}) {
    const query = new URLSearchParams({ blob: blob.value, unit: unit.value, ...more });
    const response = await fetch(path + "?" + query, { method: body === undefined ? "GET" : "POST", body, headers: { "X-Token": token } });
    const answer = await response.json();
    get("error").textContent = answer.error || "";
    if (answer.error) throw new Error(answer.error);
    return answer;
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
      const answer = await ask("/api/frame", last);
      sheet = { columns: answer.columns, rows: answer.rows };
      get("sheet").src = answer.sheet;
      get("unit-map").src = answer.unit;
      get("value").textContent = "largest value " + answer.value.toPrecision(4);
      get("predictions").replaceChildren(...answer.predictions.map(([name, share]) => {
        const row = document.createElement("li"), bar = document.createElement("i");
        bar.style.width = Math.max(0, Math.min(100, 100 * share)) + "%";
        row.append(name, document.createElement("span"), bar);
        row.children[0].textContent = share >= 0 && share <= 1 ? (100 * share).toFixed(1) + "%" : share.toPrecision(4);
        return row;
      }));
      mark();
      const now = performance.now();
      times = [...times.filter((time) => now - time < 2000), now];
      get("fps").textContent = times.length > 2 ? (((times.length - 1) * 1000) / (now - times[0])).toFixed(1) + " frames/s" : "";
      if (get("always").checked) await explain();
    } catch (error) {
      get("error").textContent = error.message;
    }
    busy = false;
    if (again) { again = false; send(); }
  }

  function draw(source, width, height) {
    // The whole picture is resized, as the net's preprocessing does.
    const keep = Math.max(1, 480 / Math.max(width, height));
    canvas.width = Math.round(Math.min(width, 480) * Math.min(1, keep)) || 1;
    canvas.height = Math.round((height * canvas.width) / width) || 1;
    context.drawImage(source, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob((data) => { last = data; resolve(send()); }, "image/jpeg", 0.92));
  }

  async function picture(file) {
    const bitmap = await createImageBitmap(file);
    await draw(bitmap, bitmap.width, bitmap.height);
  }

  function loop() {
    if (video.srcObject === null && !video.src) return;
    if (!frozen && !busy && video.readyState >= 2) draw(video, video.videoWidth, video.videoHeight);
    requestAnimationFrame(loop);
  }

  function stop() {
    if (video.srcObject) video.srcObject.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    if (video.src) URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    get("webcam").setAttribute("aria-pressed", "false");
  }

  async function open(file) {
    if (!file) return;
    stop();
    const isVideo = file.type.startsWith("video/");
    try {
      if (isVideo) {
        video.src = URL.createObjectURL(file);
        video.loop = true;
        await video.play();
        loop();
      } else {
        await picture(file);
      }
    } catch (error) {
      stop();
      get("error").textContent = file.name + (isVideo ? ": the browser cannot play this video (" : ": not a picture (") + error.message + ")";
    }
  }

  async function webcam() {
    if (video.srcObject) { stop(); return; }
    stop();
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: 640 } });
      await video.play();
      get("webcam").setAttribute("aria-pressed", "true");
      loop();
    } catch (error) {
      get("error").textContent = "The webcam cannot be opened: " + error.message;
    }
  }

  async function explain() { get("explanation").src = (await ask("/api/explain", undefined, { method: method.value })).image; }
  async function slow(button, work) {
    button.disabled = true;
    try { await work(); } catch (error) { get("error").textContent = error.message; }
    button.disabled = false;
  }
  const synthesize = () => slow(get("synthesize"), async () => { get("synthesized").src = (await ask("/api/synthesize")).image; });
  const top = () => slow(get("top"), async () => {
    const { images } = await ask("/api/top");
    get("tops").replaceChildren(...images.map((src, i) => { const image = document.createElement("img"); image.src = src; image.alt = "top picture " + (i + 1); return image; }));
  });

  function choose(next) {
    unit.value = Math.max(0, Math.min(units() - 1, Math.round(next) || 0));
    for (const id of ["explanation", "synthesized"]) get(id).removeAttribute("src");
    get("tops").replaceChildren();
    mark();
    send();
  }

  blob.addEventListener("change", () => choose(0));
  unit.addEventListener("change", () => choose(+unit.value));
  method.addEventListener("change", () => explain().catch(() => {}));
  get("explain").addEventListener("click", () => slow(get("explain"), explain));
  get("synthesize").addEventListener("click", synthesize);
  get("top").addEventListener("click", top);
  get("webcam").addEventListener("click", webcam);
  get("freeze").addEventListener("click", () => { frozen = !frozen; get("freeze").setAttribute("aria-pressed", String(frozen)); });
  get("help").addEventListener("click", () => { get("keys").hidden = !get("keys").hidden; get("help").setAttribute("aria-expanded", String(!get("keys").hidden)); });
  get("file").addEventListener("change", (event) => open(event.target.files[0]));
  get("sheet").addEventListener("click", (event) => {
    if (!sheet) return;
    const box = event.target.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * sheet.rows), column = Math.floor(((event.clientX - box.left) / box.width) * sheet.columns);
    choose(row * sheet.columns + column);
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => { event.preventDefault(); open(event.dataTransfer.files[0]); });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || (event.target instanceof Element && event.target.matches("select, input"))) return;
    const columns = sheet ? sheet.columns : 1, u = +unit.value;
    const step = (by) => { blob.selectedIndex = Math.max(0, Math.min(blob.length - 1, blob.selectedIndex + by)); choose(0); };
    const actions = {
      w: webcam, f: () => get("freeze").click(), h: () => get("help").click(), e: () => get("explain").click(), t: () => get("top").click(), s: synthesize,
      m: () => { method.selectedIndex = (method.selectedIndex + 1) % method.length; explain().catch(() => {}); },
      "[": () => step(-1), "]": () => step(1),
      ArrowLeft: () => choose(u - 1), ArrowRight: () => choose(u + 1), ArrowUp: () => choose(u - columns), ArrowDown: () => choose(u + columns),
    };
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
        const path = document.createElementNS(svg.namespaceURI, "path"), key = document.createElement("i"), last = (line.y[line.y.length - 1] ?? 0).toPrecision(3);
        path.setAttribute("d", "M" + line.x.map((value, k) => (290 * value) / x1 + 5 + " " + (138 - (128 * (line.y[k] - y0)) / (y1 - y0))).join("L"));
        path.style.stroke = key.style.background = "var(--line-" + (i % 5) + ")";
        svg.append(path);
        caption.append(" ", key, (line.phase === "lr" ? "" : " " + line.phase + " " + line.name) + " " + last);
      });
      figure.append(svg, caption);
      return figure;
    }));
  }

  async function follow() {
    try {
      const answer = await ask("/api/run");
      curves(answer.lines);
      if (answer.iteration !== null) get("iteration").textContent = "weights of iteration " + answer.iteration;
      if (answer.filters) { get("filters").src = answer.filters; get("t-filters").hidden = false; }
      if (answer.changed) send();
    } catch (error) {
      get("error").textContent = error.message;
    }
    setTimeout(follow, 3000);
  }
  if (facts.hasRun) follow();
  window.caffetoolsLive = { picture, choose, open };
})();
