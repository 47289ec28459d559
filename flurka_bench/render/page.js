"use strict";
// The page's script: reads the embedded columns, draws the maps and the same cells as a table, answers hover, click and keys.
// No text from the records is ever parsed as HTML: it goes in by textContent, or escaped into the plot's labels.
(() => {
  const D = JSON.parse(document.getElementById("page-data").textContent);
  const $ = (id) => document.getElementById(id);
  const SYMBOL = { seq_len: "N", rank: "k", num_features: "m", head_dim: "d", num_heads: "h", batch: "b" };
  const AXES = Object.keys(SYMBOL);
  const SLICE = ["device", "level", "pass", "dtype"];
  const NAMES = { ...SYMBOL, pass: "pass", compression: "compression", share_kv: "E = F", share_heads: "E shared by heads",
    num_layers: "layers", ffn_dim: "ffn width", vocab_size: "vocabulary" };
  const STAGES = { project: "#0072B2", compress: "#E69F00", features: "#009E73", scores: "#D55E00", key_value: "#CC79A7",
    output: "#56B4E9", merge: "#999999", ffn: "#b8a800", other: "#777777" };
  const LIGHT = ["#543005", "#8c510a", "#bf812d", "#dfc27d", "#f6e8c3", "#f5f5f5", "#c7eae5", "#80cdc1", "#35978f", "#01665e", "#003c30"];
  const DARK = ["#ffd99a", "#e0a850", "#b07a2c", "#785220", "#4a3a26", "#2e3236", "#21443f", "#236b63", "#35978f", "#6cc9be", "#b4f0e7"];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const expand = (c, n) => c.values || (c.codes ? c.codes.map((i) => c.words[i]) : new Array(n).fill(c.words[0]));
  const R = Object.fromEntries(Object.entries(D.records).map(([k, c]) => [k, expand(c, D.count)]));
  const P = { ...D.pairs, verdict: expand(D.pairs.verdict, D.pairs.own.length), flops: expand(D.pairs.flops, D.pairs.own.length) };
  const rec = (name, i) => (R[name] ? R[name][i] : null);
  const el = (tag, text, attributes = {}) => {
    const e = document.createElement(tag);
    if (text !== undefined && text !== null) e.textContent = text;
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    return e;
  };
  const escapeLabel = (s) => String(s).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const digits = (v, n = 3) => Number(v.toPrecision(n)).toString();
  const seconds = (s) => s == null ? "n/a" : s >= 1 ? digits(s) + " s" : s >= 1e-3 ? digits(s * 1e3) + " ms" : s >= 1e-6 ? digits(s * 1e6) + " µs" : digits(s * 1e9) + " ns";
  const bytes = (b) => b == null ? "n/a" : b >= 1e9 ? digits(b / 1e9) + " GB" : b >= 1e6 ? digits(b / 1e6) + " MB" : digits(b / 1e3) + " kB";
  const ratio = (r) => r == null ? "?" : r >= 100 ? r.toFixed(0) + "×" : r >= 10 ? r.toFixed(1) + "×" : r.toFixed(2) + "×";
  const interval = (p) => P.high[p] == null ? "interval unknown" : `${ratio(P.low[p])} to ${ratio(P.high[p])}`;

  // ---- the chosen view -------------------------------------------------------------------------------------------------
  const S = { fixed: {} };
  let view, grid, missing, shown; // shown: {xs, ys, at: Map "x|y" -> cell}
  const at = (side, i) => (i === undefined || !view[side].length ? -1 : view[side][i]);
  const gridColumns = D.grids.map((g) => g);
  const gridCache = new Map();
  const columnsOf = (v) => {
    if (!gridCache.has(v.grid)) gridCache.set(v.grid, Object.fromEntries(Object.entries(gridColumns[v.grid]).map(([k, c]) => [k, expand(c, v.count)])));
    return gridCache.get(v.grid);
  };
  const devices = [...new Set(R.device || [])];
  const distinct = (values) => [...new Set(values)].sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b))));

  function select(name, label, values, chosen, onchange) {
    const box = el("label", label);
    const list = el("select", null, { id: "choose-" + name, name });
    for (const [value, text] of values) {
      const option = el("option", text, { value });
      if (String(value) === String(chosen)) option.selected = true;
      list.append(option);
    }
    list.addEventListener("change", () => { onchange(list.value); refresh("choose-" + name); });
    box.append(list);
    return box;
  }

  function refresh(focus) {
    const box = $("controls");
    box.replaceChildren();
    const subjects = Object.keys(D.views);
    if (!subjects.length) { $("map-body").replaceChildren(el("p", "There are no cells to map: no mechanism here has a time or a prediction.")); return; }
    if (!subjects.includes(S.subject)) S.subject = subjects[0];
    if (!(S.baseline in D.views[S.subject])) S.baseline = Object.keys(D.views[S.subject])[0];
    box.append(select("subject", "Speedup of", subjects.map((s) => [s, s]), S.subject, (v) => { S.subject = v; }));
    box.append(select("baseline", "over", Object.keys(D.baselines).map((b) => [b, D.baselines[b]]), S.baseline, (v) => { S.baseline = v; }));
    view = D.views[S.subject][S.baseline];
    grid = columnsOf(view);
    missing = view.missing ? expand(view.missing, view.count) : [];
    let cells = [...Array(view.count).keys()];
    const narrow = (name) => {
      if (!grid[name]) return;
      const values = distinct(cells.map((i) => grid[name][i]));
      if (name === "device") values.sort((a, b) => devices.indexOf(a) - devices.indexOf(b)); // as the runs or targets were given
      if (name === "level" && values.includes("layer") && !(name in S.fixed)) S.fixed.level = "layer"; // what the answer leads with
      if (!values.some((v) => String(v) === String(S.fixed[name]))) S.fixed[name] = values[AXES.includes(name) ? Math.floor(values.length / 2) : 0];
      if (values.length > 1) box.append(select(name, NAMES[name] || name, values.map((v) => [v, v === 0 ? "none" : String(v)]), S.fixed[name], (v) => { S.fixed[name] = v; }));
      cells = cells.filter((i) => String(grid[name][i]) === String(S.fixed[name]));
    };
    SLICE.forEach(narrow);
    const counts = Object.fromEntries(AXES.map((a) => [a, new Set(cells.map((i) => grid[a] && grid[a][i])).size]));
    const best = [...AXES].sort((a, b) => counts[b] - counts[a]);
    if (!AXES.includes(S.x) || (!S.chosenX && counts[S.x] < 2)) S.x = counts.seq_len > 1 ? "seq_len" : best[0];
    if (!AXES.includes(S.y) || S.y === S.x || (!S.chosenY && counts[S.y] < 2)) S.y = best.find((a) => a !== S.x);
    const words = { seq_len: "N, sequence length", rank: "k, rank", num_features: "m, num_features", head_dim: "d, head_dim", num_heads: "h, num_heads", batch: "b, batch" };
    box.append(select("x", "across", AXES.map((a) => [a, `${words[a]} (${counts[a]})`]), S.x, (v) => { S.chosenX = true; if (v === S.y) S.y = S.x; S.x = v; }));
    box.append(select("y", "up", AXES.map((a) => [a, `${words[a]} (${counts[a]})`]), S.y, (v) => { S.chosenY = true; if (v === S.x) S.x = S.y; S.y = v; }));
    Object.keys(NAMES).filter((n) => n !== S.x && n !== S.y && !SLICE.includes(n)).forEach(narrow);
    if (focus && $(focus)) $(focus).focus();
    shown = { xs: distinct(cells.map((i) => grid[S.x][i])), ys: distinct(cells.map((i) => grid[S.y][i])), at: new Map() };
    for (const i of cells) shown.at.set(grid[S.x][i] + "|" + grid[S.y][i], i);
    shown.thin = { [S.x]: thin(S.x, shown.xs), [S.y]: thin(S.y, shown.ys) };
    draw();
  }

  // ---- rows and columns with fewer of the subject's mechanisms than others -------------------------------------------------
  function thin(name, values) {
    if (!view.subjects) return new Map();
    const all = expand(view.subjects, view.count), held = new Map(values.map((v) => [v, new Set()]));
    for (const i of shown.at.values()) if (all[i]) all[i].split(", ").forEach((s) => held.get(grid[name][i]).add(s));
    const most = new Set([...held.values()].flatMap((s) => [...s])).size;
    return new Map([...held].filter(([, s]) => s.size && s.size < most).map(([v, s]) => [v, [...s].sort().join(", ")]));
  }
  function thinWords() {
    const said = new Map();
    for (const [name, values] of [[S.y, shown.ys], [S.x, shown.xs]]) for (const [v, text] of shown.thin[name]) said.set(SYMBOL[name] + "|" + text, [...(said.get(SYMBOL[name] + "|" + text) || []), v]);
    return [...said].map(([key, values]) => `* at ${key.split("|")[0]} = ${values.join(", ")}: ${key.split("|")[1]} only`).join("; ");
  }

  // ---- one cell in words -----------------------------------------------------------------------------------------------
  const place = (x, y) => `${SYMBOL[S.x]} = ${x}, ${SYMBOL[S.y]} = ${y}`;
  const hole = (i, x, y) => {
    if (i === undefined) {
      const at = { ...S.fixed, [S.x]: x, [S.y]: y };
      return Number(at.rank) > Number(at.seq_len) ? "k > N: impossible" : "not in this run";
    }
    return missing[i] || "no time";
  };
  const bound = (i) => (rec("limited_by", i) || rec("bound", i) || "").replace("-bound", "");
  function reason(p) {
    const [a, b] = [P.own[p], P.other[p]], parts = [];
    for (const [name, word] of [["stages_s", "measured"], ["predicted_stages_s", "predicted"]]) {
      const mine = rec(name, a), theirs = rec(name, b);
      if (!mine || !theirs) continue;
      const stages = [...new Set([...Object.keys(mine), ...Object.keys(theirs)])];
      const gap = (s) => (theirs[s] || 0) - (mine[s] || 0);
      const won = stages.reduce((t, s) => t + gap(s), 0) > 0;
      const stage = stages.sort((s, t) => (won ? gap(t) - gap(s) : gap(s) - gap(t)))[0];
      parts.push(`${won ? "saves" : "loses"} most in ${stage} (${seconds(mine[stage] || 0)} against ${seconds(theirs[stage] || 0)}, ${word})`);
      break;
    }
    if (bound(a) && bound(b)) parts.push(bound(a) === bound(b) ? `both ${bound(a)}-bound` : `${bound(a)}-bound, the other ${bound(b)}-bound`);
    if (rec("flops", a) && rec("flops", b)) parts.push(`needs ${ratio(rec("flops", a) / rec("flops", b))} the FLOPs`);
    if (P.flops[p]) parts.push(`fewer matmul FLOPs where ${P.flops[p]}`);
    return parts.join("; ");
  }
  const off = (i) => { // predicted over measured speedup, where both are known
    const [m, p] = [at("measured", i), at("predicted", i)];
    return m < 0 || p < 0 ? null : P.ratio[p] / P.ratio[m];
  };
  const offWords = (i) => off(i) === null ? "" : `predicted ${ratio(P.ratio[at("predicted", i)])}, measured ${ratio(P.ratio[at("measured", i)])}: ${off(i) >= 1 ? "+" : "−"}${(100 * Math.abs(off(i) - 1)).toFixed(1)} %`;
  const form = (i) => [rec("mechanism", i), rec("order", i), rec("backend", i)].filter(Boolean).join(" ");
  function lines(side, i, x, y) {
    const p = at(side, i);
    if (p < 0) return [place(x, y), side === "measured" ? hole(i, x, y) : "no prediction"];
    const time = (r) => side === "measured" ? `${seconds(rec("median_s", r))} (${(rec("samples_s", r) || []).length} samples)`
      : `${seconds(rec("predicted_s", r))} (${seconds(rec("predicted_low_s", r))} to ${seconds(rec("predicted_high_s", r))})`;
    return [`${place(x, y)}: ${ratio(P.ratio[p])} (${interval(p)}) ${P.verdict[p]}`, `${form(P.own[p])}: ${time(P.own[p])}`,
      `${form(P.other[p])}: ${time(P.other[p])}`, offWords(i), ...reason(p).split("; ")].filter(Boolean);
  }

  const fold = (text, most) => text.split(" ").reduce((done, word) => { // hover labels do not wrap by themselves
    if (done.length && done[done.length - 1].length + word.length < most) done[done.length - 1] += " " + word; else done.push(word);
    return done;
  }, []);

  // ---- the maps --------------------------------------------------------------------------------------------------------
  function scale() {
    const all = ["measured", "predicted"].flatMap((side) => [...shown.at.values()].map((i) => at(side, i)).filter((p) => p >= 0).map((p) => Math.abs(Math.log2(P.ratio[p]))));
    all.sort((a, b) => a - b);
    const most = all.length ? all[Math.floor(0.9 * (all.length - 1))] : 1;
    return [1, 2, 3, 4].find((limit) => limit >= most) || 4;
  }
  function draw() {
    const limit = scale(), sides = ["measured", "predicted"].filter((side) => view[side].some((p) => p >= 0));
    const ramp = dark.matches ? DARK : LIGHT;
    $("ramp").style.background = `linear-gradient(to right, ${ramp.join(",")})`;
    $("ramp-low").textContent = `1/${2 ** limit}×`; $("ramp-high").textContent = `${2 ** limit}×`;
    $("caption").textContent = `Speedup of ${S.subject} over ${D.baselines[S.baseline]}: ` +
      [...SLICE, ...Object.keys(NAMES).filter((n) => ![S.x, S.y, "pass", "num_layers", "ffn_dim", "vocab_size", "share_kv", "share_heads", "compression"].includes(n))]
        .map((n) => SLICE.includes(n) ? S.fixed[n] : S.fixed[n] ? `${SYMBOL[n] || n} = ${S.fixed[n]}` : "").filter(Boolean).join(" · ");
    $("thin").textContent = thinWords();
    $("panels").classList.toggle("one", sides.length === 1);
    for (const side of ["measured", "predicted"]) {
      $("panel-" + side).hidden = !sides.includes(side);
      if (sides.includes(side)) drawMap(side, limit, ramp);
    }
    drawTable(sides);
    drawCrossings();
    showDetail(sides[0], undefined);
  }
  const numbers = (side) => shown.ys.map((y) => shown.xs.map((x) => {
    const i = shown.at.get(x + "|" + y), p = at(side, i);
    return p < 0 ? null : Math.log2(P.ratio[p]);
  }));
  // Where the two are equally fast, as segments of [column, row]: interpolated between the centres of cells that compare the same
  // forms, along the border of cells that do not, straight beside such a border or a hole. As even_lines in plots/heatmap.py.
  function evenLines(table, pairs) {
    const rows = table.length, columns = rows ? table[0].length : 0, found = [];
    if (rows < 2 || columns < 2) return found;
    const whole = (r, c) => {
      if (r < 1 || c < 1 || r >= rows || c >= columns) return false;
      const corners = [[r - 1, c - 1], [r - 1, c], [r, c - 1], [r, c]];
      return corners.every(([i, j]) => table[i][j] !== null && pairs[i][j] === pairs[r][c]);
    };
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) for (const [dr, dc] of [[0, 1], [1, 0]]) {
      if (r + dr >= rows || c + dc >= columns) continue;
      const here = table[r][c], there = table[r + dr][c + dc];
      if (here === null || there === null || (here >= 0) === (there >= 0)) continue;
      const share = pairs[r][c] === pairs[r + dr][c + dc] ? here / (here - there) : 0.5;
      const torn = dc ? [!whole(r, c + 1), !whole(r + 1, c + 1)] : [!whole(r + 1, c), !whole(r + 1, c + 1)];
      const outer = dc ? [r === 0, r === rows - 1] : [c === 0, c === columns - 1];
      [-0.5, 0.5].forEach((sign, i) => {
        if (torn[i] && (!outer[i] || torn[1 - i])) found.push(dc ? [[c + share, r], [c + share, r + sign]] : [[c, r + share], [c + sign, r + share]]);
      });
    }
    for (let r = 1; r < rows; r++) for (let c = 1; c < columns; c++) if (whole(r, c)) {
      const [a, b, d, e] = [table[r - 1][c - 1], table[r - 1][c], table[r][c], table[r][c - 1]], met = [];
      for (const [one, other, x, y, dx, dy] of [[a, b, 0, 0, 1, 0], [b, d, 1, 0, 0, 1], [d, e, 1, 1, -1, 0], [e, a, 0, 1, 0, -1]])
        if ((one >= 0) !== (other >= 0)) met.push([c - 1 + x + dx * one / (one - other), r - 1 + y + dy * one / (one - other)]);
      if (met.length === 4 && (a + b + d + e >= 0) !== (a >= 0)) met.unshift(met.pop());
      for (let i = 0; i < met.length; i += 2) found.push([met[i], met[i + 1]]);
    }
    return found;
  }
  function drawMap(side, limit, ramp) {
    const { xs, ys } = shown, style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink").trim();
    const cell = (x, y) => shown.at.get(x + "|" + y);
    const pair = (x, y) => at(side, cell(x, y));
    const label = (x, y) => lines(side, cell(x, y), x, y).flatMap((line) => fold(line, innerWidth < 760 ? 40 : 90)).map(escapeLabel).join("<br>");
    const small = xs.length * ys.length <= (innerWidth < 760 ? 64 : 240);
    const heat = { type: "heatmap", z: numbers(side), x: xs.map((_, c) => c), y: ys.map((_, r) => r), zmin: -limit, zmax: limit, xgap: 1, ygap: 1, showscale: false,
      colorscale: ramp.map((colour, i) => [i / (ramp.length - 1), colour]), customdata: ys.map((y) => xs.map((x) => label(x, y))), hoverongaps: false,
      hovertemplate: "%{customdata}<extra></extra>", text: ys.map((y) => xs.map((x) => (pair(x, y) < 0 ? "" : ratio(P.ratio[pair(x, y)]).replace("×", "")))),
      texttemplate: small ? "%{text}" : "", textfont: { size: 11 } };
    const hatch = { type: "scatter", mode: "lines", x: [], y: [], hoverinfo: "skip", line: { color: dark.matches ? "rgba(255,255,255,0.35)" : "rgba(40,40,40,0.35)", width: 1 }, showlegend: false };
    const holes = { type: "scatter", mode: "text", x: [], y: [], text: [], customdata: [], hovertemplate: "%{customdata}<extra></extra>", textfont: { size: 9, color: style.getPropertyValue("--soft").trim() }, showlegend: false };
    const shapes = [];
    ys.forEach((y, r) => xs.forEach((x, c) => {
      const p = pair(x, y);
      if (p < 0) {
        shapes.push({ type: "rect", layer: "below", x0: c - 0.49, x1: c + 0.49, y0: r - 0.49, y1: r + 0.49, line: { width: 0 }, fillcolor: style.getPropertyValue("--hole").trim() });
        holes.x.push(c); holes.y.push(r); holes.customdata.push(label(x, y));
        const why = hole(cell(x, y), x, y), status = /: (oom|timeout|crashed|incorrect|invalid|skipped|unsupported)/.exec(why);
        holes.text.push(!small ? "" : status ? status[1] : why.startsWith("k > N") ? "k > N" : "–");
      } else if (P.verdict[p] === "AMBIGUOUS" || P.verdict[p] === "SAME") {
        for (const o of [-0.5, 0, 0.5]) { // three strokes of slope one, clipped to the cell
          const from = Math.max(-0.48, -0.48 - o), to = Math.min(0.48, 0.48 - o);
          hatch.x.push(c + from, c + to, null);
          hatch.y.push(r + from + o, r + to + o, null);
        }
      }
    }));
    const contours = ["measured", "predicted"].filter((s) => view[s].some((p) => p >= 0)).flatMap((s) => {
      const pairs = ys.map((y) => xs.map((x) => { const p = at(s, cell(x, y)); return p < 0 ? "" : [P.own[p], P.other[p]].map((r) => [rec("mechanism", r), rec("order", r), rec("backend", r)].join(" ")).join("|"); }));
      const lines = evenLines(numbers(s), pairs), x = [], y = [];
      lines.forEach(([[x0, y0], [x1, y1]]) => { x.push(x0, x1, null); y.push(y0, y1, null); });
      return lines.length ? [[4.5, dark.matches ? "#15181b" : "#ffffff"], [2, ink]].map(([width, color]) => ({ type: "scatter", mode: "lines", name: `1x ${s}`, x, y, hoverinfo: "skip", showlegend: false,
        line: { width, color, dash: s === "measured" ? "solid" : "dash" } })) : [];
    });
    const axis = (values, title, size, name) => ({ tickvals: values.map((_, i) => i), ticktext: values.map((v) => (v === 0 ? "none" : String(v)) + (shown.thin[name].has(v) ? "*" : "")), title: { text: title, standoff: 6 }, range: [-0.5, values.length - 0.5],
      fixedrange: true, showgrid: false, zeroline: false, ticks: "", tickfont: { size }, automargin: true });
    Plotly.react($("plot-" + side), [heat, hatch, holes, ...contours], {
      xaxis: axis(xs, SYMBOL[S.x], 11, S.x), yaxis: axis(ys, SYMBOL[S.y], 11, S.y), shapes, dragmode: false, hovermode: "closest", showlegend: false, margin: { l: 44, r: 8, t: 6, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif" },
      hoverlabel: { bgcolor: style.getPropertyValue("--panel").trim(), font: { color: ink, size: 12 }, bordercolor: style.getPropertyValue("--line").trim(), align: "left" },
    }, { displayModeBar: false, responsive: true });
    const plot = $("plot-" + side);
    plot.removeAllListeners && plot.removeAllListeners("plotly_click");
    plot.on("plotly_click", (event) => {
      const point = event.points[0], x = xs[Math.round(point.x)], y = ys[Math.round(point.y)];
      showDetail(side, cell(x, y), x, y);
    });
  }

  // ---- the same cells for keyboard and screen reader ---------------------------------------------------------------------
  function drawTable(sides) {
    const box = $("cell-tables");
    box.replaceChildren();
    for (const side of sides) {
      const table = el("table", null, { class: "cells", role: "grid", "aria-label": `${side} speedups; arrow keys move, Enter shows the cell` });
      table.append(el("caption", side));
      const head = el("tr");
      head.append(el("th", `${SYMBOL[S.y]} \\ ${SYMBOL[S.x]}`));
      shown.xs.forEach((x) => head.append(el("th", String(x), { scope: "col" })));
      table.append(head);
      let first = true;
      [...shown.ys].reverse().forEach((y) => {
        const row = el("tr");
        row.append(el("th", y === 0 ? "none" : String(y), { scope: "row" }));
        shown.xs.forEach((x) => {
          const i = shown.at.get(x + "|" + y), p = at(side, i);
          const sign = p < 0 ? "" : { FASTER: "+", SLOWER: "−", SAME: "=", AMBIGUOUS: "~" }[P.verdict[p]];
          const button = el("button", p < 0 ? "–" : sign + ratio(P.ratio[p]), { type: "button", tabindex: first ? "0" : "-1", "aria-label": lines(side, i, x, y).join(". "), "aria-pressed": "false" });
          if (p < 0) button.className = "hole";
          button.addEventListener("click", () => { press(button); showDetail(side, i, x, y); });
          first = false;
          const td = el("td");
          td.append(button); row.append(td);
        });
        table.append(row);
      });
      table.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!step || event.target.tagName !== "BUTTON") return;
        const td = event.target.parentElement, row = td.parentElement;
        const next = table.rows[row.rowIndex + step[0]]?.cells[td.cellIndex + step[1]]?.querySelector("button");
        if (next) { event.target.tabIndex = -1; next.tabIndex = 0; next.focus(); event.preventDefault(); }
      });
      const scroll = el("div", null, { class: "scroll" });
      scroll.append(table); box.append(scroll);
    }
  }
  const press = (button) => {
    document.querySelectorAll('table.cells button[aria-pressed="true"]').forEach((b) => b.setAttribute("aria-pressed", "false"));
    button.setAttribute("aria-pressed", "true");
  };

  // ---- one cell in full ----------------------------------------------------------------------------------------------------
  function showDetail(side, i, x, y) {
    const box = $("detail");
    box.replaceChildren();
    const p = at(side, i);
    if (p < 0) {
      box.append(el("p", x === undefined ? "Choose a cell, in the map or in the table, to see its times, stages and samples." : lines(side, i, x, y).join(": ")));
      return;
    }
    box.append(el("h3", `${place(x, y)}: ${ratio(P.ratio[p])} (${interval(p)}), ${P.verdict[p]}, ${side}`));
    box.append(el("p", reason(p)));
    if (offWords(i)) box.append(el("p", `The speedup here: ${offWords(i)}`));
    const table = el("table"), sides = [P.own[p], P.other[p]];
    for (const [name, value] of [["", form], ["median of samples", (r) => seconds(rec("median_s", r))], ["samples", (r) => String((rec("samples_s", r) || []).length)],
      ["predicted", (r) => seconds(rec("predicted_s", r))], ["band", (r) => `${seconds(rec("predicted_low_s", r))} to ${seconds(rec("predicted_high_s", r))}`],
      ["bound", (r) => bound(r) || "n/a"], ["peak memory", (r) => bytes(rec("peak_memory_bytes", r))], ["GFLOP", (r) => rec("flops", r) == null ? "n/a" : digits(rec("flops", r) / 1e9)], ["case", (r) => rec("case_id", r)]]) {
      const row = el("tr");
      row.append(el("th", name, { class: "word" }), ...sides.map((r) => el("td", value(r), { class: "word" })));
      table.append(row);
    }
    const scroll = el("div", null, { class: "scroll" });
    scroll.append(table); box.append(scroll);
    stages(box, sides); samples(box, sides);
  }
  function stages(box, sides) {
    const bars = sides.flatMap((r) => [["measured", rec("stages_s", r)], ["predicted", rec("predicted_stages_s", r)]].filter(([, t]) => t).map(([w, t]) => [rec("mechanism", r), w, t]));
    if (!bars.length) { box.append(el("p", "No time by stage, measured or predicted, in these records.", { class: "soft" })); return; }
    const total = (t) => Object.values(t).reduce((a, b) => a + b, 0), most = Math.max(...bars.map(([, , t]) => total(t)));
    const list = el("div", null, { class: "stages" }), used = new Set();
    for (const [mechanism, word, table] of bars) {
      const bar = el("div", null, { class: "bar " + word, role: "img", "aria-label": Object.entries(table).map(([s, t]) => `${s} ${seconds(t)}`).join(", ") });
      for (const stage of Object.keys(STAGES)) {
        if (!table[stage]) continue;
        used.add(stage);
        const part = el("span", null, { title: `${stage}: ${seconds(table[stage])}` });
        part.style.width = (100 * table[stage]) / most + "%"; part.style.background = STAGES[stage];
        bar.append(part);
      }
      list.append(el("span", `${mechanism}, ${word}`), bar, el("span", seconds(total(table))));
    }
    const key = el("p", null, { class: "key" });
    for (const stage of used) { const s = el("span"), w = el("span", null, { class: "swatch" }); w.style.background = STAGES[stage]; s.append(w, stage); key.append(s); }
    box.append(el("h3", "Time by stage"), list, key);
  }
  function samples(box, sides) {
    const all = sides.map((r) => rec("samples_s", r) || []), flat = all.flat();
    if (!flat.length) return;
    box.append(el("h3", "Samples"));
    const ns = "http://www.w3.org/2000/svg", low = Math.log(Math.min(...flat)) - 0.02, high = Math.log(Math.max(...flat)) + 0.02, at = (s) => 1 + (98 * (Math.log(s) - low)) / (high - low);
    sides.forEach((r, n) => {
      const svg = document.createElementNS(ns, "svg");
      svg.setAttribute("class", "samples"); svg.setAttribute("width", "100%"); svg.setAttribute("height", "22"); svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", `${all[n].length} samples of ${rec("mechanism", r)}`);
      for (const s of all[n]) { const c = document.createElementNS(ns, "circle"); c.setAttribute("cx", at(s) + "%"); c.setAttribute("cy", "11"); c.setAttribute("r", "4"); svg.append(c); }
      box.append(el("div", `${rec("mechanism", r)}: ${all[n].length ? `${seconds(Math.min(...all[n]))} to ${seconds(Math.max(...all[n]))}` : "none"}`, { class: "soft" }), svg);
    });
  }

  // ---- crossovers of the chosen view -----------------------------------------------------------------------------------------
  const C = Object.fromEntries(Object.entries(D.crossings).filter(([k]) => k !== "count").map(([k, c]) => [k, expand(c, D.crossings.count)]));
  function drawCrossings() {
    const box = $("crossing-body");
    box.replaceChildren();
    const axis = $("crossing-axis").value;
    let rows = [...Array(D.crossings.count).keys()].filter((i) => C.axis[i] === axis && C.baseline[i] === S.baseline && SLICE.every((s) => String(C[s][i]) === String(S.fixed[s])));
    const note = S.subject === C.subject[0] ? "" : ` (of ${C.subject[0]}; the chosen ${S.subject} is in the map only)`;
    $("crossing-note").textContent = rows.length ? `Where ${C.subject[0]} beats ${D.baselines[S.baseline]}${note}: ${rows.length} lines along ${SYMBOL[axis]}${rows.length > 100 ? ", the first 100 shown" : ""}.` : `No line along ${SYMBOL[axis]} with two or more cells here.`;
    const vary = ["num_heads", "head_dim", "batch", "seq_len", "rank", "num_features", "compression"].filter((n) => n !== axis && new Set(rows.map((i) => C[n][i])).size > 1);
    const head = el("tr");
    const told = ["measured", "predicted"].filter((side) => C[side]);
    head.append(...vary.map((n) => el("th", SYMBOL[n] || n)), ...told.map((side) => el("th", side + ": wins", { class: "word" })));
    box.append(head);
    for (const i of rows.slice(0, 100)) {
      const row = el("tr");
      row.append(...vary.map((n) => el("td", String(C[n][i]))), ...told.map((side) => el("td", C[side][i], { class: "word" })));
      box.append(row);
    }
  }

  // ---- downloads ---------------------------------------------------------------------------------------------------------------
  const record = (i) => Object.fromEntries(Object.keys(R).map((k) => [k, R[k][i]]));
  const csvField = (v) => {
    let text = v === null || v === undefined ? "" : typeof v === "object" ? JSON.stringify(v) : String(v);
    return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  };
  const everyRecord = () => [...Array(D.count).keys()].map(record);
  const csv = () => [Object.keys(R).join(","), ...everyRecord().map((r) => Object.values(r).map(csvField).join(","))].join("\r\n") + "\r\n";
  function download(name, type, text) {
    const link = el("a", null, { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    document.body.append(link); link.click(); link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  $("download-csv").addEventListener("click", () => download("records.csv", "text/csv", csv()));
  $("download-json").addEventListener("click", () => download("records.json", "application/json", JSON.stringify(everyRecord(), null, 1)));
  $("crossing-axis").addEventListener("change", drawCrossings);
  dark.addEventListener("change", () => refresh());
  refresh();
})();
