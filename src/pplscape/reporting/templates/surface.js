"use strict";
// The law's surface on a canvas: painter's algorithm, turned by dragging, slowly by itself until touched.
(() => {
  const canvas = document.getElementById("surface");
  const { mean, std, loss, pilots, axes, tokens, log } = JSON.parse(document.getElementById("surface-data").textContent);
  const known = loss.flat().filter((v) => v !== null).concat(pilots.map((p) => p[2]));
  const range = (values) => { const a = Math.min(...values), b = Math.max(...values); return [a, b > a ? b : a + 1]; };
  const limits = [range(mean.concat(pilots.map((p) => p[0]))), range(std.flat().concat(pilots.map((p) => p[1]))), range(known)];
  const scaled = (v, k) => (log && k < 2 ? Math.log(v) : v);
  const unit = (v, k) => 2 * (scaled(v, k) - scaled(limits[k][0], k)) / (scaled(limits[k][1], k) - scaled(limits[k][0], k)) - 1;
  // cividis at seven points, dark = worse
  const stops = ["#00224e", "#2a3f6d", "#575d6d", "#7d7c78", "#a59c74", "#d2c060", "#fee838"].map((h) => [1, 3, 5].map((i) => parseInt(h.slice(i, i + 2), 16)));
  const colour = (v) => {
    const t = Math.min(0.9999, Math.max(0, (1 - unit(v, 2)) / 2)) * (stops.length - 1), i = Math.floor(t);
    return "rgb(" + stops[i].map((c, k) => Math.round(c + (t - i) * (stops[i + 1][k] - c))).join() + ")";
  };
  const tiles = [];
  for (let i = 0; i + 1 < std.length; i++)
    for (let j = 0; j + 1 < mean.length; j++) {
      const corners = [[i, j], [i, j + 1], [i + 1, j + 1], [i + 1, j]];
      if (corners.every(([a, b]) => loss[a][b] !== null))
        tiles.push({
          at: corners.map(([a, b]) => [unit(mean[b], 0), unit(std[a][b], 1), unit(loss[a][b], 2)]),
          lines: [i % 4 === 0, j % 4 === 3, i % 4 === 3, j % 4 === 0],
          fill: colour(corners.reduce((sum, [a, b]) => sum + loss[a][b] / 4, 0)),
        });
    }
  const dots = pilots.map(([m, s, l]) => ({ dot: [unit(m, 0), unit(s, 1), unit(l, 2)], fill: colour(l) }));
  let turn = -0.7, tilt = 0.5, held = null, spinning = !matchMedia("(prefers-reduced-motion: reduce)").matches;

  const draw = () => {
    const width = canvas.clientWidth, height = 440, ratio = devicePixelRatio || 1;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = height + "px";
    const g = canvas.getContext("2d"), theme = getComputedStyle(document.documentElement);
    const ink = theme.getPropertyValue("--ink"), muted = theme.getPropertyValue("--muted"), page = theme.getPropertyValue("--page");
    g.scale(ratio, ratio);
    const [ct, st, ce, se] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
    const size = Math.min(width / 3.5, height / 3.2);
    const project = ([x, y, z]) => {
      const u = x * ct - y * st, depth = x * st + y * ct, up = z * 0.75;
      return [width / 2 + size * u, height * 0.47 - size * (up * ce - depth * se * -1), depth * ce - up * se];
    };
    const line = (a, b) => { const p = project(a), q = project(b); g.beginPath(); g.moveTo(p[0], p[1]); g.lineTo(q[0], q[1]); g.stroke(); };
    g.strokeStyle = muted;
    g.lineWidth = 0.8;
    for (const [a, b] of [[[-1, -1, -1], [1, -1, -1]], [[1, -1, -1], [1, 1, -1]], [[1, 1, -1], [-1, 1, -1]], [[-1, 1, -1], [-1, -1, -1]]]) line(a, b);
    const things = tiles.map((t) => ({ ...t, points: t.at.map(project) })).concat(dots.map((d) => ({ ...d, points: [project(d.dot)] })));
    for (const t of things) t.depth = t.points.reduce((sum, p) => sum + p[2], 0) / t.points.length - (t.dot ? 0.06 : 0);
    things.sort((a, b) => b.depth - a.depth);
    for (const t of things) {
      g.beginPath();
      if (t.dot) {
        g.arc(t.points[0][0], t.points[0][1], 5, 0, 7);
        g.fillStyle = t.fill; g.fill(); g.strokeStyle = "#fff"; g.lineWidth = 1.5; g.stroke();
      } else {
        t.points.forEach((p, i) => (i ? g.lineTo(p[0], p[1]) : g.moveTo(p[0], p[1])));
        g.closePath();
        g.fillStyle = g.strokeStyle = t.fill;
        g.lineWidth = 0.7;
        g.fill();
        g.stroke();
        g.strokeStyle = page;
        g.globalAlpha = 0.5;
        t.lines.forEach((drawn, i) => {
          if (!drawn) return;
          const p = t.points[i], q = t.points[(i + 1) % 4];
          g.beginPath(); g.moveTo(p[0], p[1]); g.lineTo(q[0], q[1]); g.stroke();
        });
        g.globalAlpha = 1;
      }
    }
    g.fillStyle = ink;
    g.font = "12px system-ui, sans-serif";
    g.textAlign = "center";
    const front = ct > 0 ? -1 : 1, side = st > 0 ? -1 : 1;
    const digits = (v) => String(Number(v.toPrecision(3)));
    const write = (text, at) => { const p = project(at); g.fillText(text, Math.min(Math.max(p[0], 45), width - 45), p[1] + 12); };
    write(digits(limits[0][0]), [-0.85, front * 1.12, -1]); write(digits(limits[0][1]), [0.85, front * 1.12, -1]); write(axes[0], [0, front * 1.3, -1]);
    write(digits(limits[1][0]), [side * 1.15, -0.85, -1]); write(digits(limits[1][1]), [side * 1.15, 0.85, -1]); write(axes[1], [side * 1.3, 0, -1]);
    g.textAlign = "left";
    g.fillText(`height: ${axes[2]}, ${digits(limits[2][0])} (bright) to ${digits(limits[2][1])} (dark); ${tokens}`, 4, height - 8);
  };
  const spin = () => {
    if (!spinning) return;
    if (canvas.clientWidth) { turn += 0.004; draw(); }
    requestAnimationFrame(spin);
  };
  canvas.addEventListener("pointerdown", (e) => { held = [e.clientX, e.clientY]; spinning = false; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointermove", (e) => {
    if (!held) return;
    turn += (e.clientX - held[0]) * 0.01;
    tilt = Math.min(1.4, Math.max(0.05, tilt + (e.clientY - held[1]) * 0.01));
    held = [e.clientX, e.clientY];
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = null; });
  document.querySelectorAll("input[name=plane]").forEach((r) => r.addEventListener("change", () => {
    draw();
    if (r.id === "plane3d" && spinning) requestAnimationFrame(spin);
  }));
  addEventListener("resize", draw);
  addEventListener("themechange", draw);
})();
