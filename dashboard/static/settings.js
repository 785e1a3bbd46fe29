// Buildpacks by drag; a .env file by drop. The buttons do the same without a script.
(() => {
  "use strict";
  const list = document.querySelector("[data-sorts]"), form = document.getElementById("buildpack-form");
  if (list && form.querySelector("button[name=act]")) {
    let moved = null;
    for (const item of list.children) {
      item.draggable = true;
      item.addEventListener("dragstart", (event) => { moved = item; event.dataTransfer.effectAllowed = "move"; });
      item.addEventListener("dragover", (event) => { if (moved) { event.preventDefault(); item.classList.add("over"); } });
      item.addEventListener("dragleave", () => item.classList.remove("over"));
      item.addEventListener("dragend", () => { moved = null; });
      item.addEventListener("drop", (event) => {
        event.preventDefault();
        item.classList.remove("over");
        if (!moved || moved === item) return;
        const below = [...list.children].indexOf(moved) < [...list.children].indexOf(item);
        item.insertAdjacentElement(below ? "afterend" : "beforebegin", moved);
        form.requestSubmit(form.querySelector("button[name=act][value='']"));
      });
    }
  }
  const paste = document.getElementById("dotenv");
  paste?.addEventListener("drop", async (event) => {
    const file = event.dataTransfer.files[0];
    if (!file || file.size > 65536) return;
    event.preventDefault();
    paste.value = await file.text();
  });
})();
