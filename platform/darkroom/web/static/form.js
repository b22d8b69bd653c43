// The comforts of the form: examples to click, the shortcut that sends it. It works without this file.

function prepareForm(form) {
  const prompt = form.elements.namedItem("prompt");
  form.querySelector(".keys").hidden = false;
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  const chooser = form.querySelector("[data-switch]");
  const use = form.querySelector('button[value="switch_model"]');
  if (chooser && use) {
    use.hidden = true;
    chooser.addEventListener("change", () => form.requestSubmit(use));
  }
  for (const example of form.querySelectorAll("[data-example]")) {
    example.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      prompt.value = example.textContent;
      prompt.focus();
    });
  }
  const summary = form.querySelector("[data-focus]");
  if (summary) summary.focus();
}

const form = document.querySelector("form[data-shortcut]");
if (form) prepareForm(form);
