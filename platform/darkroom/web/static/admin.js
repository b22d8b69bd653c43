// Says when the overview cannot be asked for anew, and leaves for the log-in page when nobody is let in any more.

import { showLost } from "darkroom";

const isOfOverview = ({ detail }) => detail.ctx?.sourceElement?.id === "live";

function onAnswer(event) {
  if (!isOfOverview(event)) return;
  showLost(false);
  if (event.detail.ctx.response.raw.redirected) location.reload();
}

function onFailure(event) {
  if (isOfOverview(event)) showLost(true);
}

document.addEventListener("htmx:after:request", onAnswer);
document.addEventListener("htmx:error", onFailure);
document.addEventListener("htmx:response:error", onFailure);
