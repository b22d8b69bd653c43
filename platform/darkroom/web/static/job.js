// Follows a job without reloading. The page works without this file.

const POLL_MS = 1000;
const WORDS = { queued: "Waiting", running: "Developing", succeeded: "Developed", failed: "Failed", canceled: "Canceled", expired: "Expired" };
const STAGES = { fetch: "Fetching the picture that it begins from.", encode: "Reading the prompt.", decode: "Fixing the picture.", upload: "Storing the picture." }; // as in wording.py

function stageSentence(job) {
  if (job.state === "queued") {
    if (job.position === null) return "Waiting in the line.";
    return job.position === 0 ? "Next in the line." : `${job.position} ${job.position === 1 ? "job" : "jobs"} ahead of it.`;
  }
  const progress = job.progress;
  if (progress && progress.stage === "denoise") return `Step ${progress.step} of ${progress.num_steps}.`;
  return (progress && STAGES[progress.stage]) || "A worker has it.";
}

function showProgress(job) {
  const bar = document.getElementById("steps");
  const progress = job.progress;
  const isCounting = Boolean(progress && progress.num_steps && ["denoise", "decode", "upload"].includes(progress.stage));
  if (bar && isCounting) {
    bar.max = progress.num_steps;
    bar.value = progress.step;
  } else if (bar) {
    bar.removeAttribute("value");
  }
  const sentence = document.getElementById("sentence");
  const text = stageSentence(job);
  if (sentence && sentence.textContent !== text) sentence.textContent = text;
  const count = isCounting ? `${progress.step}/${progress.num_steps} ` : "";
  document.title = `${count}${WORDS[job.state]} · Darkroom`;
}

// A new state changes more than a bar: take the server's own page for it, and say the change aloud once.
async function showState(job) {
  const response = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
  if (!response.ok) throw new Error(String(response.status));
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = page.getElementById("job");
  document.getElementById("job").replaceWith(fresh);
  document.title = page.title;
  document.getElementById("announcement").textContent = `${WORDS[job.state]}. ${fresh.querySelector("#sentence").textContent}`;
  return fresh;
}

async function followJob() {
  let article = document.getElementById("job");
  const lost = document.getElementById("lost");
  while (article && article.dataset.follow) {
    await new Promise((wake) => setTimeout(wake, POLL_MS));
    try {
      const response = await fetch(article.dataset.follow, { cache: "no-store" });
      if (response.status === 404) return location.reload();
      if (!response.ok) throw new Error(String(response.status));
      const job = await response.json();
      const isSame = job.state === article.dataset.state && String(job.attempt) === article.dataset.attempt;
      if (isSame) showProgress(job);
      else article = await showState(job);
      lost.hidden = true;
    } catch {
      lost.hidden = false; // the network, or Darkroom restarting: ask again
    }
  }
}

followJob();
