// More of a job's page: the walk shown large, texts copied, a stream that stays open out of sight. All the rest of the
// page, what changes on it included, comes from the server. Nothing here is needed to follow a job or to keep its picture.
import { announce } from "darkroom";

const TOLD_MS = 2000;
// A browser keeps few connections to one host: so many tabs may go on listening while nobody looks at them.
const TABS_OUT_OF_SIGHT = 3;

/** Draw a frame of a walk, which lies in one picture beside the others, over the picture that it led to. */
export function showFrame(frame, walk, step, numFrames) {
  const canvas = frame.querySelector("canvas") ?? frame.appendChild(document.createElement("canvas"));
  const width = walk.naturalWidth / numFrames;
  canvas.hidden = step >= numFrames - 1;
  canvas.width = width;
  canvas.height = walk.naturalHeight;
  canvas.getContext("2d").drawImage(walk, step * width, 0, width, canvas.height, 0, 0, width, canvas.height);
}

/** How many frames a walk has: each has the shape of the picture. */
export function countFrames(walk, picture) {
  return Math.max(1, Math.round((walk.naturalWidth * picture.height) / (walk.naturalHeight * picture.width)));
}

function prepareWalk(walk, slider) {
  const frame = document.getElementById(slider.dataset.scrub);
  const numFrames = countFrames(walk, frame.querySelector("img"));
  slider.max = slider.value = String(numFrames - 1);
  slider.addEventListener("input", () => showFrame(frame, walk, slider.valueAsNumber, numFrames));
  walk.addEventListener("click", (event) => {
    slider.value = String(Math.floor((event.offsetX / walk.clientWidth) * numFrames));
    slider.dispatchEvent(new Event("input"));
  });
}

function prepareWalks() {
  for (const slider of document.querySelectorAll("[data-scrub]:not([data-ready])")) {
    const walk = slider.closest(".walk").querySelector("[data-walk]");
    slider.dataset.ready = "";
    walk.decode().then(() => prepareWalk(walk, slider), () => slider.closest(".scrub").remove());
  }
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

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});

// Out of sight a stream is given up, and the title stands still: but a few tabs, each with a lock, may go on listening.
async function goOnOutOfSight() {
  let isHeld = false;
  document.addEventListener("visibilitychange", (event) => isHeld && document.hidden && event.stopImmediatePropagation());
  for (let n = 0; n < TABS_OUT_OF_SIGHT && !isHeld; n++) {
    isHeld = await new Promise((answer) => {
      navigator.locks.request(`darkroom-stream-${n}`, { ifAvailable: true }, (lock) => {
        answer(lock !== null);
        return lock && new Promise((release) => document.addEventListener("ended", release, { once: true }));
      });
    });
  }
}

if (navigator.locks && document.querySelector("[hx-sse\\:connect]")) goOnOutOfSight();
document.addEventListener("htmx:after:swap", prepareWalks);
prepareWalks();
