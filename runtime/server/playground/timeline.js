// The last requests: how long each waited for its first token, and for the rest.

const MOST = 8;

export class Timeline {
  constructor(list) {
    this.list = list;
    this.entries = [];
  }

  add(title, { sent, first, done }) {
    this.entries = [{ title, wait: first - sent, rest: done - first }, ...this.entries].slice(0, MOST);
    const longest = Math.max(...this.entries.map(({ wait, rest }) => wait + rest), 1);
    this.list.replaceChildren(...this.entries.map((entry) => item(entry, longest)));
  }
}

function item({ title, wait, rest }, longest) {
  const line = document.createElement("li");
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.setAttribute("aria-hidden", "true");
  for (const part of [wait, rest]) {
    const piece = document.createElement("i");
    piece.style.width = `${(100 * part) / longest}%`;
    bar.append(piece);
  }
  line.append(`${title}: ${(wait / 1000).toFixed(2)} s to the first token, ${(rest / 1000).toFixed(2)} s for the rest`, bar);
  return line;
}
