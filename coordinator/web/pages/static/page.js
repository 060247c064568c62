// Suggestions below the search box, notices when the server does not answer, and a few keys. Every page works without it.

export const base = document.body.dataset.base ?? "";

/** Say that something failed; what was typed stays where it is. */
export function notice(what, todo) {
  const box = document.getElementById("notice");
  const inner = document.createElement("div");
  inner.className = "inner";
  const text = document.createElement("p");
  const strong = document.createElement("b");
  strong.textContent = what;
  text.append(strong, " ", todo);
  const close = document.createElement("button");
  close.type = "button";
  close.className = "link";
  close.textContent = "Close";
  close.addEventListener("click", () => { box.hidden = true; });
  inner.append(text, close);
  box.replaceChildren(inner);
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
}

export function clearNotice() { document.getElementById("notice").hidden = true; }

/** A notice in the words of a problem document, if the answer holds one. */
export async function noticeOf(response) {
  let said = {};
  try { said = await response.json(); } catch { /* no problem document */ }
  const what = said.what ?? `The server answered with error ${response.status}`;
  notice(`${what}.`, [said.why, said.do].filter(Boolean).map((s) => `${s}.`).join(" ") || "Nothing was saved. Try again.");
}

export const unreachable = () =>
  notice("The server does not answer.", "Nothing was saved, and what you typed is still here. Check the connection, then try again.");

function suggestions(form) {
  const input = form.querySelector("input[type=search]");
  const list = form.querySelector(".suggestions");
  const status = form.querySelector("[role=status]");
  let chosen = -1, timer = 0, asked = null;
  Object.entries({ role: "combobox", "aria-expanded": "false", "aria-controls": list.id, "aria-autocomplete": "list" })
    .forEach(([name, value]) => input.setAttribute(name, value));

  const options = () => [...list.querySelectorAll("a")];
  const close = () => {
    list.hidden = true;
    chosen = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const choose = (number) => {
    const all = options();
    chosen = (number + all.length + 1) % (all.length + 1) === all.length ? -1 : (number + all.length) % all.length;
    all.forEach((a, i) => a.setAttribute("aria-selected", String(i === chosen)));
    if (chosen < 0) { input.removeAttribute("aria-activedescendant"); return; }
    input.setAttribute("aria-activedescendant", all[chosen].id);
    all[chosen].scrollIntoView({ block: "nearest" });
  };
  const ask = async () => {
    const text = input.value.trim();
    asked?.abort();
    if (text.length < 2) { close(); status.textContent = ""; return; }
    asked = new AbortController();
    try {
      const answer = await fetch(`${form.dataset.suggest}?q=${encodeURIComponent(text)}`, { signal: asked.signal });
      if (!answer.ok) { close(); await noticeOf(answer); return; }
      // The fragment is a template of ours: every value in it is escaped.
      list.innerHTML = await answer.text();
      clearNotice();
    } catch (error) {
      if (error.name !== "AbortError") { close(); unreachable(); }
      return;
    }
    const n = options().length;
    chosen = -1;
    list.hidden = n === 0;
    input.setAttribute("aria-expanded", String(n > 0));
    status.textContent = n ? `${n} suggestions; arrow keys choose one` : "No suggestion";
  };
  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, 140); });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { close(); return; }
    if (list.hidden) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      const n = options().length;
      if (event.key === "ArrowDown") choose(chosen + 1 < n ? chosen + 1 : 0);
      else choose(chosen > 0 ? chosen - 1 : n - 1);
    } else if (event.key === "Enter" && chosen >= 0) {
      event.preventDefault();
      options()[chosen].click();
    }
  });
  document.addEventListener("click", (event) => { if (!form.contains(event.target)) close(); });
  form.addEventListener("focusout", (event) => { if (event.relatedTarget && !form.contains(event.relatedTarget)) close(); });
}

/** Arrow keys in a list of results. */
function arrows() {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const rows = [...document.querySelectorAll("[data-arrows] a.row")];
    const at = rows.indexOf(document.activeElement);
    if (at < 0) return;
    event.preventDefault();
    rows[at + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
  });
}

/** Forms that change something are sent by script, so that a server that is down costs nothing that was typed. */
function keeping(form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = event.submitter;
    const body = new URLSearchParams(new FormData(form, button));
    const target = button?.hasAttribute("formaction") ? button.formAction : form.action;
    form.querySelectorAll("button").forEach((b) => { b.disabled = true; });
    let answer = null;
    try {
      answer = await fetch(target, { method: "POST", body, headers: { Accept: "text/html" }, redirect: "follow" });
    } catch {
      unreachable();
    }
    form.querySelectorAll("button").forEach((b) => { b.disabled = false; });
    if (answer === null) return;
    if (answer.ok && answer.redirected) { location.assign(answer.url); return; }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const said = [...page.querySelectorAll(".error p")].slice(1, -1).map((p) => p.textContent.trim());
    notice(said[0] ?? `The server answered with error ${answer.status}.`, said.slice(1).join(" ") || "Nothing was saved.");
  });
}

export const typing = (event) =>
  event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, dialog[open]") !== null;

document.querySelectorAll("form[data-suggest]").forEach(suggestions);
document.querySelectorAll("form[data-keeps]").forEach(keeping);
arrows();
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !typing(event)) {
    event.preventDefault();
    document.getElementById("q")?.focus();
  }
});
