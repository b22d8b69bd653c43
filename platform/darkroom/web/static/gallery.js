// Looks through the gallery: by keys, large, further back by itself, and several at once. Without this file each tile is
// a link beside a box to tick, and the rest is forms and links.
import { announce, isTyping } from "darkroom";

const SWIPE_PX = 48;
const light = document.getElementById("light");
const large = document.getElementById("large");
const asked = document.getElementById("asked");
// The tile that is seen large, or was last.
let shown = null;

const hung = () => document.getElementById("hung");
const tiles = () => [...hung().querySelectorAll(".tile")];
const boxOf = (tile) => tile.querySelector("input");
const linkOf = (tile) => tile.querySelector("a");
const older = () => hung().querySelector(".more a");

/* Walking */

function focusOn(tile) {
  linkOf(tile).focus({ preventScroll: true });
  tile.scrollIntoView({ block: "nearest" });
}

// A row has as many tiles as lie as high as the first.
function numColumns(all) {
  const end = all.findIndex((tile) => tile.offsetTop !== all[0].offsetTop);
  return end < 0 ? all.length : end;
}

function neighbor(tile, key) {
  const all = tiles();
  const from = all.indexOf(tile);
  const columns = numColumns(all);
  const to = { ArrowLeft: from - 1, ArrowRight: from + 1, ArrowUp: from - columns, ArrowDown: from + columns, Home: 0, End: all.length - 1 }[key];
  return all[to];
}

// From elsewhere on the page only the arrows that do not scroll it lead to the pictures.
function walk(event, tile) {
  const isEntry = !tile && (event.key === "ArrowLeft" || event.key === "ArrowRight");
  const next = tile ? neighbor(tile, event.key) : isEntry && tiles().find((each) => each.getBoundingClientRect().bottom > 0);
  if (!next) return;
  event.preventDefault();
  focusOn(next);
}

/* Selecting */

const chosen = () => tiles().filter((tile) => boxOf(tile)?.checked);

function showChosen() {
  const output = document.getElementById("num-selected");
  if (output) output.value = chosen().length || "";
}

// What was developed together goes together.
function choose(box, isChosen) {
  for (const tile of tiles()) if (boxOf(tile).value === box.value) boxOf(tile).checked = isChosen;
  showChosen();
}

function chooseNone() {
  document.getElementById("selection")?.reset();
}

function askToDelete(tile) {
  const box = tile && boxOf(tile);
  if (box && !chosen().length) choose(box, true);
  if (chosen().length) document.getElementById("selection").requestSubmit();
}

function takeDown(button) {
  const gone = chosen();
  const all = tiles();
  const next = all.slice(all.indexOf(gone[0])).find((tile) => !gone.includes(tile)) ?? all.findLast((tile) => !gone.includes(tile));
  asked.close();
  if (!next) return location.reload(); // what hangs now, and its words, the server knows
  for (const tile of gone) tile.remove();
  showChosen();
  focusOn(next);
  announce(button.dataset.done);
}

/* Looking at one, large */

function open(tile) {
  show(tile);
  light.showModal();
}

// The thumbnail stands in until the picture is there; both fill the same box.
function show(tile) {
  shown = tile;
  const thumb = tile.querySelector("img");
  const picture = new Image();
  picture.src = thumb.src.split("?")[0];
  large.src = thumb.src;
  large.alt = thumb.alt;
  document.getElementById("words").textContent = tile.querySelector(".caption").textContent;
  document.getElementById("its-page").href = linkOf(tile).href;
  document.getElementById("previous").disabled = !neighbor(tile, "ArrowLeft");
  document.getElementById("next").disabled = !neighbor(tile, "ArrowRight") && !older();
  picture.decode().then(() => shown === tile && (large.src = picture.src), () => {}); // else the thumbnail stays
}

function turn(key) {
  const next = neighbor(shown, key);
  if (next) show(next);
  if (key !== "ArrowLeft" && !neighbor(shown, "ArrowRight")) older()?.click();
}

function comeBack() {
  if (shown?.isConnected) focusOn(shown);
}

// On its way to another page, the address of this one notes where the person was.
function leave(tile) {
  history.replaceState(null, "", `${linkOf(tile).dataset.at}#${tile.id}`);
  location.assign(linkOf(tile).href);
}

/* Keys, clicks, and what htmx brings */

const WALKS = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"]);

function pressInLight(event) {
  if (WALKS.has(event.key)) turn(event.key);
  else if (event.key === "Enter" && !event.target.closest("button, a")) leave(shown);
  else return;
  event.preventDefault();
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || (isTyping(event) && event.target.type !== "checkbox")) return;
  if (light.open) return pressInLight(event);
  if (document.querySelector("dialog[open]")) return;
  const tile = event.target.closest(".tile");
  if (WALKS.has(event.key)) return walk(event, tile);
  switch (event.key) {
    case "x":
      return tile && boxOf(tile) && choose(boxOf(tile), !boxOf(tile).checked);
    case "Delete":
      return askToDelete(tile);
    case "Escape":
      return chooseNone();
    case "/":
      event.preventDefault();
      return document.getElementById("q").focus();
  }
}

function click(event) {
  const link = event.target.closest(".tile a");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    open(link.closest(".tile"));
  } else if (event.target.closest("#asked [data-closes]")) {
    event.preventDefault();
    asked.close();
  }
}

function swapped({ detail: { ctx } }) {
  if (ctx.target === asked && asked.firstChild) asked.showModal();
  if (ctx.sourceElement?.matches(".search")) {
    history.replaceState(null, "", ctx.request.action);
    announce(document.getElementById("found")?.textContent ?? "");
  }
  showChosen();
  if (light.open) show(shown);
}

function prepareLight() {
  document.getElementById("previous").addEventListener("click", () => turn("ArrowLeft"));
  document.getElementById("next").addEventListener("click", () => turn("ArrowRight"));
  document.getElementById("its-page").addEventListener("click", (event) => (event.preventDefault(), leave(shown)));
  light.addEventListener("close", comeBack);
  light.addEventListener("click", (event) => event.target.matches("dialog, figure") && light.close());
  let from = 0;
  light.addEventListener("touchstart", (event) => (from = event.touches[0].clientX), { passive: true });
  light.addEventListener("touchend", (event) => {
    const way = event.changedTouches[0].clientX - from;
    if (Math.abs(way) > SWIPE_PX) turn(way > 0 ? "ArrowLeft" : "ArrowRight");
  });
}

document.addEventListener("keydown", press);
document.addEventListener("click", click);
document.addEventListener("change", ({ target }) => target.matches(".pick input") && choose(target, target.checked));
document.addEventListener("reset", () => queueMicrotask(showChosen));
document.addEventListener("htmx:after:swap", swapped);
document.addEventListener("htmx:after:request", ({ detail: { ctx } }) => {
  if (ctx.sourceElement.matches("[data-erases]") && ctx.response.status === 204) takeDown(ctx.sourceElement.querySelector("[data-done]"));
});
document.addEventListener("refused", () => asked.close()); // what was refused is said beneath it
prepareLight();
showChosen();
