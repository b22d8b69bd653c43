// Presses the buttons of the queue page without leaving it: what comes of it, the page's stream tells. Without this file
// each button is a form that comes back to the page.
import { announce, showLost, showRefusal } from "darkroom";

const act = document.getElementById("act");
let pressed = null;

// The stream may be faster than the answer, and make another button of this one: what it says and where it goes is read
// first. Who is logged out is led to where he logs in: the form goes there as it would have gone.
async function send(button) {
  const { formAction, dataset: { done } } = button;
  const body = new URLSearchParams(new FormData(act, button));
  const headers = { "HX-Request": "true" }; // who is logged out is told so, and not led to the log-in page unseen
  const answer = await fetch(formAction, { method: "POST", headers, body, redirect: "manual" }).catch(() => null);
  showLost(!answer);
  delete button.dataset.sent;
  if (!answer) return;
  const refusal = answer.headers.get("HX-Trigger");
  showRefusal(refusal ? JSON.parse(refusal).refused.words : "");
  if (refusal) return;
  if (answer.type === "opaqueredirect") return announce(done);
  act.action = formAction;
  act.submit();
}

// Where the row of a pressed button is gone, its focus would be lost with it.
function keepFocus() {
  if (!pressed || pressed.isConnected) return;
  pressed = null;
  if (document.activeElement === document.body) document.getElementById("summary").focus();
}

act.addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.submitter;
  if ("sent" in button.dataset) return;
  button.dataset.sent = "";
  pressed = button;
  button.closest("details")?.removeAttribute("open");
  send(button);
});
document.addEventListener("htmx:after:swap", keepFocus);
