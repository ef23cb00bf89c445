// Comfort only: every page works without this file.
"use strict";

// While the organizations are asked, say so, and do not ask twice.
const progress = document.getElementById("progress");
function announce(message) {
  progress.textContent = message;
  progress.classList.add("progress--on");
}
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-progress]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0) announce(link.dataset.progress);
});
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.progress) announce(form.dataset.progress);
  if ("download" in form.dataset) return; // the page stays, and may be used again
  if (form.dataset.sent) event.preventDefault();
  form.dataset.sent = "yes";
});
window.addEventListener("pageshow", (event) => {
  // Coming back with the browser's button must not leave the page saying that it asks.
  progress.textContent = "";
  progress.classList.remove("progress--on");
  for (const form of document.forms) delete form.dataset.sent;
  // After a form was refused or a check ran, start reading at the answer (not earlier: a #fragment takes the focus).
  if (!event.persisted) document.querySelector("[data-focus]")?.focus();
});

for (const button of document.querySelectorAll("[data-print]")) {
  button.hidden = false;
  button.addEventListener("click", () => window.print());
}
// On paper nothing is folded away.
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details.earlier")) part.open = true;
});

// The endpoint form shows the fields of the chosen kind of sign-in alone.
for (const form of document.querySelectorAll("[data-auth-form]")) {
  const show = () => {
    const chosen = form.querySelector("input[name=type]:checked")?.value;
    for (const part of form.querySelectorAll("[data-auth]")) part.hidden = part.dataset.auth !== chosen;
  };
  form.addEventListener("change", show);
  show();
}

// While something runs at the server, its part of the page is asked for again each second.
async function poll() {
  const part = document.querySelector("[data-poll]");
  if (!part) return;
  const answer = await fetch(part.dataset.poll, { credentials: "same-origin" });
  if (!answer.ok || answer.redirected) return;
  const fresh = document.createElement("template");
  fresh.innerHTML = await answer.text();
  part.replaceWith(fresh.content);
  if (document.querySelector("[data-poll]")) setTimeout(poll, 1000);
  else for (const button of document.querySelectorAll("button[disabled]")) button.disabled = false;
}
if (document.querySelector("[data-poll]")) setTimeout(poll, 1000);

// The choice form shows what can be kept back only where something is.
for (const form of document.querySelectorAll("[data-choice-form]")) {
  const show = () => {
    const chosen = form.querySelector("input[name=kind]:checked")?.value;
    for (const part of form.querySelectorAll("[data-part]")) part.hidden = part.dataset.part !== chosen;
    for (const part of form.querySelectorAll(".part2")) part.hidden = chosen === "emergencies";
  };
  form.addEventListener("change", show);
  show();
}
