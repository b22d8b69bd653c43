// What every page shares: colors that change without a reload, the list of keys, the word that Darkroom does not answer,
// or its own words why it did not do what was asked.
// Pages import what they need of it by the name "darkroom", so that it runs once; every page works without it.

const AGAIN_MS = 2000;
// On a stream the server says something at least so often, if only that it is there.
const SILENT_MS = 2.5 * 1000 * Number(document.documentElement.dataset.heartbeatSeconds);
// Who looks is let in no more, or what was looked at is gone: the page itself says which.
const GONE = new Set([401, 403, 404]);
const heard = new Map();
// Whose request was refused last: the next of its own that is not takes the words back.
let refused = null;
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

/** Say why something was not done, in Darkroom's own words; without words, take the earlier ones back. */
export function showRefusal(words) {
  const refusal = document.getElementById("refusal");
  if (refusal.textContent !== words) refusal.textContent = words;
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
    fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form, event.submitter)), redirect: "manual" })
      .catch(() => showLost(true)); // this page has its colors; the next one will not know of them
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
  if (GONE.has(detail.ctx?.response?.status)) return location.reload();
  showLost(!detail.ctx?.response?.headers.has("HX-Trigger")); // else it has just said itself what is wrong
  if (!source?.matches("[data-insists]")) return;
  setTimeout(() => source.isConnected && htmx.ajax("GET", detail.ctx.request.action, { source }), AGAIN_MS);
}

function told({ target, detail }) {
  refused = target;
  showRefusal(detail.words);
}

function answered({ detail: { ctx } }) {
  if (ctx.response.status >= 400) return;
  showLost(false);
  if (ctx.sourceElement === refused) showRefusal("");
}

function hear(connection) {
  heard.set(connection, performance.now());
  showLost(false);
}

// A stream whose other end is gone without a word, as after a laptop has slept, is broken here, and comes back by itself.
function breakSilence() {
  for (const [connection, at] of heard) {
    if (document.hidden || !connection.reader || performance.now() - at < SILENT_MS) continue;
    heard.delete(connection);
    showLost(true);
    connection.reader.cancel();
  }
}

function prepareInsisting() {
  document.addEventListener("htmx:error", insist);
  document.addEventListener("htmx:response:error", insist);
  document.addEventListener("htmx:sse:error", ({ detail }) => (GONE.has(detail.status) ? location.reload() : showLost(true)));
  document.addEventListener("htmx:sse:after:connection", ({ detail }) => hear(detail.connection));
  document.addEventListener("htmx:sse:after:message", ({ detail }) => hear(detail.connection));
  document.addEventListener("htmx:sse:close", ({ detail }) => heard.delete(detail.connection));
  document.addEventListener("htmx:after:request", answered);
  document.addEventListener("refused", told);
  setInterval(breakSilence, SILENT_MS / 4);
}

prepareInsisting();
prepareThemes(document.querySelector(".themes"));
prepareKeys();
