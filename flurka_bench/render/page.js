"use strict";
// The page's script: reads the embedded columns, draws the maps and the same cells as a table,
// answers hover, click and keys. Words, formatted numbers, limits and colours come with the data
// (payload.py); here they are put in their places. No text from the records is ever parsed as
// HTML: it goes in by textContent, or escaped into the plot's labels.
(() => {
  const D = JSON.parse(document.getElementById("page-data").textContent);
  const $ = (id) => document.getElementById(id);
  const W = D.words, SYMBOL = W.symbols, AXES = Object.keys(W.axes), SLICE = W.slice, NAMES = W.names;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const expand = (c, n) => c.values || (c.codes ? c.codes.map((i) => c.words[i]) : new Array(n).fill(c.words[0]));
  const R = Object.fromEntries(Object.entries(D.records).map(([k, c]) => [k, expand(c, D.count)]));
  const P = { ...D.pairs, verdict: expand(D.pairs.verdict, D.pairs.own.length) };
  const T = Object.fromEntries(Object.entries(D.texts).map(([k, c]) => [k, expand(c, D.count)]));
  const REASONS = D.reasons.map((c) => expand(c, P.ratio.length));
  const rec = (name, i) => (R[name] ? R[name][i] : null);
  const say = (name, i) => (T[name] && T[name][i] !== null ? T[name][i] : W.unknown);
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const el = (tag, text, attributes = {}) => {
    const e = document.createElement(tag);
    if (text !== undefined && text !== null) e.textContent = text;
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    return e;
  };
  const escapeLabel = (s) => String(s).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // ---- the chosen view -------------------------------------------------------------------------------------------------
  const S = { fixed: {} };
  let view, grid, missing, short, off, limits, shown; // shown: {xs, ys, at: Map "x|y" -> cell}
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
    [missing, short, off, limits] = ["missing", "short", "off", "limit"].map((c) => (view[c] ? expand(view[c], view.count) : []));
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
    box.append(select("x", "across", AXES.map((a) => [a, `${W.axes[a]} (${counts[a]})`]), S.x, (v) => { S.chosenX = true; if (v === S.y) S.y = S.x; S.x = v; }));
    box.append(select("y", "up", AXES.map((a) => [a, `${W.axes[a]} (${counts[a]})`]), S.y, (v) => { S.chosenY = true; if (v === S.x) S.x = S.y; S.y = v; }));
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
    const said = new Map(); // one note for all lines of an axis that hold the same mechanisms
    for (const [name, values] of [[S.y, shown.ys], [S.x, shown.xs]]) for (const [v, names] of shown.thin[name]) {
      const key = JSON.stringify([SYMBOL[name], names]);
      said.set(key, [...(said.get(key) || []), v]);
    }
    return [...said].map(([key, values]) => {
      const [symbol, names] = JSON.parse(key);
      return fill(W.thin, { symbol, names, values: values.join(", ") });
    }).join("; ");
  }

  // ---- one cell in words -----------------------------------------------------------------------------------------------
  const place = (x, y) => `${SYMBOL[S.x]} = ${x}, ${SYMBOL[S.y]} = ${y}`;
  const impossible = (x, y) => {
    const at = { ...S.fixed, [S.x]: x, [S.y]: y };
    return (D.impossible[at.rank] || []).includes(Number(at.seq_len));
  };
  const hole = (i, x, y) => (i !== undefined ? missing[i] || W.no_time : impossible(x, y) ? W.impossible : W.absent);
  const holeLabel = (i, x, y) => (i !== undefined ? short[i] || "–" : impossible(x, y) ? W.impossible_short : "–");
  const reason = (p) => REASONS.map((c) => c[p]).filter(Boolean);
  const offWords = (i) => !off[i] ? "" : fill(W.off, { predicted: P.text[at("predicted", i)], measured: P.text[at("measured", i)], off: off[i] });
  const form = (i) => say("form", i);
  function lines(side, i, x, y) {
    const p = at(side, i);
    if (p < 0) return [place(x, y), side === "measured" ? hole(i, x, y) : W.no_prediction];
    const time = (r) => side === "measured" ? `${say("median", r)} (${say("samples", r)})` : `${say("predicted", r)} (${say("band", r)})`;
    return [`${place(x, y)}: ${P.text[p]} (${P.interval[p]}) ${P.verdict[p]}`, `${form(P.own[p])}: ${time(P.own[p])}`,
      `${form(P.other[p])}: ${time(P.other[p])}`, offWords(i), ...reason(p)].filter(Boolean);
  }

  const fold = (text, most) => text.split(" ").reduce((done, word) => { // hover labels do not wrap by themselves
    if (done.length && done[done.length - 1].length + word.length < most) done[done.length - 1] += " " + word; else done.push(word);
    return done;
  }, []);

  // ---- the maps --------------------------------------------------------------------------------------------------------
  function draw() {
    const limit = limits[shown.at.values().next().value], sides = ["measured", "predicted"].filter((side) => view[side].some((p) => p >= 0));
    const ramp = dark.matches ? D.colours.dark : D.colours.light;
    $("ramp").style.background = `linear-gradient(to right, ${ramp.join(",")})`;
    [$("ramp-low").textContent, $("ramp-high").textContent] = W.ramp.map((text) => fill(text, { limit }));
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
    const heat = { type: "heatmap", z: numbers(side), x: xs.map((_, c) => c), y: ys.map((_, r) => r), zmin: -Math.log2(limit), zmax: Math.log2(limit), xgap: 1, ygap: 1, showscale: false,
      colorscale: ramp.map((colour, i) => [i / (ramp.length - 1), colour]), customdata: ys.map((y) => xs.map((x) => label(x, y))), hoverongaps: false,
      hovertemplate: "%{customdata}<extra></extra>", text: ys.map((y) => xs.map((x) => (pair(x, y) < 0 ? "" : P.text[pair(x, y)].replace("×", "")))),
      texttemplate: small ? "%{text}" : "", textfont: { size: 11 } };
    const hatch = { type: "scatter", mode: "lines", x: [], y: [], hoverinfo: "skip", line: { color: style.getPropertyValue("--hatch").trim(), width: 1 }, showlegend: false };
    const holes = { type: "scatter", mode: "text", x: [], y: [], text: [], customdata: [], hovertemplate: "%{customdata}<extra></extra>", textfont: { size: 9, color: style.getPropertyValue("--soft").trim() }, showlegend: false };
    const shapes = [];
    ys.forEach((y, r) => xs.forEach((x, c) => {
      const p = pair(x, y);
      if (p < 0) {
        shapes.push({ type: "rect", layer: "below", x0: c - 0.49, x1: c + 0.49, y0: r - 0.49, y1: r + 0.49, line: { width: 0 }, fillcolor: style.getPropertyValue("--hole").trim() });
        holes.x.push(c); holes.y.push(r); holes.customdata.push(label(x, y));
        holes.text.push(small ? holeLabel(cell(x, y), x, y) : "");
      } else if (W.undecided.includes(P.verdict[p])) {
        for (const o of [-0.5, 0, 0.5]) { // three strokes of slope one, clipped to the cell
          const from = Math.max(-0.48, -0.48 - o), to = Math.min(0.48, 0.48 - o);
          hatch.x.push(c + from, c + to, null);
          hatch.y.push(r + from + o, r + to + o, null);
        }
      }
    }));
    const contours = ["measured", "predicted"].filter((s) => view[s].some((p) => p >= 0)).flatMap((s) => {
      const pairs = ys.map((y) => xs.map((x) => { const p = at(s, cell(x, y)); return p < 0 ? "" : form(P.own[p]) + "|" + form(P.other[p]); }));
      const lines = evenLines(numbers(s), pairs), x = [], y = [];
      lines.forEach(([[x0, y0], [x1, y1]]) => { x.push(x0, x1, null); y.push(y0, y1, null); });
      return lines.length ? [[4.5, style.getPropertyValue("--ground").trim()], [2, ink]].map(([width, color]) => ({ type: "scatter", mode: "lines", name: `1x ${s}`, x, y, hoverinfo: "skip", showlegend: false,
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
          const sign = p < 0 ? "" : W.signs[P.verdict[p]];
          const button = el("button", p < 0 ? "–" : sign + P.text[p], { type: "button", tabindex: first ? "0" : "-1", "aria-label": lines(side, i, x, y).join(". "), "aria-pressed": "false" });
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
    box.append(el("h3", `${place(x, y)}: ${P.text[p]} (${P.interval[p]}), ${P.verdict[p]}, ${side}`));
    box.append(el("p", reason(p).join("; ")));
    if (offWords(i)) box.append(el("p", `The speedup here: ${offWords(i)}`));
    const table = el("table"), sides = [P.own[p], P.other[p]];
    for (const [title, name] of D.details) {
      const row = el("tr");
      row.append(el("th", title, { class: "word" }), ...sides.map((r) => el("td", say(name, r), { class: "word" })));
      table.append(row);
    }
    const scroll = el("div", null, { class: "scroll" });
    scroll.append(table); box.append(scroll);
    stages(box, sides); samples(box, sides);
  }
  function stages(box, sides) {
    const bars = sides.flatMap((r) => [["measured", "stages"], ["predicted", "predicted_stages"]].filter(([, name]) => rec(name + "_s", r))
      .map(([word, name]) => [rec("mechanism", r), word, rec(name + "_s", r), T[name][r]]));
    if (!bars.length) { box.append(el("p", "No time by stage, measured or predicted, in these records.", { class: "soft" })); return; }
    const total = (t) => Object.values(t).reduce((a, b) => a + b, 0), most = Math.max(...bars.map(([, , t]) => total(t)));
    const list = el("div", null, { class: "stages" }), used = new Set();
    for (const [mechanism, word, table, texts] of bars) {
      const told = Object.fromEntries(Object.keys(table).map((stage, i) => [stage, texts[i + 1]])); // the first one is the sum
      const bar = el("div", null, { class: "bar " + word, role: "img", "aria-label": Object.entries(told).map(([s, t]) => `${s} ${t}`).join(", ") });
      for (const stage of Object.keys(D.colours.stages)) {
        if (!table[stage]) continue;
        used.add(stage);
        const part = el("span", null, { title: `${stage}: ${told[stage]}` });
        part.style.width = (100 * table[stage]) / most + "%"; part.style.background = D.colours.stages[stage];
        bar.append(part);
      }
      list.append(el("span", `${mechanism}, ${word}`), bar, el("span", texts[0]));
    }
    const key = el("p", null, { class: "key" });
    for (const stage of used) { const s = el("span"), w = el("span", null, { class: "swatch" }); w.style.background = D.colours.stages[stage]; s.append(w, stage); key.append(s); }
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
      svg.setAttribute("aria-label", `${say("samples", r)} of ${rec("mechanism", r)}`);
      for (const s of all[n]) { const c = document.createElementNS(ns, "circle"); c.setAttribute("cx", at(s) + "%"); c.setAttribute("cy", "11"); c.setAttribute("r", "4"); svg.append(c); }
      box.append(el("div", `${rec("mechanism", r)}: ${say("spread", r)}`, { class: "soft" }), svg);
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
  const G = Object.fromEntries(Object.entries(D.guarded).map(([k, c]) => [k, expand(c, D.count)])); // safe for a spreadsheet
  const everyRecord = () => [...Array(D.count).keys()].map(record);
  const csv = () => [Object.keys(R).join(","), ...everyRecord().map((r, i) => Object.keys(r).map((k) => csvField(G[k] ? G[k][i] : r[k])).join(","))].join("\r\n") + "\r\n";
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
