"use strict";
const $ = (id) => document.getElementById(id);
const LAST_REQUESTS = 12;
const state = { model: null, source: "draw", file: null, strokes: [], history: [] };

// The drawing: strokes of points in canvas pixels, drawn anew on every change.
const canvas = $("canvas"), pen = canvas.getContext("2d");
let stroke = null;
let cursor = { x: 192, y: 192, shown: false };

function paint() {
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.lineCap = pen.lineJoin = "round";
  pen.strokeStyle = "#000";
  for (const { width, points } of state.strokes) {
    pen.lineWidth = width;
    pen.beginPath();
    pen.moveTo(points[0].x, points[0].y);
    for (const point of points) pen.lineTo(point.x + 0.01, point.y);
    pen.stroke();
  }
}

function showCursor() {
  paint();
  if (!cursor.shown) return;
  pen.strokeStyle = "#2450b8";
  pen.lineWidth = 2;
  pen.beginPath();
  pen.arc(cursor.x, cursor.y, Math.max(5, $("pen").value / 2), 0, 7);
  pen.stroke();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
}

function begin(point) {
  stroke = { width: Number($("pen").value), points: [point] };
  state.strokes.push(stroke);
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  cursor.shown = false;
  begin(place(event));
  paint();
});
canvas.addEventListener("pointermove", (event) => {
  if (!stroke) return;
  stroke.points.push(place(event));
  paint();
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { stroke = null; });

const MOVES = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] };
canvas.addEventListener("keydown", (event) => {
  if (event.key === " " && !stroke) begin({ x: cursor.x, y: cursor.y });
  else if (MOVES[event.key]) {
    const within = (value) => Math.min(canvas.width, Math.max(0, value));
    cursor.x = within(cursor.x + MOVES[event.key][0]);
    cursor.y = within(cursor.y + MOVES[event.key][1]);
    if (stroke) stroke.points.push({ x: cursor.x, y: cursor.y });
  } else if (event.key !== " ") return;
  cursor.shown = true;
  event.preventDefault();
  showCursor();
});
canvas.addEventListener("keyup", (event) => { if (event.key === " ") stroke = null; });
canvas.addEventListener("blur", () => { cursor.shown = false; stroke = null; paint(); });
$("undo").onclick = () => { state.strokes.pop(); paint(); };
$("clear").onclick = () => { state.strokes = []; paint(); };

// Where the image comes from.
function choose(source) {
  state.source = source;
  for (const name of ["draw", "file"]) {
    $(`use-${name}`).setAttribute("aria-pressed", String(name === source));
    $(`${name}-pane`).hidden = name !== source;
  }
}
$("use-draw").onclick = () => choose("draw");
$("use-file").onclick = () => choose("file");

function take(file) {
  if (!file) return;
  state.file = file;
  choose("file");
  const preview = $("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = file.name || "the chosen image";
  preview.hidden = false;
  $("drop-text").hidden = true;
}
$("file").onchange = (event) => take(event.target.files[0]);
for (const name of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "dragover") choose("file");
    if (name === "drop") take(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));

