// The explorers: controls choose which of the panels of the page is shown. The panels come drawn, from
// repro.panels; their keys are the values of the controls, or the numbers of the modules ticked.
"use strict";

function explore(explorer) {
  const all = (selector) => [...explorer.querySelectorAll(selector)];
  const factors = all("[data-factor]");
  const modules = all("[data-module]");
  const sides = all("[type=radio]");
  const depth = explorer.querySelector("[data-depth]");
  const panels = all(".explorer-panel");
  const status = explorer.querySelector("[role=status]");

  const value = (control) =>
    control.type === "range" ? control.dataset.values.split("|")[control.value] : control.value;

  function show() {
    const ticked = modules.filter((box) => box.checked).map((box) => box.value).join("");
    const key = modules.length ? ticked : factors.map(value).join("|");
    for (const panel of panels) {
      panel.hidden = panel.dataset.key !== key;
      if (!panel.hidden) status.textContent = panel.dataset.said;
    }
    for (const slider of all("[type=range]")) {
      slider.setAttribute("aria-valuetext", value(slider));
      slider.closest(".explorer-slider").querySelector("output").value = value(slider);
    }
  }

  function tickByDepth() {
    const k = Number(depth.value);
    const last = sides.find((side) => side.checked).value === "last";
    modules.forEach((box, i) => (box.checked = last ? i >= modules.length - k : i < k));
  }

  function depthOfTicked() {
    depth.value = modules.filter((box) => box.checked).length;
  }

  explorer.addEventListener("input", (event) => {
    if (event.target === depth || sides.includes(event.target)) tickByDepth();
    if (modules.includes(event.target)) depthOfTicked();
    show();
  });

  for (const button of all("[data-play]")) {
    const slider = button.closest(".explorer-slider").querySelector("[type=range]");
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
    };
    const set = (position) => {
      slider.value = position;
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      button.textContent = "Pause";
      if (slider.value === slider.max) set(slider.min);
      timer = setInterval(() => {
        set(Number(slider.value) + 1);
        if (slider.value === slider.max) stop();
      }, 1000);
    });
  }

  explorer.querySelector("fieldset").disabled = false;
  show();
  status.textContent = "";
}

document.querySelectorAll(".explorer").forEach(explore);
