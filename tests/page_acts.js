// What a reader does with a report, and what then holds; evaluated in the page by tests/test_report.py.
(async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms));
  const names = () => [...document.querySelectorAll("#tasks tbody tr")].filter(row => !row.hidden)
    .map(row => row.cells[0].dataset.key);
  const keys = column => [...document.querySelectorAll("#tasks tbody tr")].map(row => row.cells[column].dataset.key);
  const head = word => [...document.querySelectorAll("#tasks th button")].find(x => x.textContent.trim() === word);
  const type = (id, words) => {
    const field = document.getElementById(id);
    field.value = words;
    field.dispatchEvent(new Event("input"));
  };
  const found = { all: names() };
  head("return").click();
  const column = head("return").closest("th").cellIndex;
  found.up = [keys(column), head("return").closest("th").getAttribute("aria-sort")];
  head("return").click();
  found.down = [keys(column), head("return").closest("th").getAttribute("aria-sort")];
  type("find", "reach");
  found.reach = names();
  found.count = document.getElementById("count").textContent;
  type("find", "");
  type("suite", "metaworld");
  found.suite = names();
  type("suite", "");
  found.again = names().length;
  found.focusable = document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']").length;
  found.closed = [...document.querySelectorAll("details")].filter(part => part.open).length;
  location.hash = document.querySelector(".cells a").hash;
  await wait(300);
  found.open = [...document.querySelectorAll("details")].filter(part => part.open).map(part => part.id);
  found.focused = document.activeElement.tagName;
  found.wide = document.documentElement.scrollWidth > innerWidth;
  const film = document.querySelector("details[open] video");
  found.preload = film ? film.preload : "";
  found.film = film ? await Promise.race([film.play().then(() => "plays", error => error.name), wait(10000)]) : "";
  found.loaded = performance.getEntriesByType("resource").map(entry => entry.name);
  return JSON.stringify(found);
})()
