// What every page shares: colors that change without a reload, the list of keys, the word that Darkroom does not answer.
// Pages import what they need of it by the name "darkroom", so that it runs once; every page works without it.

const AGAIN_MS = 2000;
const FIELDS = "input, textarea, select, [contenteditable]";

/** Whether a key was meant for a field, and not for the page. */
export function isTyping(event) {
  return event.target instanceof Element && event.target.matches(FIELDS);
}

/** Say something once to who cannot see it. */
export function announce(text) {
  const announcement = document.getElementById("announcement");
  if (announcement.textContent !== text) announcement.textContent = text;
}

/** Show, or take away, the word that Darkroom does not answer. */
export function showLost(isLost) {
  document.getElementById("lost").hidden = !isLost;
}

function openDialog(id) {
  const dialog = document.getElementById(id);
  if (!dialog.open) dialog.showModal();
}

function chooseTheme(form, submitter) {
  const theme = submitter.value;
  const colors = theme === "system" ? "light dark" : theme;
  document.documentElement.dataset.theme = theme;
  document.querySelector('meta[name="color-scheme"]').content = colors;
  for (const button of form.querySelectorAll("button")) button.ariaPressed = String(button === submitter);
}

// The choice is kept by the server's cookie: the same request that the form would make, without leaving the page.
function prepareThemes(form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    chooseTheme(form, event.submitter);
    fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form, event.submitter)), redirect: "manual" });
  });
}

function prepareKeys() {
  for (const opener of document.querySelectorAll("[data-opens]")) {
    opener.hidden = false;
    opener.addEventListener("click", () => openDialog(opener.dataset.opens));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "?" || isTyping(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    openDialog("keys");
  });
}

// What lies open goes on asking until Darkroom answers: a stream that never began, a page that has news of itself.
// A stream that broke comes back by itself.
function insist({ detail }) {
  const source = detail.ctx?.sourceElement;
  if (!source?.matches("[data-insists]")) return;
  if (detail.ctx.response?.status === 404) return location.reload();
  showLost(true);
  setTimeout(() => source.isConnected && htmx.ajax("GET", detail.ctx.request.action, { source }), AGAIN_MS);
}

function prepareInsisting() {
  document.addEventListener("htmx:error", insist);
  document.addEventListener("htmx:response:error", insist);
  document.addEventListener("htmx:sse:error", ({ detail }) => (detail.status === 404 ? location.reload() : showLost(true)));
  document.addEventListener("htmx:sse:after:connection", () => showLost(false));
  document.addEventListener("htmx:after:swap", ({ detail }) => detail.ctx.sourceElement?.matches("[data-insists]") && showLost(false));
}

prepareInsisting();
prepareThemes(document.querySelector(".themes"));
prepareKeys();
