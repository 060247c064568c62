// A round's page keeps itself up to date; without this it is loaded anew every half minute.
const SECONDS = 3;
const part = document.getElementById("round-now");
const news = document.getElementById("round-news");

/** Name -> state of the round and of each site, to say what has changed. */
const words = () => new Map([
  ["The round", part.querySelector("[data-state]").textContent],
  ...[...part.querySelectorAll("[data-site]")].map((row) => [row.dataset.site, row.dataset.word]),
]);

function silent(why) {
  const meta = part.querySelector(".meta");
  if (!meta.querySelector(".stale")) {
    const said = document.createElement("b");
    said.className = "stale";
    said.textContent = ` ${why} What you see is from then.`;
    meta.append(said);
  }
}

async function look() {
  let answer;
  try {
    answer = await fetch(part.dataset.from, { headers: { Accept: "text/html" } });
  } catch {
    silent("The server does not answer.");
    return true;
  }
  if (answer.redirected || answer.status === 401 || answer.status === 403) { location.reload(); return false; }
  if (!answer.ok) { silent(`The server answered with error ${answer.status}.`); return true; }
  const before = words();
  const scroll = [...part.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  const focused = part.contains(document.activeElement) && document.activeElement.matches(".scroll");
  // The fragment is a template of ours: every value in it is escaped.
  part.innerHTML = await answer.text();
  part.querySelectorAll(".scroll").forEach((box, i) => { box.scrollLeft = scroll[i] ?? 0; });
  if (focused) part.querySelector(".scroll").focus({ preventScroll: true });
  const changed = [...words()].filter(([name, word]) => before.get(name) !== word);
  if (changed.length) news.textContent = changed.map(([name, word]) => `${name}: ${word}`).join(", ");
  return part.querySelector("[data-over]").dataset.over !== "yes";
}

async function follow() {
  // A window that nobody sees asks for nothing.
  if (document.hidden || await look()) setTimeout(follow, SECONDS * 1000);
}
setTimeout(follow, SECONDS * 1000);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