function condition() {
  if (state.source === "file") {
    if (!state.file) throw new Error("Pick an image file first.");
    return Promise.resolve(state.file);
  }
  if (!state.strokes.length) throw new Error("Draw something first.");
  cursor.shown = false;
  paint();
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// Talking to the endpoint.
function tell(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function call(path, options = {}) {
  const key = $("key").value || sessionStorage.getItem("key") || "";
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
    throw new Error("This endpoint wants an API key.");
  }
  if (!answer.ok) {
    const error = await answer.json().catch(() => ({ message: `the endpoint answered ${answer.status}` }));
    throw new Error(error.message);
  }
  if (key) sessionStorage.setItem("key", key);
  return answer;
}

async function loadModel() {
  state.model = await (await call("/v1/model")).json();
  const { model, run, images_seen, checkpoint, size_px, labels, max_samples } = state.model;
  const seen = images_seen.toLocaleString("en");
  $("model").textContent = `${model} · ${run} at ${seen} images · ${size_px} px · ${checkpoint.slice(0, 12)}`;
  const before = $("label").value;
  $("label").replaceChildren(...labels.map((label) => new Option(label, label)));
  if (labels.includes(before)) $("label").value = before;
  $("number").max = max_samples;
}

function picture(base64) {
  const image = new Image();
  image.src = `data:image/png;base64,${base64}`;
  if (state.model.size_px < 128) image.className = "small";
  return image;
}

async function asOneFile(samples) {
  const images = samples.map(picture);
  await Promise.all(images.map((image) => image.decode()));
  const side = images[0].naturalWidth, columns = Math.ceil(Math.sqrt(images.length));
  const sheet = document.createElement("canvas");
  sheet.width = side * columns;
  sheet.height = side * Math.ceil(images.length / columns);
  images.forEach((image, i) => sheet.getContext("2d")
    .drawImage(image, side * (i % columns), side * Math.floor(i / columns)));
  return sheet.toDataURL("image/png");
}

async function show(entry) {
  const { answer, conditionUrl } = entry;
  $("samples").replaceChildren(...answer.samples.map((sample, i) => {
    const link = document.createElement("a"), image = picture(sample);
    image.alt = `Sample ${i + 1} of ${answer.samples.length}`;
    link.href = image.src;
    link.download = `${answer.label}-${answer.seed}-${i}.png`;
    link.title = "Download this sample";
    link.append(image);
    return link;
  }));
  const from = answer.resized_from;
  const note = from ? ` Your image was brought from ${from[0]}×${from[1]} to ${answer.size_px}×${answer.size_px}.` : "";
  const count = answer.samples.length;
  tell(`${count} ${count === 1 ? "sample" : "samples"} of “${answer.label}”, seed ${answer.seed}, ${entry.took_ms} ms.${note}`);
  $("download-grid").href = await asOneFile(answer.samples);
  $("download-grid").download = `${answer.label}-${answer.seed}.png`;
  $("download-condition").href = conditionUrl;
  $("download-condition").download = "condition.png";
  $("downloads").hidden = false;
}

function remember(entry) {
  state.history.unshift(entry);
  for (const old of state.history.splice(LAST_REQUESTS)) URL.revokeObjectURL(old.conditionUrl);
  $("history").replaceChildren(...state.history.map((past) => {
    const button = document.createElement("button"), image = picture(past.answer.samples[0]);
    const label = document.createElement("span"), seed = document.createElement("span");
    image.alt = "";
    label.textContent = past.answer.label;
    seed.textContent = `seed ${past.answer.seed}`;
    button.type = "button";
    button.title = "Show these samples again";
    button.append(image, label, seed);
    button.onclick = () => show(past);
    return button;
  }));
  $("history-box").hidden = false;
}

async function request() {
  const image = await condition();
  if (!state.model) await loadModel();
  const form = new FormData();
  form.append("image", image, "condition");
  form.append("label", $("label").value);
  form.append("num_samples", $("number").value);
  form.append("format", "json");
  if ($("seed").value) form.append("seed", $("seed").value);
  const started = performance.now();
  const answer = await (await call("/v1/samples", { method: "POST", body: form })).json();
  const entry = { answer, conditionUrl: URL.createObjectURL(image), took_ms: Math.round(performance.now() - started) };
  remember(entry);
  await show(entry);
}

$("form").onsubmit = async (event) => {
  event.preventDefault();
  $("go").disabled = true;
  tell("Drawing…");
  try {
    await request();
  } catch (error) {
    tell(error.message, true);
  } finally {
    $("go").disabled = false;
  }
};
$("again").onclick = () => { $("seed").value = ""; $("form").requestSubmit(); };
$("key").onchange = () => loadModel().catch((error) => tell(error.message, true));

paint();
loadModel().catch((error) => tell(error.message, true));
