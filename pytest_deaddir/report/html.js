
"use strict";

// A heading sorts its column: ascending, descending, and as it was. What is empty stays at the end.
function sortable(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
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
    link.download = `${picture.querySelector("title").textContent.replace(/[^\w.]+/g, "-")}.svg`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  figure.querySelector("figcaption").append(" ", button);
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("figure").forEach(savable);
