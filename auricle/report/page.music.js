/* Lines of encoders: dev scores by layer, and scores by number of voices */
const hidden = new Set();
const look = (encoder) => ({ color: `c${encoder % 8}`, form: SHAPES[Math.floor(encoder / 8) % 4], dash: [[], [7, 4], [2, 3], [9, 3, 2, 3]][Math.floor(encoder / 8) % 4] });

function trace(encoder, x, y, more) {
  const { color, form, dash } = look(encoder);
  return line(x, y, data.encoders[encoder], color, { encoder, pointStyle: form, borderDash: dash, pointRadius: 2.5, ...more });
}

const axis = (ticks, min, max, callback = String) => ({  // with ticks here and nowhere else
  min, max, ticks: { autoSkip: false, maxRotation: 0, callback }, afterBuildTicks: (scale) => { scale.ticks = ticks.map((value) => ({ value })); },
});

function drawLayers() {
  data.layers.forEach(({ unit, curves }, i) => {
    const last = Math.max(...curves.flatMap((item) => item.layers.filter((layer) => layer !== "sum")));
    const sum = curves.some((item) => item.layers.includes("sum")), step = Math.ceil(last / 8), end = last + 1.5 * step;
    const ticks = [...Array(Math.floor(last / step) + 1).keys()].map((k) => k * step).concat(sum ? [end] : []);
    const datasets = curves.map(({ encoder, layers, dev, chosen }) => {
      const large = layers.map((layer) => layers.length > 1 && chosen.includes(layer));
      return trace(encoder, layers.map((layer) => (layer === "sum" ? end : layer)), dev, {
        pointRadius: large.map((one) => (one ? 6 : 2.5)),
        pointBorderWidth: large.map((one) => (one ? 2 : 1)),
        pointBorderColor: large.map((one) => css(one ? "ink" : look(encoder).color)),
        segment: { borderColor: ({ p1 }) => (p1.parsed.x > last ? "transparent" : undefined) },  // no layer comes before the sum
        large,
      });
    });
    curve(`layers-${i}`, datasets, {
      name: "layer", legend: false,
      x: axis(ticks, -0.4 * step, ticks.at(-1) + 0.4 * step, (value) => (value > last ? "sum" : value)),
      y: { title: { display: true, text: `best dev score${unit && " in " + unit}` } },
      tip: {
        title: (items) => (items[0].parsed.x > last ? "sum of layers" : `layer ${items[0].parsed.x}`),
        label: (item) => ` ${item.dataset.label}: ${item.parsed.y}${item.dataset.large[item.dataIndex] ? " (chosen)" : ""}`,
      },
    });
  });
}

const whiskers = {  // intervals, which Chart.js lacks
  id: "whiskers",
  beforeDatasetsDraw(chart) {
    const { ctx, scales: { y } } = chart;
    ctx.save();
    chart.getSortedVisibleDatasetMetas().forEach((meta) => meta.data.forEach((point, i) => {
      const { low, high, borderColor } = meta._dataset;
      if (!low) return;
      ctx.strokeStyle = borderColor; ctx.globalAlpha = 0.45; ctx.lineWidth = 3; ctx.lineCap = "round";
      ctx.beginPath(); ctx.moveTo(point.x, y.getPixelForValue(low[i])); ctx.lineTo(point.x, y.getPixelForValue(high[i])); ctx.stroke();
    }));
    ctx.restore();
  },
};

function drawPolyphony() {
  data.polyphony.forEach(({ voices, chance, curves }, i) => {
    const beside = (k) => (0.3 * (k - (curves.length - 1) / 2)) / curves.length;  // so that intervals do not cover each other
    const datasets = curves.map(({ encoder, voices: own, score, low, high }, k) => trace(encoder, own.map((value) => value + beside(k)), score, { low, high, pointRadius: 5 }));
    datasets.push(line(voices, chance, "chance", "faint", { borderDash: [3, 4], borderWidth: 1.5, pointRadius: 0 }));
    const all = [...chance, ...curves.flatMap((item) => [...item.low, ...item.high])];
    curve(`polyphony-${i}`, datasets, {
      name: "voices", legend: false, plugins: [whiskers],
      x: axis(voices, voices[0] - 0.4, voices.at(-1) + 0.4),
      y: { suggestedMin: Math.min(...all), suggestedMax: Math.max(...all), title: { display: true, text: "test score in %" } },
      tip: {
        title: (items) => `${Math.round(items[0].parsed.x)} voices`,
        label: ({ dataset, dataIndex: at }) => ` ${dataset.label}: ${dataset.data[at].y}` + (dataset.low ? ` (${dataset.low[at]} – ${dataset.high[at]})` : ""),
      },
    });
  });
}

