// Tables that are sorted by their heads and filtered by a field above them; without this script they are whole.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (x, y) => {
    const a = parseFloat(x), b = parseFloat(y);
    if (isNaN(a) || isNaN(b)) return isNaN(a) && isNaN(b) ? x.localeCompare(y, "en", { numeric: true }) : 0;
    return a - b;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending", missing = (row) => /^[-–]?$/.test(value(row, column));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const sorted = [...rows].sort((a, b) => missing(a) - missing(b)
        || compare(value(a, column), value(b, column)) * (rising ? 1 : -1));
      body.append(...sorted);
    });
  });
  if (rows.length < 4) continue;
  const label = document.createElement("label"), field = document.createElement("input"), left = document.createElement("span");
  field.type = "search";
  left.setAttribute("role", "status");
  label.className = "filter";
  label.append("Filter ", field, " ", left);
  table.parentElement.before(label);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    const shown = rows.filter((row) => !row.hidden).length;
    left.textContent = shown < rows.length ? `${shown} of ${rows.length} rows` : "";
  });
}
