
"use strict";

// A heading sorts its column: ascending, descending, and as it was. What is empty stays at the end.
function sortable(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    // not a <button>: Chromium does not paint those again where a printed table repeats its headings
    const button = document.createElement("span");
    button.setAttribute("role", "button");
    button.tabIndex = 0;
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        button.click();
      }
    });
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[heading.getAttribute("aria-sort")];
      headings.forEach(other => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", next);
      body.append(...(next === "none" ? rows : sorted(rows, column, next === "ascending" ? 1 : -1)));
    });
  });
}

function sorted(rows, column, sign) {
  const keys = new Map(rows.map(row => [row, row.cells[column].dataset.v ?? row.cells[column].textContent]));
  const numeric = [...keys.values()].every(key => !Number.isNaN(Number(key)));
  const compared = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en", { numeric: true });
  return [...rows].sort((one, other) => {
    const a = keys.get(one), b = keys.get(other);
    return a === "" || b === "" ? (a === "") - (b === "") : sign * compared(a, b);
  });
}

function fileName(title) {
  const spelt = title.replaceAll("σ", "sigma").replaceAll("γ", "gamma");
  return `${spelt.replace(/[^\w.]+/g, "-").replace(/^-|-$/g, "")}.svg`;
}

// A plot stands by itself, so that a file of it is its own source.
function savable(figure) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "save";
  button.textContent = "Save as SVG";
  button.addEventListener("click", () => {
    const picture = figure.querySelector("svg");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(picture)], { type: "image/svg+xml" }));
    link.download = fileName(picture.querySelector("title").textContent);
    link.click();
    URL.revokeObjectURL(link.href);
  });
  figure.querySelector("figcaption").append(" ", button);
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("figure").forEach(savable);
