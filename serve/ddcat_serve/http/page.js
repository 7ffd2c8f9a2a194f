"use strict";
const $ = (id) => document.getElementById(id);
// models: entries of /v1/models, each with its card and latest answer; run: number of the latest run, so that older answers are
// dropped; file: the user's own image, null while an example is shown
const state = { models: [], key: "", file: null, run: 0, stop: new AbortController() };

function say(message) {
  $("trouble").textContent = message;
  $("trouble").hidden = !message;
}

async function ask(path, options = {}) {
  const headers = state.key ? { ...options.headers, Authorization: `Bearer ${state.key}` } : options.headers;
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  });
  if (response.status === 401) $("locked").hidden = false;
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error || `The server answered ${response.status}.`);
  return response;
}

function element(kind, text = "", className = "") {
  const node = document.createElement(kind);
  node.textContent = text;
  node.className = className;
  return node;
}

function button(text, act) {
  const node = element("button", text);
  node.type = "button";
  node.addEventListener("click", () => act(node).catch((error) => say(error.message)));
  return node;
}

// ---- model cards

const titleOf = (model) => model.name + (state.models.filter((m) => m.name === model.name).length > 1 ? `, version ${model.version}` : "");

function card(model) {
  model.card = element("article", "", "model");
  model.result = element("p", "", "soft result");
  model.result.setAttribute("role", "status");
  model.legend = element("ul", "", "legend");
  model.legend.setAttribute("aria-label", "Classes and their share of the image");
  model.stage = element("div", "", "stage");
  model.canvas = element("canvas");
  model.canvas.tabIndex = 0;
  model.canvas.setAttribute("role", "img");
  model.mark = element("span", "", "mark");
  model.mark.hidden = true;
  model.stage.append(model.canvas, model.mark);
  model.under = element("p", "", "soft under");
  model.under.setAttribute("aria-live", "polite");
  model.curl = element("code");
  model.actions = element("div", "", "actions");
  model.actions.append(button("Download mask", () => download(model)), button("Copy curl", (pressed) => copy(model, pressed)));
  const about = element("p", `${model.method}, ${model.architecture}; ${model.engine}, ${model.precision}`, "soft");
  model.card.append(element("h2", titleOf(model)), about, model.result, model.legend, model.stage, model.under, model.actions, model.curl, passport(model));
  model.canvas.addEventListener("pointermove", (event) => pointAt(model, event));
  model.canvas.addEventListener("pointerdown", (event) => pointAt(model, event));
  model.canvas.addEventListener("keydown", (event) => moveBy(model, event));
  model.canvas.addEventListener("focus", () => point(model, model.at ? model.at : [model.canvas.width >> 1, model.canvas.height >> 1]));
  clear(model);
  return model.card;
}

function passport(model) {
  const details = element("details"), summary = element("summary", "Passport: ");
  const verdict = model.passport ? model.passport.verdict : "none";
  summary.append(element("span", model.passport ? verdict : "not evaluated", `badge ${verdict}`));
  details.append(summary);
  if (model.passport) {
    details.append(element("p", `Evaluated on ${model.passport.images} images of ${model.passport.data}, ${model.passport.budget} budget.`, "soft"));
    const table = element("table");
    for (const finding of model.passport.findings) {
      const row = table.insertRow();
      row.insertCell().append(element("span", finding.verdict, `badge ${finding.verdict}`));
      row.insertCell().textContent = finding.name;
      row.insertCell().textContent = `${finding.found}; ${finding.limit}`;
    }
    details.append(table);
  } else details.append(element("p", model.passport_known, "soft"));
  if (model.attack) details.append(element("p", `Attack on the examples: ${Object.entries(model.attack).map(([key, value]) => (key === "name" ? value : `${key} ${value}`)).join(", ")}.`, "soft"));
  details.append(element("p", `Bundle ${model.bundle.slice(0, 16)}..., ${model.trust}.`, "soft"));
  return details;
}

function clear(model) {
  Object.assign(model, { picture: null, labels: null, content: null, at: null });
  for (const part of [model.stage, model.under, model.actions, model.mark, model.curl]) part.hidden = true;
  model.legend.replaceChildren();
  model.result.textContent = "Choose an image to see its mask.";
}