function drawEncoders() {
  for (const box of document.querySelectorAll(".encoders")) {
    const buttons = data.encoders.map((name, encoder) => {
      const button = make("button", ""), { color, form } = look(encoder);
      button.append(glyph(form, css(color)), name);
      button.addEventListener("click", () => { if (!hidden.delete(encoder)) hidden.add(encoder); showEncoders(); });
      return button;
    });
    const all = make("button", "all");
    all.addEventListener("click", () => { if (hidden.size) hidden.clear(); else data.encoders.forEach((_, encoder) => hidden.add(encoder)); showEncoders(); });
    box.replaceChildren(...buttons, all);
  }
  showEncoders();
}

function showEncoders() {
  for (const box of document.querySelectorAll(".encoders")) [...box.children].forEach((button, encoder) => {
    if (encoder < data.encoders.length) button.setAttribute("aria-pressed", String(!hidden.has(encoder)));
    else button.textContent = hidden.size ? "show all" : "hide all";
  });
  for (const chart of charts) {
    chart.data.datasets.forEach((set, i) => set.encoder !== undefined && chart.setDatasetVisibility(i, !hidden.has(set.encoder)));
    chart.update();
  }
}

/* Keys: told ones on a circle of fifths that is turned so that the true one is on top */
const FIFTHS = [["C", "Am"], ["G", "Em"], ["D", "Bm"], ["A", "F♯m"], ["E", "C♯m"], ["B", "G♯m"], ["F♯", "E♭m"], ["D♭", "B♭m"], ["A♭", "Fm"], ["E♭", "Cm"], ["B♭", "Gm"], ["F", "Dm"]];
const RELATIONS = [["same key", "1"], ["a fifth above", ".5"], ["relative", ".3"], ["parallel", ".2"], ["a fifth below", "0"], ["any other", "0"]];

function relation(minor, other, fifths) {
  if (minor === other) return { 0: 0, 1: 1, 11: 4 }[fifths] ?? 5;
  return { 0: 2, [minor ? 3 : 9]: 3 }[fifths] ?? 5;
}

function wheel(minor, counts) {
  const all = counts.flat().reduce((a, b) => a + b, 0), mode = minor ? "minor" : "major";
  const drawing = svg("svg", { viewBox: "-225 -225 450 450", role: "img", "aria-label": `Told keys where the true one is ${mode}, as a circle of fifths` });
  const labels = [];
  for (const radius of [160, 100]) drawing.append(svg("circle", { r: radius, class: "ring" }));
  for (const other of [0, 1]) FIFTHS.forEach((names, fifths) => {
    const turn = (Math.PI * fifths) / 6, at = (radius) => ({ x: radius * Math.sin(turn), y: -radius * Math.cos(turn) });
    const { x, y } = at(other ? 100 : 160), count = counts[other][fifths], kind = relation(minor, other, fifths);
    const radius = 36 * Math.sqrt(count / all), credited = kind < 4, fit = ["right", "near", "near", "near"][kind] ?? "far";
    const there = at(other ? 100 - Math.max(36, radius + 12) : 160 + Math.max(32, radius + 13));
    const name = svg("text", { ...there, dy: 5, class: credited ? "credited" : "" }, names[other]);
    if (credited) name.append(svg("tspan", { class: "credit", ...(other ? { x: there.x, dy: 14 } : {}) }, ` ${RELATIONS[kind][1]}`));
    labels.push(name);
    if (credited) drawing.append(svg("circle", { cx: x, cy: y, r: 5, class: "spot" }));
    if (count) drawing.append(svg("circle", { cx: x, cy: y, r: Math.max(radius, 2), class: fit }, svg("title", {}, `${names[other]}: ${count} of ${all}, ${RELATIONS[kind][0]}, credit ${RELATIONS[kind][1]}`)));
    if (radius > 11) labels.push(svg("text", { x, y, dy: 5, class: "share " + fit }, `${Math.round((100 * count) / all)}`));
  });
  drawing.append(...labels);
  const figure = make("figure", "");
  figure.append(make("figcaption", "", `${all.toLocaleString("en")} clips in ${mode}, all turned to ${minor ? "A minor" : "C major"}`), drawing);
  return figure;
}

function drawKeys() {
  const { counts } = data.keys[$("key-task").value || 0].views[$("key-encoder").value || 0];
  const sums = RELATIONS.map(() => 0);
  counts.forEach((own, minor) => own.forEach((ring, other) => ring.forEach((count, fifths) => { sums[relation(minor, other, fifths)] += count; })));
  const all = sums.reduce((a, b) => a + b, 0);
  $("wheels").replaceChildren(...[0, 1].filter((minor) => counts[minor].flat().some(Boolean)).map((minor) => wheel(minor, counts[minor])));
  $("relations").replaceChildren(...RELATIONS.map(([name, credit], i) => {
    const row = make("tr", "");
    row.append(Object.assign(make("th", "", name), { scope: "row" }), make("td", "", credit), make("td", "", `${((100 * sums[i]) / all).toFixed(1)}`));
    return row;
  }));
}

