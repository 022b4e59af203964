"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const sounds = JSON.parse(document.getElementById("sounds").textContent);
const $ = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const make = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
const SHAPES = ["circle", "triangle", "rect", "rectRot"];
const charts = [];

function theme() {
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.defaults.color = css("soft");
  Chart.defaults.borderColor = css("line");
  Chart.defaults.animation = false;
  Chart.defaults.maintainAspectRatio = false;
  Object.assign(Chart.defaults.plugins.tooltip, {
    backgroundColor: css("ink"), titleColor: css("card"), bodyColor: css("card"), padding: 10, cornerRadius: 8, usePointStyle: true, boxPadding: 4,
  });
}

/* Training curves */
const line = (x, y, label, color, more = {}) => ({
  label, data: x.map((step, i) => ({ x: step, y: y[i] })), borderColor: css(color), backgroundColor: css(color),
  borderWidth: 2, pointRadius: x.length > 1 ? 0 : 3, pointHitRadius: 12, spanGaps: true, ...more,
});

function curve(id, datasets, { x = {}, y = {}, name = "step", tick, tip = {}, legend = datasets.length > 1, plugins = [] } = {}) {
  const canvas = $(id);
  if (!canvas) return;
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  const small = (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(0) : short.format(value));
  charts.push(new Chart(canvas, {
    type: "line", data: { datasets }, plugins,
    options: {
      interaction: { mode: "nearest", axis: "x", intersect: false },
      scales: {
        x: { type: "linear", title: { display: true, text: name }, grid: { display: false }, ticks: { maxTicksLimit: 7, callback: tick ?? short.format }, ...x },
        y: { border: { display: false }, ticks: { maxTicksLimit: 6, callback: small }, ...y },
      },
      plugins: {
        legend: { display: legend, position: "top", align: "start", labels: { usePointStyle: true, pointStyle: "line", pointStyleWidth: 26 } },
        tooltip: { callbacks: { title: (items) => `${name} ${items[0].parsed.x.toLocaleString("en")}`, ...tip } },
      },
    },
  }));
}

function drawCurves() {
  data.runs.forEach((run, i) => {
    const { train, valid } = run;
    const points = { pointRadius: valid.step.length > 40 ? 0 : 3 };
    const loss = [line(train.step, train.loss, "training", "c5", { borderWidth: 1.5 })];
    if (valid.step.length) loss.push(line(valid.step, valid.loss, "held out", "c0", points));
    if (valid.trivial.some((value) => value !== null)) loss.push(line(valid.step, valid.trivial, "trivial level", "c1", { borderDash: [7, 5] }));
    curve(`loss-${i}`, loss);
    curve(`lr-${i}`, [line(train.step, train.lr, "learning rate", "c2")]);
    curve(`speed-${i}`, [line(train.step, train.audio_s_per_s, "seconds of audio per second", "c3")]);
  });
}

/* Pictures: a slider over training */
data.runs.forEach((run, i) => {
  const slider = $(`slider-${i}`);
  if (slider) slider.addEventListener("input", () => {
    const picture = run.pictures[slider.value];
    $(`picture-${i}`).src = picture.uri;
    $(`picture-${i}`).alt = `What the model reconstructs at step ${picture.step}`;
    slider.nextElementSibling.value = `step ${picture.step.toLocaleString("en")}`;
  });
});

/* The map, its legend and its play list */
const shown = { map: data.maps[0], view: 0, hidden: new Set(), mistakes: false, playing: null };
let scatter = null;

const wrong = (i) => { const said = view().prediction[i]; return !shown.map.ordered && said !== shown.map.target[i]; };
const view = () => shown.map.views[shown.view];
const visible = (i) => view().x[i] !== null && !shown.hidden.has(shown.map.label[i]) && (!shown.mistakes || wrong(i));
const rows = () => shown.map.id.map((_, i) => i).filter(visible);
const color = (label) => css(shown.map.ordered ? `s${label}` : `c${label % 8}`);
const shape = (label) => SHAPES[shown.map.ordered ? 0 : Math.floor(label / 8) % 4];

