// More of a job's page: the walk shown large, texts copied, a stream that stays open out of sight. All the rest of the
// page, what changes on it included, comes from the server. Nothing here is needed to follow a job or to keep its picture.
import { announce } from "darkroom";

const TOLD_MS = 2000;
// A browser keeps few connections to one host: so many tabs may go on listening while nobody looks at them.
const TABS_OUT_OF_SIGHT = 3;

// Draw a frame of a walk, where all lie side by side in one picture, over the picture that it led to.
function drawFrame(walk, place) {
  const frame = document.getElementById(walk.dataset.walk);
  const picture = frame.querySelector("img");
  const canvas = frame.querySelector("canvas") ?? frame.appendChild(document.createElement("canvas"));
  const { naturalWidth, naturalHeight: height } = walk;
  const numFrames = Math.max(1, Math.round((naturalWidth * picture.height) / (height * picture.width)));
  const width = naturalWidth / numFrames;
  Object.assign(canvas, { width, height, hidden: place === 1 });
  canvas.getContext("2d").drawImage(walk, Math.round(place * (numFrames - 1)) * width, 0, width, height, 0, 0, width, height);
}

// One slider leads all walks of its section; those that are not here yet stay where they are.
function scrub(slider) {
  for (const walk of slider.closest(".walk").querySelectorAll("[data-walk]")) {
    if (walk.complete && walk.naturalWidth) drawFrame(walk, slider.valueAsNumber / Number(slider.max));
  }
}

function scrubTo(walk, event) {
  const slider = walk.closest(".walk").querySelector("[data-scrub]");
  slider.value = String(Math.floor((event.offsetX / walk.clientWidth) * (Number(slider.max) + 1)));
  scrub(slider);
}

function select(element) {
  element.closest("details")?.setAttribute("open", "");
  getSelection().selectAllChildren(element);
}

// Where the page came over plain HTTP from another host, a browser lets no script copy: the person can.
async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  const isCopied = await navigator.clipboard?.writeText(source.textContent).then(() => true, () => false);
  if (!isCopied) select(source);
  const title = [...button.childNodes];
  const told = isCopied ? button.dataset.done : button.dataset.undone;
  button.replaceChildren(told);
  announce(told);
  setTimeout(() => button.replaceChildren(...title), TOLD_MS);
}

// Out of sight a stream is given up, and the title stands still: but a few tabs, each with a lock, may go on listening.
async function goOnOutOfSight() {
  let isHeld = false;
  document.addEventListener("visibilitychange", (event) => isHeld && document.hidden && event.stopImmediatePropagation());
  for (let n = 0; n < TABS_OUT_OF_SIGHT && !isHeld; n++) {
    isHeld = await new Promise((answer) => {
      navigator.locks.request(`darkroom-stream-${n}`, { ifAvailable: true }, (lock) => {
        answer(lock !== null);
        return lock && new Promise((release) => document.addEventListener("ended", release, { once: true }));
      }).catch(() => answer(false)); // a browser that is told to keep nothing may know no locks either
    });
  }
}

document.addEventListener("input", ({ target }) => target.matches("[data-scrub]") && scrub(target));
document.addEventListener("click", (event) => {
  const { target } = event;
  const button = target.closest("[data-copy]");
  if (button) copy(button);
  else if (target.matches("[data-walk]")) scrubTo(target, event);
});
document.addEventListener("htmx:after:swap", () => {
  for (const slider of document.querySelectorAll("[data-scrub]")) if (slider.value !== slider.max) scrub(slider);
});
if (navigator.locks && document.querySelector("[hx-sse\\:connect]")) goOnOutOfSight();
