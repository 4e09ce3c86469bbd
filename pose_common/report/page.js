"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  root.classList.add("scripted");
  const SVG = "http://www.w3.org/2000/svg";
  const PAGE = 48;

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function drawing(tag, attributes = {}, ...children) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // The theme: the system's, until the button says otherwise.
  document.getElementById("theme").addEventListener("click", () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const dark = (root.dataset.theme ?? system) === "dark";
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Tables that are sorted by a click on a column's name.
  const collator = new Intl.Collator("en", { numeric: true });
  function cellValue(row, index) {
    const cell = row.cells[index];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = parseFloat(text);
    return Number.isNaN(number) ? text : number;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === typeof b) return collator.compare(a, b);
    return typeof a === "number" ? -1 : 1;
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, index) => {
      const button = element("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(cellValue(a, index), cellValue(b, index)));
        body.append(...rows);
      });
    });
  }

  // Lines of the curves.
  for (const button of document.querySelectorAll("[data-toggle]")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", shown);
      for (const line of document.querySelectorAll("#curves .line")) {
        const name = line.dataset.series;
        if (name.split(/[/ ]/)[0] === button.dataset.toggle) {
          line.classList.toggle("hidden", !shown);
        }
      }
    });
  }

  // One table of keypoints at a time.
  const pick = document.getElementById("pick-errors");
  function showAnalysis() {
    for (const part of document.querySelectorAll(".analysis")) {
      part.classList.toggle("chosen", part.dataset.index === pick.value);
    }
  }
  if (pick) {
    pick.addEventListener("change", showAnalysis);
    showAnalysis();
  }

  // Settings that contain a text.
  const find = document.getElementById("find-setting");
  if (find) {
    find.addEventListener("input", () => {
      const wanted = find.value.toLowerCase();
      for (const row of document.querySelectorAll("#all-settings tbody tr")) {
        row.classList.toggle("unwanted", !row.textContent.toLowerCase().includes(wanted));
      }
    });
  }

  // The gallery.
  const form = document.getElementById("filters");
  if (!form) return;
  const NOT_FOUND = data.kinds.indexOf("not found");
  const NOBODY = data.kinds.indexOf("nobody's");
  const cards = document.getElementById("cards");
  const detail = document.getElementById("detail");
  let chosen = [];
  let shown = 0;
  let current = 0;

  function fill(select, names, values = names) {
    const first = select.options[0];
    const before = select.value;
    select.replaceChildren(first, ...names.map((name, i) => element("option", { value: values[i] }, name)));
    select.value = [...select.options].some((option) => option.value === before) ? before : "";
  }

  function fillKeypoints() {
    const wanted = form.elements.result.value;
    const skeletons = data.skeletons.flatMap((own) => (wanted ? [own[wanted]].filter(Boolean) : Object.values(own)));
    fill(form.elements.keypoint, [...new Set(skeletons.flatMap((skeleton) => skeleton.keypoints))]);
  }

  // Of the item's own run: another one may have the dataset with other keypoints.
  function skeletonOf(item) {
    return data.skeletons[item.run][item.result];
  }

  function kindOf(item, keypoint) {
    if (item.id === null) return NOBODY;
    if (item.kinds === null) return item.truth[keypoint][2] > 0 ? NOT_FOUND : -1;
    return item.kinds[keypoint];
  }

  function hasError(item, keypoint, kind) {
    const names = skeletonOf(item).keypoints;
    const indices = keypoint ? [names.indexOf(keypoint)] : names.map((_, index) => index);
    return indices.some((index) => {
      if (index < 0) return false;
      const found = kindOf(item, index);
      return kind === "" ? found >= 0 && found !== NOBODY : found === Number(kind);
    });
  }

  function sizeOf(item) {
    if (item.area === null) return "";
    return item.area < 32 ** 2 ? "small" : item.area <= 96 ** 2 ? "medium" : "large";
  }

  function inRange(value, from, to) {
    if (from === "" && to === "") return true;
    return value !== null && (from === "" || value >= Number(from)) && (to === "" || value <= Number(to));
  }

  function wanted(item) {
    const f = Object.fromEntries(new FormData(form));
    return (
      (!f.run || item.run === Number(f.run)) &&
      (!f.result || item.result === f.result) &&
      ((!f.keypoint && f.kind === "") || hasError(item, f.keypoint, f.kind)) &&
      (!f.size || sizeOf(item) === f.size) &&
      inRange(item.score, f.score_from, f.score_to) &&
      inRange(item.oks, f.oks_from, f.oks_to)
    );
  }

  const ORDERS = {
    worst: (a, b) => (a.oks ?? -1) - (b.oks ?? -1),
    best: (a, b) => (b.oks ?? -1) - (a.oks ?? -1),
    score: (a, b) => (b.score ?? -1) - (a.score ?? -1),
    area: (a, b) => (b.area ?? -1) - (a.area ?? -1),
  };

  function skeleton(item, which) {
    const { limbs, sides } = skeletonOf(item);
    const points = item[which];
    const group = drawing("g", { class: `skeleton ${which}` });
    if (points === null) return group;
    for (const [a, b] of limbs) {
      if (points[a][2] <= 0 || points[b][2] <= 0) continue;
      const side = sides[a] === sides[b] ? sides[a] : [sides[a], sides[b]].find((name) => name !== "centre");
      const crossing = sides[a] !== sides[b] && sides[a] !== "centre" && sides[b] !== "centre";
      const ends = { x1: points[a][0], y1: points[a][1], x2: points[b][0], y2: points[b][1] };
      group.append(drawing("line", { class: crossing ? "centre" : side, ...ends }));
    }
    const radius = (Math.max(item.width, item.height) / 100) * (points.length > 40 ? 0.5 : 1.2);
    points.forEach((point, index) => {
      if (point[2] <= 0) return;
      const place = { cx: point[0], cy: point[1] };
      const dot = drawing("circle", { class: sides[index], r: radius, ...place });
      const names = skeletonOf(item).keypoints;
      const kind = item.kinds ? data.kinds[item.kinds[index]] : "";
      dot.append(drawing("title", {}, document.createTextNode(`${names[index]}${kind ? ": " + kind : ""}`)));
      group.append(dot);
      if (which === "pose" && kind && kind !== "good" && wantedRing(index, item)) {
        group.append(drawing("circle", { class: `ring ${kind}`, r: radius * 2.2, ...place }));
      }
    });
    return group;
  }

  // With a filter, rings mark what it asks for; without one, every error.
  function wantedRing(index, item) {
    const keypoint = form.elements.keypoint.value;
    const kind = form.elements.kind.value;
    const name = skeletonOf(item).keypoints[index];
    return (!keypoint || keypoint === name) && (kind === "" || Number(kind) === item.kinds[index]);
  }

  function tile(item, layers, hover) {
    const source = `data:image/jpeg;base64,${item.picture}`;
    const box = `0 0 ${item.width} ${item.height}`;
    const picture = drawing("svg", { viewBox: box, role: "img", "aria-label": describe(item) });
    picture.append(drawing("image", { href: source, width: item.width, height: item.height }));
    // Coordinates are those of pixels' centres; pixel 0 covers 0 to 1 here.
    const moved = drawing("g", { transform: "translate(0.5 0.5)" });
    moved.append(...layers.map((which) => skeleton(item, which)));
    picture.append(moved);
    return element("div", { class: hover ? "tile hover-truth" : "tile" }, picture);
  }

  function tiles(item, view) {
    const pair = element("div", { class: "pair" });
    if (view === "beside") pair.append(tile(item, ["truth"]), tile(item, ["pose"]));
    else if (view === "picture") pair.append(tile(item, []));
    else pair.append(tile(item, ["pose", "truth"], view === "both"));
    return pair;
  }

  function figure(value, digits = 2) {
    return value === null ? "–" : value.toFixed(digits);
  }

  function describe(item) {
    const what = item.id === null ? "a pose of nobody" : item.pose === null ? "not found" : `OKS ${figure(item.oks)}`;
    return `${item.result}, ${item.file}: ${what}`;
  }

  function card(item, index) {
    const view = form.elements.view.value;
    const run = data.runs.length > 1 ? ` · ${data.runs[item.run]}` : "";
    const state = item.id === null ? "nobody's" : item.pose === null ? "not found" : `OKS ${figure(item.oks)}`;
    const meta = element("span", { class: "meta" }, element("b", {}, state), ` · score ${figure(item.score)}${run}`);
    meta.append(element("br"), `${item.result} · ${item.file}`);
    const named = { type: "button", class: "card", "aria-label": describe(item) };
    const button = element("button", named, tiles(item, view), meta);
    button.addEventListener("click", () => open(index));
    return button;
  }

  function more() {
    const end = Math.min(shown + PAGE, chosen.length);
    for (; shown < end; shown++) cards.append(card(chosen[shown], shown));
    document.getElementById("more").hidden = shown >= chosen.length;
  }

  function update() {
    chosen = data.items.filter(wanted).sort(ORDERS[form.elements.order.value]);
    shown = 0;
    cards.replaceChildren();
    cards.classList.toggle("wide", form.elements.view.value === "beside");
    document.getElementById("count").textContent = `${chosen.length} of ${data.items.length} pictures`;
    more();
  }

  // The same annotation, by other maps or in another run.
  function samePerson(one, other) {
    const split = (item) => item.result.split(" ").slice(0, 2).join(" ");
    return one.id !== null && one.id === other.id && split(one) === split(other);
  }

  function open(index) {
    current = (index + chosen.length) % chosen.length;
    const item = chosen[current];
    const { keypoints } = skeletonOf(item);
    const place = `${current + 1} of ${chosen.length}`;
    document.getElementById("detail-title").textContent = `${item.file} · ${item.result} (${place})`;
    const rows = keypoints.map((name, k) => {
      const kind = kindOf(item, k);
      if (kind < 0 || kind === NOBODY) return null;
      const label = data.kinds[kind];
      const mark = element("span", { class: `dot k-${label.replace(" ", "-")}` });
      const similarity = item.similarity ? figure(item.similarity[k]) : "–";
      const confidence = item.pose ? figure(item.pose[k][2]) : "–";
      const cells = [element("td", {}, mark, label), element("td", {}, similarity), element("td", {}, confidence)];
      return element("tr", {}, element("th", { scope: "row" }, name), ...cells);
    });
    const heads = ["keypoint", "kind", "similarity", "confidence"].map((name) => element("th", { scope: "col" }, name));
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)));
    table.append(element("tbody", {}, ...rows.filter(Boolean)));
    const area = item.area === null ? "" : `, ${Math.sqrt(item.area).toFixed(0)}² px (${sizeOf(item)})`;
    const text = `${describe(item)}, score ${figure(item.score)}${area}; ${data.runs[item.run]}, step ${item.step}`;
    const pair = element("div", { class: "pair" }, tile(item, ["truth"]), tile(item, ["pose"]));
    const same = data.items.filter((other) => other !== item && samePerson(item, other)).map((other) => {
      const name = [other.result, data.runs[other.run], `OKS ${figure(other.oks)}`].join(" · ");
      return element("figure", {}, tile(other, ["pose", "truth"]), element("figcaption", { class: "meta" }, name));
    });
    const body = document.getElementById("detail-body");
    body.replaceChildren(pair, element("p", {}, text), table);
    if (same.length) {
      body.append(element("h4", {}, "The same one in other results"), element("div", { class: "others" }, ...same));
    }
    if (!detail.open) detail.showModal();
  }

  const results = [...new Set(data.skeletons.flatMap(Object.keys))];
  fill(form.elements.result, results);
  fill(form.elements.kind, data.kinds, data.kinds.map((_, index) => index));
  form.elements.result.value = results[0];
  fillKeypoints();
  form.elements.result.addEventListener("change", fillKeypoints);
  form.addEventListener("input", update);
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { fillKeypoints(); update(); }));
  document.getElementById("more").addEventListener("click", more);
  document.getElementById("close").addEventListener("click", () => detail.close());
  document.getElementById("previous").addEventListener("click", () => open(current - 1));
  document.getElementById("next").addEventListener("click", () => open(current + 1));
  detail.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") open(current - 1);
    if (event.key === "ArrowRight") open(current + 1);
  });
  detail.addEventListener("click", (event) => { if (event.target === detail) detail.close(); });
  update();
})();