const svg = (tag, attributes, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

function glyph(form, fill) {
  const drawing = { circle: "M5.5 1a4.5 4.5 0 1 0 .01 0Z", triangle: "M5.5 1 10.5 10H.5Z", rect: "M1 1h9v9H1Z", rectRot: "M5.5 0 11 5.5 5.5 11 0 5.5Z" };
  return svg("svg", { class: "swatch", viewBox: "0 0 11 11", "aria-hidden": "true" }, svg("path", { d: drawing[form], fill }));
}

const swatch = (label) => glyph(shape(label), color(label));

function play(i) {
  shown.playing = i;
  const player = $("player"), sound = shown.map.audio[i];
  $("now-id").textContent = shown.map.id[i];
  $("now-label").textContent = `label: ${shown.map.target[i]} · prediction: ${view().prediction[i]}` + (sound === null ? " · not among the playable clips" : "");
  if (sound === null) {
    player.pause();
    player.removeAttribute("src");
  } else {
    player.src = sounds[sound];
    player.play().catch((error) => {  // another click that comes before the sound aborts it, and is no error
      if (error.name !== "AbortError") $("now-label").textContent = "This browser cannot play the clip: " + error.message;
    });
  }
  player.dataset.clip = sound === null ? "" : shown.map.id[i];
  for (const button of $("plays").querySelectorAll("button")) button.setAttribute("aria-current", String(Number(button.dataset.row) === i));
  scatter.update();
}

function drawMap() {
  const { map } = shown;
  const here = rows();
  const datasets = map.labels.map((label, code) => {
    const own = here.filter((i) => map.label[i] === code);
    const even = { triangle: 1.3, rectRot: 1.25 }[shape(code)] ?? 1;  // shapes of one radius look unequally large
    const radius = (i) => even * (i === shown.playing ? 10 : map.audio[i] === null ? 3.5 : 6);
    return {
      label, rows: own, data: own.map((i) => ({ x: view().x[i], y: view().y[i] })), pointStyle: shape(code), pointHitRadius: 5, borderWidth: 1.5,
      radius: (context) => radius(own[context.dataIndex]), hoverRadius: (context) => radius(own[context.dataIndex]) + 2,
      backgroundColor: own.map((i) => (map.audio[i] === null ? "transparent" : color(code))),
      borderColor: (context) => (own[context.dataIndex] === shown.playing ? css("ink") : map.audio[own[context.dataIndex]] === null ? color(code) : css("card")),
    };
  });
  const rowOf = (item) => datasets[item.datasetIndex].rows[item.dataIndex ?? item.index];
  const axis = { ticks: { display: false }, grid: { display: false }, border: { display: false }, grace: "6%" };
  if (scatter) scatter.destroy();
  scatter = new Chart($("map"), {
    type: "scatter", data: { datasets },
    options: {
      scales: { x: axis, y: axis }, interaction: { mode: "nearest", intersect: true }, layout: { padding: 8 },
      onClick: (_, items) => items.length && play(rowOf({ datasetIndex: items[0].datasetIndex, index: items[0].index })),
      onHover: (event, items) => { event.native.target.style.cursor = items.length ? "pointer" : "crosshair"; },
      plugins: {
        legend: { display: false },
        tooltip: {
          filter: (item, position) => position === 0,
          callbacks: {
            title: (items) => items.map((item) => map.id[rowOf(item)]),
            label: (item) => " " + map.target[rowOf(item)],
            afterLabel: (item) => ["prediction: " + view().prediction[rowOf(item)], map.audio[rowOf(item)] === null ? "not playable here" : "click to listen"],
          },
        },
      },
    },
  });
}

function drawLegend() {
  $("legend").replaceChildren(...shown.map.labels.map((label, code) => {
    const button = make("button", "");
    button.type = "button";
    button.setAttribute("aria-pressed", String(!shown.hidden.has(code)));
    button.append(swatch(code), label);
    button.addEventListener("click", () => {
      if (!shown.hidden.delete(code)) shown.hidden.add(code);
      button.setAttribute("aria-pressed", String(!shown.hidden.has(code)));
      drawMap(); drawPlays();
    });
    return button;
  }));
}

function drawPlays() {
  const { map } = shown;
  const items = rows().filter((i) => map.audio[i] !== null).map((i) => {
    const item = make("li", ""), button = make("button", "");
    button.type = "button"; button.dataset.row = i; button.tabIndex = -1; button.title = map.id[i];
    button.setAttribute("aria-current", String(i === shown.playing));
    button.append(swatch(map.label[i]), make("span", "id", `${map.target[i]} · ${map.id[i]}`));
    if (!map.ordered) button.append(make("span", wrong(i) ? "verdict wrong" : "verdict", wrong(i) ? `✗ ${view().prediction[i]}` : "✓"));
    button.addEventListener("click", () => play(i));
    item.append(button);
    return item;
  });
  if (items.length) items[0].firstChild.tabIndex = 0;
  else items.push(make("li", "note", "no playable clip here"));
  $("plays").replaceChildren(...items);
}

/* One tab stop; the arrow keys walk through the list. */
function walk(event) {
  const buttons = [...$("plays").querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (at < 0 || to === undefined || !buttons[to]) return;
  event.preventDefault();
  buttons[at].tabIndex = -1; buttons[to].tabIndex = 0; buttons[to].focus();
}

function fill(select, names, change) {
  select.replaceChildren(...names.map((name, i) => Object.assign(make("option", "", name), { value: i })));
  select.onchange = () => change(Number(select.value));
}

function showMap(index) {
  Object.assign(shown, { map: data.maps[index], view: 0, playing: null, mistakes: false });
  $("mistakes").checked = false;
  $("mistakes").disabled = shown.map.ordered;  // a predicted number is never quite right
  shown.hidden.clear();
  fill($("encoder"), shown.map.views.map((item) => item.encoder), (i) => { shown.view = i; redraw(); });
  redraw();
}

function redraw() { drawLegend(); drawMap(); drawPlays(); }
