// How far an expert's z lie from 1, or how much a LoRA adds, a row a layer and a column a matrix.

const SVG = "http://www.w3.org/2000/svg";

const MEASURES = { expert: "Mean distance of z from 1", lora: "Norm of what the LoRA adds" };

export function heatmap(target, { kind, layers, matrices, values }) {
  const largest = Math.max(...values.flat().map((value) => value ?? 0), 1e-9);
  const [left, top, width, height] = [14, 34, 22, 7];
  const svg = made("svg", { viewBox: `0 0 ${left + width * matrices.length + 14} ${top + height * layers}`, role: "img" });
  const what = `${MEASURES[kind]} in ${layers} layers and ${matrices.length} matrices, at most ${largest.toFixed(3)}.`;
  svg.setAttribute("aria-label", what);
  matrices.forEach((name, column) => {
    const place = [left + width * (column + 0.6), top - 3];
    svg.append(text(name.replace("_proj", ""), place, `rotate(-40 ${place})`));
  });
  values.forEach((row, layer) => {
    if (layer % 5 === 0) svg.append(text(String(layer), [0, top + height * (layer + 0.9)]));
    row.forEach((value, column) => {
      if (value === null) return;
      const rect = made("rect", {
        x: left + width * column, y: top + height * layer, width: width - 1, height: height - 1,
        "fill-opacity": 0.06 + (0.94 * value) / largest,
      });
      const title = made("title");
      title.textContent = `layer ${layer}, ${matrices[column]}: ${value.toFixed(4)}`;
      rect.append(title);
      svg.append(rect);
    });
  });
  target.replaceChildren(svg);
}

function text(content, [x, y], transform = "") {
  const element = made("text", { x, y, transform });
  element.textContent = content;
  return element;
}

function made(name, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
