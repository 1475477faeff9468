// The explorers: controls choose which of the panels of the page is shown. The panels come drawn, from
// repro.book.panels; their keys are the values of the controls. The last panel has none: it is for values
// that no run has.
"use strict";

function explore(explorer) {
  const all = (selector, within = explorer) => [...within.querySelectorAll(selector)];
  const panels = all(".explorer-panel");
  const status = explorer.querySelector("[role=status]");
  const position = (slider) => slider.dataset.values.split("|")[slider.value];

  function value(control) {
    const boxes = all("[type=checkbox]", control);
    if (boxes.length) return boxes.filter((box) => box.checked).map((box) => box.value).join("");
    return control.value ?? position(control.querySelector("[type=range]"));
  }

  function show() {
    const key = all("[data-control]").map(value).join("|");
    const shown = panels.find((panel) => panel.dataset.key === key) ?? panels.at(-1);
    for (const panel of panels) panel.hidden = panel !== shown;
    status.textContent = shown.querySelector("p").textContent;
    for (const slider of all("[type=range]")) {
      slider.setAttribute("aria-valuetext", position(slider));
      slider.closest(".explorer-slider").querySelector("output").value = position(slider);
    }
  }

  explorer.addEventListener("input", ({ target }) => {
    const group = target.closest("fieldset[data-control]");
    if (group) {
      const boxes = all("[type=checkbox]", group);
      const number = group.querySelector("[type=range]");
      const last = group.querySelector("[type=radio]:checked").value === "last";
      if (boxes.includes(target)) number.value = boxes.filter((box) => box.checked).length;
      else boxes.forEach((box, i) => (box.checked = (last ? boxes.length - 1 - i : i) < number.value));
    }
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
