// A terminal on a new dyno or inside a running one, over the API's attach protocol: a byte that names the stream, then its bytes; orders are JSON.
(() => {
  "use strict";
  const form = document.getElementById("run"), box = document.getElementById("terminal-box"), place = document.getElementById("terminal");
  const state = document.getElementById("terminal-state"), trouble = document.getElementById("trouble");
  const coder = new TextEncoder();
  let terminal = null, fit = null, socket = null;

  const inside = document.getElementById("inside"), size = document.getElementById("size");
  function suit() { size.disabled = Boolean(inside?.value); }  // a running dyno has its size
  inside?.addEventListener("change", suit);
  suit();

  function show() {
    box.hidden = false;
    if (terminal) { terminal.reset(); return; }
    const style = getComputedStyle(place);
    terminal = new Terminal({
      fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"), fontSize: 14, cursorBlink: true, scrollback: 5000,
      screenReaderMode: true, theme: { background: style.backgroundColor, foreground: "#d9e1e6", cursor: "#66cbd3" },
    });
    fit = new FitAddon.FitAddon();
    terminal.loadAddon(fit);
    terminal.loadAddon(new CanvasAddon.CanvasAddon());  // the other renderer writes <style> elements, which the page's policy refuses
    terminal.open(place);
    terminal.textarea.setAttribute("aria-label", "Terminal input");
    terminal.attachCustomKeyEventHandler((event) => {
      return !(event.key === "Tab" && event.shiftKey);  // the way out: the browser moves the focus
    });
    fit.fit();
    terminal.onData((text) => send(coder.encode(text)));
    terminal.onBinary((text) => send(Uint8Array.from(text, (letter) => letter.charCodeAt(0))));
    terminal.onResize(({ rows, cols }) => order({ resize: [rows, cols] }));
    new ResizeObserver(() => { if (!box.hidden) fit.fit(); }).observe(place);
  }
  function send(bytes) {
    if (socket?.readyState !== WebSocket.OPEN) return;
    const frame = new Uint8Array(bytes.length + 1);
    frame.set(bytes, 1);
    socket.send(frame);
  }
  function order(what) { if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(what)); }
  function fail(text) { trouble.textContent = text; trouble.hidden = false; state.textContent = ""; }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    trouble.hidden = true;
    socket?.close();
    show();
    const fields = new FormData(form);
    fields.set("columns", terminal.cols);
    fields.set("lines", terminal.rows);
    state.textContent = `Starting ${fields.get("command")}…`;
    let answer;
    try {
      answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(fields), headers: { Accept: "application/json" } });
      if (answer.headers.get("Content-Type") !== "application/json") {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        throw new Error((page.getElementById("refusal") || page.querySelector("main .empty p"))?.textContent.trim() || "The dyno could not be started.");
      }
      attach(await answer.json());
    } catch (error) { fail(error.message); }
  });
  function attach(made) {
    let exit;
    const mine = socket = new WebSocket(new URL(made.attach, location.href).href.replace(/^http/, "ws"));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { state.textContent = `Connected to ${made.name}`; order({ resize: [terminal.rows, terminal.cols] }); terminal.focus(); };
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") exit = JSON.parse(data).exit;
      else terminal.write(new Uint8Array(data).subarray(1));
    };
    socket.onclose = () => {
      if (mine !== socket) return;
      state.textContent = exit === undefined ? `The connection to ${made.name} ended` : `${made.name} ended${exit === null ? "" : ` with status ${exit}`}`;
      document.getElementById("command").focus();
    };
  }
})();
