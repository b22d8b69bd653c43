// Says when the overview cannot be asked for anew, and takes the word back when it can.

import { showLost } from "darkroom";

function follow(name, isLost) {
  document.addEventListener(name, ({ detail }) => {
    if (detail.ctx?.sourceElement?.id === "live") showLost(isLost);
  });
}

follow("htmx:after:request", false);
follow("htmx:response:error", true);
follow("htmx:error", true);
