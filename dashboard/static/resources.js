// What the numbers in the scaler would cost, before they are sent.
(() => {
  "use strict";
  const ram = document.getElementById("ram");
  if (!ram) return;
  const total = Number(ram.dataset.total), others = Number(ram.dataset.others), before = Number(ram.dataset.mine);
  const words = document.getElementById("ram-words"), [used, mine] = ram.querySelectorAll("rect");
  const size = (mib) => (mib < 1024 ? `${mib} MiB` : `${(mib / 1024).toFixed(mib < 10240 ? 1 : 0)} GiB`);
  function show() {
    let sum = 0;
    for (const input of document.querySelectorAll("input[data-ram]")) {
      const choice = document.getElementById(input.id.replace("q-", "s-"));
      sum += Number(input.value || 0) * Number(choice.selectedOptions[0].dataset.mib);
    }
    const left = total - others - sum, start = Math.min(100, (100 * others) / total);
    mine.setAttribute("x", start);
    mine.setAttribute("width", Math.min(100 - start, (100 * sum) / total));
    mine.classList.toggle("more", left < 0);
    words.textContent = `This app's dynos ${sum === before ? "are" : "would be"} promised ${size(sum)}, those of other apps ${size(others)}; ` +
      (left >= 0 ? `${size(left)} of this host's ${size(total)} are left.` : `that is ${size(-left)} more than the ${size(total)} that this host has.`);
  }
  document.addEventListener("input", (event) => { if ("ram" in event.target.dataset) show(); });
})();