/* Beats: what was annotated above a clip's waveform, what was found below, and a cursor where it plays */
const strip = { task: null, clip: null, view: 0 };
const beatPlayer = $("beat-player");
const FORMS = { hit: "M0-4.5a4.5 4.5 0 1 0 .01 0Z", miss: "M-5-4.5H5L0 4.5Z", extra: "M-4.5-4.5 4.5 4.5M4.5-4.5-4.5 4.5" };

function marks(list, kinds, up, length) {
  return list.map(([time, tall], i) => {
    const foot = up ? 68 : 140, tip = foot + (up ? -1 : 1) * (tall ? 48 : 26);
    const words = { hit: "found", miss: "missed", extra: "none annotated there" }[kinds[i]];
    return svg("svg", { x: `${(100 * time) / length}%`, class: `beat ${kinds[i]}`, overflow: "visible" },
      svg("line", { y1: foot, y2: tip }), svg("path", { d: FORMS[kinds[i]], transform: `translate(0 ${tip})` }), svg("title", {}, `${time.toFixed(2)} s, ${words}`));
  });
}

function drawBeats() {
  const { task, clip } = strip, view = clip.views[strip.view], { length } = clip;
  const kinds = [view.found.map((found) => (found ? "hit" : "miss")), view.right.map((right) => (right ? "hit" : "extra"))];
  const drawing = $("strip-marks"), many = (count) => `${count} ${task.what}${count === 1 ? "" : "s"}`;
  const outline = clip.wave.map((peak, i) => `${i ? "L" : "M"}${i} ${-peak}`).join("") + [...clip.wave.keys()].reverse().map((i) => `L${i} ${clip.wave[i]}`).join("");
  const seconds = [...Array(Math.ceil(length)).keys()].filter((second) => second % 2 === 0);
  drawing.replaceChildren(
    svg("rect", { width: `${Math.min(100, (100 * task.skip) / length)}%`, height: 208, class: "unscored" }),
    ...(task.skip ? [svg("text", { x: 6, y: 222, class: "left" }, "not scored")] : []),
    svg("svg", { y: 70, width: "100%", height: 68, viewBox: `0 -100 ${clip.wave.length || 1} 200`, preserveAspectRatio: "none" }, svg("path", { d: outline, class: "wave" })),
    ...marks(clip.marks, kinds[0], true, length), ...marks(view.marks, kinds[1], false, length),
    ...seconds.filter((second) => second > task.skip).map((second) => svg("text", { x: `${(100 * second) / length}%`, y: 222 }, `${second} s`)),
  );
  const hits = view.found.filter(Boolean).length, extra = view.right.filter((right) => !right).length;
  $("strip-note").textContent = `In what is drawn, ${view.encoder} found ${hits} of ${many(view.found.length)} within 70 ms, and ${extra} where none is annotated.` + (clip.audio === null ? " The recording cannot be played here." : "");
  drawing.setAttribute("aria-label", $("strip-note").textContent);
}

function moveCursor() {
  const { clip } = strip, box = $("strip"), share = Math.min(1, beatPlayer.currentTime / clip.length), x = share * $("strip-marks").clientWidth;
  $("cursor").style.left = `${100 * share}%`;
  if (!beatPlayer.paused && (x < box.scrollLeft || x > box.scrollLeft + 0.85 * box.clientWidth)) box.scrollLeft = x - 0.15 * box.clientWidth;
  if (!beatPlayer.paused && !beatPlayer.ended) requestAnimationFrame(moveCursor);
}

function showClip(index) {
  strip.clip = strip.task.clips[index];
  const chosen = strip.clip.views.findIndex((view) => view.encoder === $("beat-encoder").selectedOptions[0]?.textContent);
  strip.view = Math.max(0, chosen);
  fill($("beat-encoder"), strip.clip.views.map((view) => view.encoder), (i) => { strip.view = i; drawBeats(); });
  $("beat-encoder").value = strip.view;
  beatPlayer.pause();
  if (strip.clip.audio === null) beatPlayer.removeAttribute("src");
  else beatPlayer.src = sounds[strip.clip.audio];
  $("cursor").style.left = 0;
  $("strip").scrollLeft = 0;
  drawBeats();
}

function showBeats(index) {
  strip.task = data.beats[index];
  fill($("beat-clip"), strip.task.clips.map((clip) => clip.id), showClip);
  showClip(0);
}
