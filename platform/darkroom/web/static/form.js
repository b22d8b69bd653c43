// The comforts of the form: a draft that survives, sizes that fit, seeds, pictures dropped and pasted, one more job
// without leaving. The server draws the form, also anew; this file only moves what is there. It works without it.

import { announce, isTyping } from "darkroom";

const A_YEAR_SECONDS = 31536000;
const UNKEPT = new Set(["csrf_token", "picture", "action"]);
const WORDS = new Set(["prompt", "negative_prompt"]);
// How a picture's file begins to say how it was made: a chunk of a PNG, or the comment of an EXIF.
const TOLD = /(?:tEXt|iTXt|zTXt)(?:parameters|darkroom)\0|UNICODE\0|ASCII\0{3}/;

const form = () => document.getElementById("enlarger");
const field = (name) => form().elements.namedItem(name);

/** Put a value where a person might have typed it, so that everybody hears of it. */
function enter(input, value) {
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

// The draft: what the form holds, kept by this browser for each owner.

function saveDraft() {
  const texts = [...new FormData(form())].filter(([name]) => !UNKEPT.has(name));
  const draft = JSON.stringify({ model: form().dataset.model, texts });
  try {
    localStorage.setItem(form().dataset.draft, draft);
  } catch {
    // A browser that is told to keep nothing keeps no draft either.
  }
}

function savedDraft() {
  try {
    return JSON.parse(localStorage.getItem(form().dataset.draft));
  } catch {
    return null;
  }
}

// Of another model only the words are of use here. A page whose address says what it shows is left as it is.
function restoreDraft() {
  const draft = savedDraft();
  if (!draft || location.search || form().querySelector("[data-focus]")) return;
  const isSameModel = draft.model === form().dataset.model;
  const texts = new Map(draft.texts.filter(([name]) => isSameModel || WORDS.has(name)));
  for (const input of form().elements) {
    if (!input.name || input.type === "hidden" || UNKEPT.has(input.name)) continue;
    if (input.type === "radio" || input.type === "checkbox") input.checked = isSameModel ? texts.get(input.name) === input.value : input.checked;
    else if (texts.has(input.name)) input.value = texts.get(input.name);
  }
  for (const name of WORDS) if (texts.get(name)) field(name)?.closest("details")?.setAttribute("open", "");
  restorePicture(texts);
  showLock();
  growAll();
  addEventListener("load", () => form().dispatchEvent(new Event("change", { bubbles: true }))); // for the estimate
}

// The picture to begin from is the server's to draw: the form is asked for with what the draft has of it.
function restorePicture(texts) {
  const button = form().querySelector('button[value="begin"]');
  if (!button || !texts.get("init_image") || field("init_image")) return;
  for (const name of ["init_image", "mask"]) {
    form().append(Object.assign(document.createElement("input"), { type: "hidden", name, value: texts.get(name) ?? "" }));
  }
  addEventListener("load", () => button.click());
}

function remember(name, value) {
  document.cookie = `${name}=${encodeURIComponent(value)}; path=/; max-age=${A_YEAR_SECONDS}; SameSite=Lax`;
}

// A box of words grows with them; where the browser does not see to that by itself, here.

function grow(box) {
  box.style.height = "auto";
  box.style.height = `${box.offsetHeight - box.clientHeight + box.scrollHeight}px`;
}

function growAll() {
  if (!CSS.supports("field-sizing", "content")) form().querySelectorAll("textarea").forEach(grow);
}

// Sizes: a preset shows itself in the free fields, and a free side becomes the nearest that the model takes.

function snap(input) {
  const { multiple, mostPixels } = input.closest("fieldset").dataset;
  const step = Number(multiple);
  const other = Number(field(input.name === "width" ? "height" : "width").value);
  const most = Math.min(Number(input.max), other > 0 ? mostPixels / other : Infinity);
  const nearest = Math.round(Number(input.value) / step) * step;
  const lowest = Math.ceil(Number(input.min) / step) * step;
  return String(Math.max(lowest, Math.min(nearest, Math.floor(most / step) * step)));
}

function keepSize(input) {
  const snapped = snap(input);
  const isMoved = input.value !== "" && snapped !== input.value;
  document.getElementById("snapped").classList.toggle("moved", isMoved);
  if (isMoved) input.value = snapped;
}

function showPreset(radio) {
  const [width, height] = radio.value.split("x");
  if (!height) return;
  field("width").value = width;
  field("height").value = height;
}

// Seeds: a number in the field is kept for every job; without one, each draws its own.

function showLock() {
  form().querySelector("[data-lock]").ariaPressed = String(field("seed").value !== "");
}

const draw = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);

function turnLock() {
  const latest = document.querySelector("#strip [data-seed]");
  enter(field("seed"), field("seed").value === "" ? (latest?.dataset.seed ?? draw()) : "");
}

