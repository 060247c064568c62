// Keys of the review queue. Each stands for a button or a link that is there without them.
import { typing } from "./page.js";

const help = document.getElementById("keys");
const helpButton = document.querySelector("[data-key='?']");
if (help && helpButton) {
  helpButton.hidden = false;
  helpButton.addEventListener("click", () => help.showModal());
}

function move(step) {
  const links = [...document.querySelectorAll(".queue li a")];
  const at = links.findIndex((a) => a.hasAttribute("aria-current"));
  const next = links[at + step] ?? document.querySelector(step > 0 ? ".queue [rel=next]" : ".queue [rel=prev]");
  next?.click();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target.closest("input, textarea")) { event.target.blur(); return; }
  if (typing(event)) return;
  const key = event.key;
  if (key === "j") move(1);
  else if (key === "k") move(-1);
  else if (key === "c") { event.preventDefault(); document.getElementById("comment")?.focus(); }
  else {
    const button = [...document.querySelectorAll("button[data-key]")].find((b) => b.dataset.key === key && !b.disabled);
    if (!button) return;
    event.preventDefault();
    button.click();
  }
});
const current = document.querySelector(".queue a[aria-current]");
const queue = document.querySelector(".queue");
if (current && queue) queue.scrollTop = current.offsetTop - queue.offsetTop - 80;
