// What pages gain from a script: news without reloading, dialogs, copying. Without it everything still works by reloading.
(() => {
  "use strict";
  const body = document.body;

  // What only makes sense with a script is hidden until one runs.
  function prepare(part) {
    for (const element of part.querySelectorAll("[data-copy][hidden], [data-opens][hidden], [data-script][hidden]")) element.hidden = false;
    for (const element of part.querySelectorAll("time")) tick(element);
  }

  const UNITS = [[31536000, "year"], [2592000, "month"], [86400, "day"], [3600, "hour"], [60, "minute"]];
  function tick(time) {
    const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
    const unit = UNITS.find(([size]) => seconds >= size);
    const count = unit ? Math.floor(seconds / unit[0]) : 0;
    const text = unit ? `${count} ${unit[1]}${count > 1 ? "s" : ""} ago` : "just now";
    if (time.textContent !== text) time.textContent = text;
  }
  setInterval(() => document.querySelectorAll("time").forEach(tick), 20000);

  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-copy], [data-opens], [data-closes], [data-shows]");
    const menu = document.querySelector("details.menu[open]");
    if (menu && !menu.contains(event.target)) menu.open = false;
    if (!target) return;
    if ("copy" in target.dataset) {
      copy(target.previousElementSibling).then((done) => {
        target.textContent = done ? "Copied" : "Not copied";
        setTimeout(() => { target.textContent = "Copy"; }, 1500);
      });
    } else if (target.dataset.opens) {
      document.getElementById(target.dataset.opens).showModal();
    } else if ("closes" in target.dataset) {
      target.closest("dialog").close();
    }
  });
  async function copy(from) {  // pages that came without TLS from elsewhere than this machine have no clipboard, but may copy what is selected
    try { await navigator.clipboard.writeText(from.textContent.trim()); return true; } catch { /* no clipboard, or none for us */ }
    getSelection().selectAllChildren(from);
    return document.execCommand("copy");
  }
  document.addEventListener("keydown", (event) => {
    const menu = document.querySelector("details.menu[open]");
    if (event.key === "Escape" && menu) { menu.open = false; menu.querySelector("summary").focus(); }
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest("input, textarea, select, .terminal")) {
      const search = document.querySelector("input[type=search]");
      if (search) { event.preventDefault(); search.focus(); search.select(); }
    }
  });
  document.addEventListener("change", (event) => {
    if ("submits" in event.target.dataset) event.target.form.requestSubmit();
  });
  document.addEventListener("submit", (event) => {
    setTimeout(() => event.target.querySelectorAll("button:not([type=button])").forEach((button) => { button.disabled = true; }), 0);
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) document.querySelectorAll("form button:disabled").forEach((button) => { button.disabled = false; });
  });

  // A part that is being worked in is not replaced under the hands; elsewhere the focus stays where it was.
  const STOPS = "a[href], button, input, select, textarea, summary, [tabindex]";
  let kept = null, unfolded = [];
  function busy(part) {
    const active = document.activeElement;
    return part.querySelector("dialog[open]") || (part.contains(active) && active.matches("input, select, textarea"))
      || [...part.querySelectorAll("input, select, textarea")].some(touched);
  }
  function touched(field) {
    if (field.matches("select")) return field.selectedOptions[0] !== ([...field.options].find((option) => option.defaultSelected) || field.options[0]);
    if (field.type === "file") return field.files.length > 0;
    return field.type === "checkbox" || field.type === "radio" ? field.checked !== field.defaultChecked : field.value !== field.defaultValue;
  }
  function mark(stop) {  // what tells it from others also when its part was loaded anew
    return stop.id || stop.getAttribute("href") || [stop.getAttribute("aria-label") || stop.textContent, stop.closest("form")?.getAttribute("action")].join(" ");
  }
  for (const moment of ["htmx:beforeRequest", "htmx:beforeSwap"]) document.addEventListener(moment, (event) => {
    const part = event.detail.elt, why = event.detail.requestConfig?.triggeringEvent?.type;
    if (!why?.startsWith("live:")) return;
    if (busy(part)) { event.preventDefault(); part.dataset.late = why; }
  });
  for (const left of ["focusout", "close"]) document.addEventListener(left, () => setTimeout(() => {  // what was put off is loaded now
    for (const part of document.querySelectorAll("[data-late]")) {
      const name = part.dataset.late;
      delete part.dataset.late;
      window.htmx?.trigger(body, name);
    }
  }, 300), true);
  document.addEventListener("htmx:beforeSwap", (event) => {
    const part = event.detail.target, active = document.activeElement;
    if (part.contains(active) && active !== body) kept = mark(active);
    unfolded.push(...[...part.querySelectorAll("details[open] > summary")].map(mark));
  });
  document.addEventListener("htmx:afterSettle", (event) => {
    prepare(document);
    for (const summary of document.querySelectorAll("details > summary")) if (unfolded.includes(mark(summary))) summary.parentElement.open = true;
    unfolded = [];
    if (kept !== null && document.activeElement === body) {
      const again = [...document.querySelectorAll(STOPS)].find((stop) => mark(stop) === kept && !stop.disabled);
      (again || document.getElementById("main")).focus({ preventScroll: true });
    }
    kept = null;
  });

  // What is loaded now and then is not while nobody looks, and is at once when somebody does again.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && event.detail.elt.getAttribute("hx-trigger")?.startsWith("every")) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    window.htmx?.trigger(body, "shown");
    if (unlisted) list();
  });

  // The one stream of this page. Its cursor is what the newest event carried; hidden pages let go of theirs.
  const streamed = document.querySelector("[data-follow]");
  const topics = new URLSearchParams();
  if (body.dataset.app) topics.set("app", body.dataset.app);
  if (body.dataset.topics) topics.set(body.dataset.topics, "1");
  if (streamed?.dataset.build) topics.set("build", streamed.dataset.build);
  if (streamed?.dataset.log) topics.set("log", streamed.dataset.log);
  let cursor = body.dataset.seen || "", source = null, retry = 0, hiding = 0;
  if (streamed) cursor = [cursor, `${streamed.dataset.follow}=${streamed.dataset.cursor}`].filter(Boolean).join(";");

  function open() {
    if (source || document.hidden || !body.dataset.live || ![...topics].length) return;
    const address = new URLSearchParams(topics);
    if (cursor) address.set("cursor", cursor);
    source = new EventSource(`${body.dataset.live}?${address}`);
    source.onopen = () => { retry = 0; connected(true); again(); };
    source.onerror = () => {
      connected(false);
      if (source && source.readyState === EventSource.CLOSED) {
        close();
        refused();
      }
    };
    hear("app", () => window.htmx?.trigger(body, "live:app"));
    hear("apps", () => { listing ||= setTimeout(list, Math.max(0, listed + 5000 - Date.now()) + 1000 * Math.random()); });
    hear("build", (html) => append(streamed, html));
    hear("build-over", () => { delete streamed.dataset.follow; window.htmx?.trigger(body, "live:app"); });
    hear("log", (html) => document.dispatchEvent(new CustomEvent("log", { detail: html })));
  }
  // Lists are long: one loads itself every few seconds at the most, and the lists of all readers not in the same moment.
  let listing = 0, listed = 0, unlisted = false;
  function list() {
    listing = 0;
    unlisted = document.hidden;  // the stream does not tell it again: it is loaded when somebody looks
    if (unlisted) return;
    listed = Date.now();
    window.htmx?.trigger(body, "live:apps");
  }
  // Whoever reads is told when the page is no longer kept current.
  const told = document.getElementById("connection");
  let telling = 0;
  function connected(yes) {
    body.dataset.connected = yes ? "yes" : "no";
    if (!yes) { telling ||= setTimeout(tell, 3000); return; }
    clearTimeout(telling);
    telling = 0;
    told.textContent = "";
  }
  function tell() {
    telling = 0;
    if (!document.hidden) told.textContent = "Not connected, trying again…";
  }
  // A browser does not tell why a stream was refused: the page itself is asked whether it is still there.
  async function refused() {
    let answer;
    try { answer = await fetch(body.dataset.here, { method: "HEAD", redirect: "manual" }); } catch { /* away */ }
    if ([403, 404].includes(answer?.status) || answer?.type === "opaqueredirect") gone();
    else setTimeout(open, Math.min(30000, 1000 * 2 ** retry++));
  }
  function gone() {  // renamed, destroyed, or not for this visitor any more: an app's id leads to it whatever it is called
    const where = location.pathname.replace(/\/apps\/[^/]+/, (path) => (body.dataset.app ? `/apps/${body.dataset.app}` : path)) + location.search;
    close();
    clearTimeout(telling);
    body.dataset.live = "";
    if (!busy(body)) { location.replace(where); return; }
    const link = document.createElement("a");
    link.href = where;
    link.textContent = "Look again";
    told.replaceChildren("This page has another address now, is gone, or is not open to you any more. ", link);
  }
  if (body.dataset.app && location.pathname.includes(`/apps/${body.dataset.app}`)) {
    history.replaceState(history.state, "", location.pathname.replace(`/apps/${body.dataset.app}`, `/apps/${body.dataset.name}`) + location.search + location.hash);
  }

  // A part that could not be loaded anew, because Davit was away, is loaded when it is back.
  let missed = false, coming = 0, failed = 0, last = 0;
  for (const name of ["htmx:sendError", "htmx:responseError"]) document.addEventListener(name, (event) => {
    if (!event.detail.requestConfig?.triggeringEvent?.type?.startsWith("live:")) return;
    if ([403, 404].includes(event.detail.xhr?.status)) { gone(); return; }
    missed = true;
    if (coming) return;
    failed = Date.now() - last < 60000 ? failed + 1 : 0;
    last = Date.now();
    coming = setTimeout(() => { coming = 0; again(); }, Math.min(30000, 3000 * 2 ** failed));
  });
  function again() {
    if (!missed || source?.readyState !== EventSource.OPEN) return;
    missed = false;
    for (const name of ["app", "apps"]) window.htmx?.trigger(body, `live:${name}`);
  }
  function hear(name, act) {
    source.addEventListener(name, (event) => { cursor = event.lastEventId || cursor; act(JSON.parse(event.data)); });
  }
  function close() { source?.close(); source = null; connected(false); }
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(close, 20000);
    else open();
  });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);

  function append(element, html) {  // rendered by the server from escaped text
    const below = element.scrollHeight - element.scrollTop - element.clientHeight < 40;
    element.insertAdjacentHTML("beforeend", html);
    if (below) element.scrollTop = element.scrollHeight;
  }
  if (streamed?.dataset.build) streamed.scrollTop = streamed.scrollHeight;

  const tab = document.querySelector(".tabs [aria-current]");
  if (tab) tab.parentElement.scrollLeft = tab.offsetLeft - 40;

  prepare(document);
  open();
})();
