// Says when the overview cannot be asked for anew, and takes the word back when it can. Who may not see it any more is
// told so by the page itself.

import { showLost } from "darkroom";

function follow(name, isLost) {
  document.addEventListener(name, ({ detail }) => {
    if (detail.ctx?.sourceElement?.id !== "live") return;
    if (detail.ctx.response?.status === 403) location.reload();
    else showLost(isLost);
  });
}

follow("htmx:after:request", false);
follow("htmx:response:error", true);
follow("htmx:error", true);
