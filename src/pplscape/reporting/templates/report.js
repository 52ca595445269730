"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  // ---- theme
  const button = byId("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.hidden = false;
  label();
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("pplscape-theme", root.dataset.theme); } catch (e) { /* see theme.js */ }
    label();
    dispatchEvent(new Event("themechange"));
  });

  // ---- what a mark says, on hover or touch
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const show = (event) => {
    const mark = event.target.closest && event.target.closest("[data-tip]");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const width = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(event.pageX + 14, scrollX + width - tip.offsetWidth - 8));
    const above = event.clientY > innerHeight - tip.offsetHeight - 24;
    tip.style.left = left + "px";
    tip.style.top = (above ? event.pageY - tip.offsetHeight - 12 : event.pageY + 16) + "px";
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);

  // ---- on paper everything is unfolded
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((d) => { d.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((d) => { d.open = false; }));

  // ---- the budget slider
  const data = byId("calculator-data");
  if (!data) return;
  const { curve, budget, overhead, seconds_per_token } = JSON.parse(data.textContent);
  const points = curve.filter((p) => p.selection.loss !== null && p.random.loss !== null);
  if (points.length < 2) { byId("calculator").hidden = true; return; }
  const logs = points.map((p) => Math.log(p.tokens));
  const first = logs[0], last = logs[logs.length - 1];
  const significant = (v) => Number(v.toPrecision(3)).toLocaleString("en");
  const tokens = (v) => {
    for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (v >= size * 0.9995) return significant(v / size) + " " + unit;
    return significant(v);
  };
  const between = (x, pick) => {
    let i = logs.findIndex((l) => l >= x);
    i = i < 1 ? 1 : i;
    const share = (x - logs[i - 1]) / (logs[i] - logs[i - 1]);
    const a = pick(points[i - 1]), b = pick(points[i]);
    return a === null || b === null ? null : a + share * (b - a);
  };
  const at = (x, who) => ["loss", "low", "high"].map((k) => between(x, (p) => p[who][k]));
  const loss = ([v, low, high]) => v.toFixed(3) + (low === null || high === null ? "" : ` [${low.toFixed(3)}, ${high.toFixed(3)}]`);
  const needed = (target) => {  // where random's curve first reaches the loss: a log of tokens, or an end of the curve
    for (let i = 1; i < points.length; i++) {
      const a = points[i - 1].random.loss, b = points[i].random.loss;
      if (i === 1 && a <= target) return [logs[0], "at most "];
      if (b <= target) return [logs[i - 1] + (a - target) / (a - b) * (logs[i] - logs[i - 1]), ""];
    }
    return [last, "more than "];
  };
  const slider = byId("c-tokens"), price = byId("c-price"), speed = byId("c-speed");
  if (seconds_per_token) speed.value = Number((1 / seconds_per_token).toPrecision(3));
  const cost = (n) => {
    const hours = n / Number(speed.value) / 3600;
    if (!(hours >= 0) || !isFinite(hours)) return "–";
    const time = hours < 1 / 60 ? significant(hours * 3600) + " s" : hours < 1 ? significant(hours * 60) + " min" : significant(hours) + " h";
    const money = hours * Number(price.value);
    const shown = money.toLocaleString("en", { minimumFractionDigits: money < 100 ? 2 : 0, maximumFractionDigits: money < 100 ? 2 : 0 });
    return `${time}, costs ${money > 0 && money < 0.01 ? "under 0.01" : shown}`;
  };
  const drawMarker = (x) => {
    for (const svg of document.querySelectorAll("svg[data-frame]")) {
      const frame = JSON.parse(svg.dataset.frame);
      let group = svg.querySelector(".marker");
      if (!group) {
        group = document.createElementNS("http://www.w3.org/2000/svg", "g");
        group.setAttribute("class", "marker");
        svg.append(group);
      }
      const [l0, l1] = frame.x.map(Math.log);
      const px = frame.px[0] + (x - l0) / (l1 - l0) * (frame.px[1] - frame.px[0]);
      const py = (v) => frame.py[0] + (v - frame.y[0]) / (frame.y[1] - frame.y[0]) * (frame.py[1] - frame.py[0]);
      const dot = (who, colour) => `<circle cx="${px}" cy="${py(at(x, who)[0])}" r="6" fill="var(--${colour})" stroke="var(--page)" stroke-width="2"/>`;
      group.innerHTML = `<line x1="${px}" x2="${px}" y1="${frame.py[0]}" y2="${frame.py[1]}" stroke="var(--ink)" stroke-width="1"/>`
        + dot("random", "random") + dot("selection", "select");
    }
  };
  const update = () => {
    const x = first + slider.value / 1000 * (last - first), n = Math.exp(x);
    const chosen = at(x, "selection"), [needs, bound] = needed(chosen[0]), more = Math.exp(needs) - n;
    byId("o-tokens").textContent = tokens(n) + " tokens";
    byId("o-selection").textContent = loss(chosen);
    byId("o-random").textContent = loss(at(x, "random"));
    byId("o-needs").textContent = `${bound}${tokens(Math.exp(needs))} tokens (${Math.exp(needs - x).toFixed(2)}×)`;
    byId("o-cost").textContent = cost(n);
    byId("o-saved").textContent = more > 0 ? bound.replace("at most ", "") + cost(more) : "nothing";
    byId("o-overhead").textContent = overhead === null ? "–" : cost(overhead);
    drawMarker(x);
  };
  const start = Math.min(Math.max(Math.log(budget), first), last);
  slider.value = Math.round(1000 * (start - first) / (last - first));
  for (const field of [slider, price, speed]) field.addEventListener("input", update);
  byId("calculator").addEventListener("submit", (e) => e.preventDefault());
  update();
})();