function draw(model) {
  if (!model.picture) return;
  const { canvas, picture, labels, classes } = model, pen = canvas.getContext("2d", { willReadFrequently: true });
  canvas.width = picture.width;
  canvas.height = picture.height;
  pen.drawImage(picture, 0, 0);
  const share = $("original").getAttribute("aria-pressed") === "true" ? 0 : Number($("opacity").value);
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let index = 0; index < labels.length; index++) {
    const colour = classes[labels[index]].colour;
    for (let channel = 0; channel < 3; channel++) {
      const at = 4 * index + channel;
      pixels.data[at] = (1 - share) * pixels.data[at] + share * colour[channel];
    }
  }
  pen.putImageData(pixels, 0, 0);
}

function show(model, milliseconds) {
  const { picture, labels, classes } = model;
  let text = `${picture.width} x ${picture.height}, round trip ${milliseconds.toFixed(0)} ms`;
  if (state.file === null && Number($("strength").value)) {
    const same = labels.reduce((count, label, index) => count + (label === model.clean[index]), 0);
    text += `. Agreement with the clean prediction: ${(100 * same / labels.length).toFixed(1)} %`;
  }
  model.result.textContent = text;
  const areas = new Map();
  for (const label of labels) areas.set(label, (areas.get(label) || 0) + 1);
  model.legend.replaceChildren(...[...areas].sort((a, b) => b[1] - a[1]).map(([label, area]) => {
    const item = element("li"), swatch = element("i");
    swatch.style.background = `rgb(${classes[label].colour})`;
    item.append(swatch, `${classes[label].name} ${(100 * area / labels.length).toFixed(1)} %`);
    return item;
  }));
  model.stage.style.setProperty("--ratio", picture.width / picture.height);
  model.stage.classList.toggle("small", picture.width < 480);
  for (const part of [model.stage, model.under, model.actions]) part.hidden = false;
  model.canvas.setAttribute("aria-label", `Mask of ${titleOf(model)}. Arrow keys name the class at a point.`);
  draw(model);
  if (model.at) point(model, model.at);
  else model.under.textContent = "Point at the image, or focus it and use the arrow keys, to see the class.";
}

// ---- class at a point, by mouse, touch or keyboard

function point(model, [x, y]) {
  if (!model.labels) return;
  const { width, height } = model.canvas;
  model.at = [Math.min(width - 1, Math.max(0, x)), Math.min(height - 1, Math.max(0, y))];
  const pointed = model.classes[model.labels[model.at[1] * width + model.at[0]]];
  model.under.textContent = `${pointed.name} at ${model.at[0]}, ${model.at[1]}`;
  model.mark.style.left = `${100 * (model.at[0] + 0.5) / width}%`;
  model.mark.style.top = `${100 * (model.at[1] + 0.5) / height}%`;
  model.mark.hidden = false;
}

function pointAt(model, event) {
  const box = model.canvas.getBoundingClientRect();
  point(model, [event.clientX - box.left, event.clientY - box.top].map((at, axis) =>
    Math.floor(at * (axis ? model.canvas.height / box.height : model.canvas.width / box.width))));
}

function moveBy(model, event) {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!way || !model.at) return;
  event.preventDefault();
  const step = event.shiftKey ? 1 : Math.max(1, Math.round(model.canvas.width / 50));
  point(model, [model.at[0] + step * way[0], model.at[1] + step * way[1]]);
}

// ---- download and curl command
const routeOf = (model) => // an example has been resized already
  `v1/segment?${new URLSearchParams({ model: model.name, version: model.version, ...(state.file ? {} : { preprocessed: true }) })}`;
const nameOf = () => (state.file ? state.file.name : `example-${Number($("example").value) + 1}.png`);

async function download(model) {
  const mask = await (await ask(routeOf(model), { method: "POST", body: model.content, headers: { Accept: "image/png" } })).blob();
  const link = element("a");
  link.href = URL.createObjectURL(mask);
  link.download = `${nameOf().replace(/\.[^.]*$/, "")}-${model.name}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function copy(model, pressed) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`, address = (route) => quoted(new URL(route, document.baseURI).href);
  const curl = `curl --fail-with-body${state.key ? ' -H "Authorization: Bearer $KEY"' : ""}`;
  const fetchExample = state.file ? "" : `${curl} -o ${nameOf()} ${address(exampleRoute(model, $("strength").value))} && `;
  const command = `${fetchExample}${curl} --data-binary ${quoted(`@${nameOf()}`)} -o mask.png ${address(routeOf(model))}`;
  model.curl.textContent = command;
  model.curl.hidden = false; // a page over plain HTTP may not write to the clipboard
  await navigator.clipboard?.writeText(command).then(() => {
    pressed.textContent = "Copied";
    setTimeout(() => (pressed.textContent = "Copy curl"), 2000);
  }, () => {});
}