// Pictures: dropped on their place they are begun from; elsewhere their settings are taken, if they tell any. Pasted, one
// that tells them may be meant for either: the person says which.

const pictureIn = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
const buttonFor = (action) => form().querySelector(`button[value="${action}"]`);

function choose(file) {
  const files = new DataTransfer();
  files.items.add(file);
  field("picture").files = files.files;
}

function take(file, place) {
  choose(file);
  buttonFor(place?.closest?.("[data-drop]") ? "begin" : "read_picture").click();
}

async function takePasted(file) {
  const begin = buttonFor("begin");
  if (!begin) return take(file);
  choose(file);
  if (!TOLD.test(new TextDecoder("latin1").decode(await file.arrayBuffer()))) return begin.click();
  offer();
  begin.focus();
  announce(begin.closest("[data-choices]").dataset.question);
}

// What to do with the picture that is chosen; none, where none is.
function offer() {
  const [file] = field("picture").files;
  const choices = form().querySelector("[data-choices]");
  const before = choices.querySelector("img");
  if (before) URL.revokeObjectURL(before.src);
  before?.remove();
  choices.hidden = !file;
  if (!file) return;
  choices.prepend(Object.assign(new Image(72, 72), { src: URL.createObjectURL(file), alt: choices.dataset.alt }));
  choices.closest("details").open = true;
}

function onDrag(event) {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  const isLeaving = event.type === "dragleave" && !event.relatedTarget;
  form().classList.toggle("over", !isLeaving && event.type !== "drop");
  const picture = event.type === "drop" && pictureIn(event.dataTransfer);
  if (picture) take(picture, event.target);
}

function onPaste(event) {
  const picture = pictureIn(event.clipboardData);
  // What is copied from a document is words and a picture of them: where words are written, those are meant.
  if (!picture || (isTyping(event) && event.clipboardData.getData("text/plain"))) return;
  event.preventDefault();
  takePasted(picture);
}

// What the page is told by events. They come to the document: the form may be another by now.

function onClick(event) {
  const example = event.target.closest("[data-example]");
  if (example && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    enter(field("prompt"), example.textContent);
    field("prompt").focus();
  }
  if (event.target.closest("[data-dice]")) enter(field("seed"), draw());
  if (event.target.closest("[data-lock]")) turnLock();
}

function onKey(event) {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !form().contains(event.target)) return;
  event.preventDefault();
  if (!event.shiftKey) form().requestSubmit();
  else if (form().reportValidity()) form().submit();
}

function onInput({ target }) {
  if (!form().contains(target)) return;
  if (target.name === "seed") showLock();
  if (target.matches("textarea")) growAll();
  saveDraft();
}

function onChange({ target }) {
  if (!form().contains(target)) return;
  if (target.name === "width" || target.name === "height") keepSize(target);
  if (target.name === "size") showPreset(target);
  if (target.name === "picture") offer();
  saveDraft();
}

function onSwap({ detail }) {
  if (detail.ctx.target !== "#enlarger" && detail.ctx.target?.id !== "enlarger") return;
  prepare();
  announce(form().querySelector(".note")?.textContent ?? "");
  saveDraft();
  remember("model", form().dataset.model);
}

function onAnswer(event) {
  const { ctx } = event.detail;
  if (ctx?.request.method !== "POST" || !form().contains(ctx.sourceElement)) return;
  const refusal = document.getElementById("refusal");
  if (event.type === "htmx:before:request") refusal.replaceChildren();
  else if (!ctx.response) refusal.textContent = refusal.dataset.silent;
}

function onSubmitted() {
  const newest = document.querySelector("#strip .state");
  if (newest) announce(`${newest.textContent}: ${field("prompt").value.slice(0, 80)}`);
}

/** Show what only works here, and hide what only others need. */
function prepare() {
  for (const part of form().querySelectorAll("[data-js]")) part.hidden = false;
  for (const part of form().querySelectorAll("[data-plain]")) part.hidden = true;
  form().querySelector("[data-choices]").hidden = true;
  showLock();
  growAll();
  form().querySelector("[data-focus]")?.focus();
}

prepare();
document.addEventListener("click", onClick);
document.addEventListener("keydown", onKey);
document.addEventListener("input", onInput);
document.addEventListener("change", onChange);
document.addEventListener("paste", onPaste);
for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, onDrag);
document.addEventListener("toggle", ({ target }) => target.id === "advanced" && remember("advanced", target.open ? "open" : "closed"), true);
document.addEventListener("submitted", onSubmitted);
document.addEventListener("htmx:after:swap", onSwap);
document.addEventListener("htmx:before:request", onAnswer);
document.addEventListener("htmx:error", onAnswer);
restoreDraft();
