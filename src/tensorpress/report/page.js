"use strict";
const plots = JSON.parse(document.getElementById("plots").textContent);
const scheme = window.matchMedia("(prefers-color-scheme: dark)");

function template() {
  const style = getComputedStyle(document.documentElement);
  const [text, muted, line, background] = ["--text", "--muted", "--line", "--background"].map(
    (name) => style.getPropertyValue(name).trim(),
  );
  const axis = {
    color: muted, gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line,
    title: { font: { size: 12 }, standoff: 8 },
  };
  return {
    layout: {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: background, bordercolor: muted, font: { color: text } },
      xaxis: axis, yaxis: axis,
    },
  };
}

// A plot in closed details has no width yet: it is drawn when they open.
function draw(root) {
  for (const element of root.querySelectorAll(".plot")) {
    if (element.offsetWidth === 0) continue;
    const { data, layout } = plots[element.dataset.group][element.dataset.index];
    Plotly.react(element, data, { ...layout, template: template() }, { displayModeBar: false, responsive: true });
  }
}

draw(document);
scheme.addEventListener("change", () => draw(document));
for (const details of document.querySelectorAll("details")) {
  details.addEventListener("toggle", () => details.open && draw(details));
}