// ---- requests

async function labelsOf(model, content, signal) {
  const response = await ask(routeOf(model), { method: "POST", body: content, headers: { Accept: "application/octet-stream" }, signal });
  return new Uint8Array(await response.arrayBuffer());
}

function exampleRoute(model, strength) {
  const query = new URLSearchParams({ version: model.version, strength });
  return `v1/models/${encodeURIComponent(model.name)}/examples/${$("example").value}?${query}`;
}

const exampleOf = async (model, strength, signal) => (await ask(exampleRoute(model, strength), { signal })).blob();

async function segment(model, contentOf, current, signal) {
  const content = await contentOf(model), began = performance.now();
  const labels = await labelsOf(model, content, signal), milliseconds = performance.now() - began;
  const picture = await createImageBitmap(content, {
    imageOrientation: model.orientation === "exif" ? "from-image" : "none", colorSpaceConversion: "none",
  });
  if (!current()) return;
  Object.assign(model, { content, labels, picture });
  show(model, milliseconds);
}

async function segmentAll(contentOf) {
  const run = ++state.run, current = () => run === state.run, faults = new Map();
  state.stop.abort();
  state.stop = new AbortController();
  const { signal } = state.stop;
  say("");
  for (const model of state.models) {
    model.result.textContent = "Segmenting ...";
    model.card.classList.add("busy");
  }
  await Promise.all(state.models.map(async (model) => {
    try {
      await segment(model, (asked) => contentOf(asked, signal), current, signal);
    } catch (error) {
      if (!current()) return;
      clear(model);
      model.result.textContent = "No mask.";
      faults.set(error.message, [...(faults.get(error.message) || []), titleOf(model)]);
    } finally {
      if (current()) model.card.classList.remove("busy");
    }
  }));
  if (!current()) return;
  const total = state.models.length;
  say([...faults].map(([message, models]) => (models.length === total ? message : `${models.join(", ")}: ${message}`)).join(" "));
}

async function showExample() {
  const strength = Number($("strength").value), chosen = $("example").value;
  $("strong").textContent = strength ? `${Math.round(100 * strength)} %` : "none";
  await segmentAll(async (model, signal) => {
    if (strength && model.cleanOf !== chosen) {
      const clean = await labelsOf(model, await exampleOf(model, 0, signal), signal);
      Object.assign(model, { clean, cleanOf: chosen });
    }
    return exampleOf(model, strength, signal);
  });
}

function chooseExample() {
  state.file = null;
  $("attack").hidden = $("example").value === "";
  $("strength").value = 0;
  state.models.forEach(clear);
  if ($("example").value !== "") showExample();
}

function showFile(file) {
  if (!file) return;
  state.file = file;
  $("example").value = "";
  $("attack").hidden = true;
  state.models.forEach(clear);
  segmentAll(async () => file);
}

async function start() {
  try { state.models = (await (await ask("v1/models")).json()).models; }
  catch (error) { say(error.message); return; }
  say("");
  $("locked").hidden = true;
  $("models").replaceChildren(...state.models.map(card));
  const examples = Math.min(...state.models.map((model) => model.examples));
  $("chooser").hidden = !examples;
  $("example").replaceChildren(new Option("your own image", ""), ...Array.from({ length: examples }, (_, n) => new Option(`example ${n + 1}`, n)));
  if (state.file) showFile(state.file); // chosen before the models were listed
  else if (examples) {
    $("example").value = "0";
    chooseExample();
  }
}

let moved; // timer of a dragged slider: the request waits until it rests for a moment
$("strength").addEventListener("input", () => { clearTimeout(moved); moved = setTimeout(showExample, 60); });
$("file").addEventListener("change", (event) => { showFile(event.target.files[0]); event.target.value = ""; });
for (const kind of ["dragenter", "dragover"]) addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("over"); });
for (const kind of ["dragleave", "drop"]) addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.remove("over"); });
addEventListener("drop", (event) => showFile(event.dataTransfer.files[0]));
$("opacity").addEventListener("input", () => state.models.forEach(draw));
$("original").addEventListener("click", () => {
  const original = $("original").getAttribute("aria-pressed") !== "true";
  $("original").setAttribute("aria-pressed", original);
  state.models.forEach(draw);
});
$("example").addEventListener("change", chooseExample);
$("locked").addEventListener("submit", (event) => { event.preventDefault(); state.key = $("key").value; start(); });
start();
