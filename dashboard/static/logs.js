// The log's live tail: lines in blocks that the browser only lays out when they are in sight, so that 10,000 stay light.
(() => {
  "use strict";
  const MOST = 10000, BLOCK = 200;
  const lines = document.getElementById("lines"), form = document.getElementById("filters");
  const dyno = document.getElementById("dyno"), source = document.getElementById("source"), find = document.getElementById("find");
  const pause = document.getElementById("pause"), wrap = document.getElementById("wrap");
  const download = document.getElementById("download"), count = document.getElementById("count"), waiting = document.getElementById("waiting");
  let paused = false, held = [], left = 0, total = 0, shown = 0, block = null, room = 0;

  function passes(line) {
    const process = line.dataset.p, wanted = dyno.value, text = find.value.toLowerCase();
    if ("left" in line.dataset) return true;
    if (source.value && line.dataset.s !== source.value) return false;
    if (wanted && process !== wanted && (wanted.includes(".") || !process.startsWith(wanted + "."))) return false;
    return !text || line.textContent.toLowerCase().includes(text);
  }
  function read(html) {
    const part = document.createElement("template");
    part.innerHTML = html;  // rendered by the server from escaped text
    return [...part.content.children];
  }
  function append(more) {
    const below = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 60;
    for (const line of more) {
      if (!block || room === 0) {
        block = document.createElement("div");
        block.className = "block";
        lines.append(block);
        room = BLOCK;
      }
      block.append(line);
      if ("day" in line.dataset) continue;
      offer(line.dataset.p);
      line.hidden = !passes(line);
      shown += line.hidden ? 0 : 1;
      room--;
      total++;
    }
    for (let gone = eldest(); total - gone.length >= MOST; gone = eldest()) {
      total -= gone.length;
      shown -= gone.filter((line) => !line.hidden).length;
      lines.firstElementChild.remove();
    }
    if (below) lines.scrollTop = lines.scrollHeight;
    tell();
  }
  function eldest() { return [...lines.firstElementChild.querySelectorAll(".l")]; }
  function offer(name) {  // a process that came after the page did can be chosen, too
    if (name && ![...dyno.options].some((option) => option.value === name)) dyno.add(new Option(name));
  }
  function tell() {
    count.textContent = shown === total ? `${total.toLocaleString("en")} lines` : `${shown.toLocaleString("en")} of ${total.toLocaleString("en")} lines`;
    waiting.textContent = paused ? `Paused${held.length ? "; new lines are waiting" : ""}` : "";
  }
  function filter() {
    shown = 0;
    for (const line of lines.querySelectorAll(".l")) {
      line.hidden = !passes(line);
      shown += line.hidden ? 0 : 1;
    }
    download.search = new URLSearchParams({ dyno: dyno.value, source: source.value, q: find.value });
    lines.classList.toggle("few", shown < 2000);
    lines.scrollTop = lines.scrollHeight;
    tell();
  }

  const first = lines.querySelector(".block"), before = first.innerHTML;
  first.remove();
  if (before) append(read(before));
  lines.scrollTop = lines.scrollHeight;
  document.querySelector("[data-noscript]").hidden = true;

  document.addEventListener("log", (event) => {
    if (paused) hold(read(event.detail));
    else append(read(event.detail));
  });
  function hold(more) {
    held = held.concat(more);
    const over = held.length - MOST;
    if (over > 0) { held.splice(0, over); left += over; }
    tell();
  }
  function release() {
    const mark = document.createElement("div");
    mark.className = "l h";
    mark.dataset.left = mark.dataset.s = mark.dataset.p = "";
    mark.textContent = `… ${left.toLocaleString("en")} lines that came in the pause are left out here.`;
    append(left ? [mark, ...held] : held);
    held = [];
    left = 0;
  }
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.classList.toggle("first", paused);
    pause.textContent = paused ? "Go on" : "Pause";
    if (!paused && held.length) release();
    tell();
  });
  wrap.addEventListener("click", () => {
    const on = lines.classList.toggle("unwrapped");
    wrap.setAttribute("aria-pressed", !on);
  });
  let due = 0;
  find.addEventListener("input", () => { clearTimeout(due); due = setTimeout(search, 120); });
  const narrowed = new URLSearchParams(location.search);
  function search() {
    if (find.value.toLowerCase().includes((narrowed.get("q") || "").toLowerCase())) filter();
    else form.submit();
  }
  for (const choice of [dyno, source]) choice.addEventListener("change", () => {
    // what the page was loaded without has to be fetched
    if (narrowed.get("dyno") || narrowed.get("source")) form.requestSubmit();
    else filter();
  });
  form.addEventListener("submit", (event) => { if (event.submitter === null && document.activeElement === find) event.preventDefault(); });
})();
