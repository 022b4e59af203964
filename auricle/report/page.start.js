/* One sound at a time */
document.addEventListener("play", (event) => {
  for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
}, true);

function draw() {
  theme();
  drawCurves();
  drawLayers();
  drawPolyphony();
  drawEncoders();
}

draw();
if (shown.map) {
  fill($("task"), data.maps.map((map) => map.task), showMap);
  $("mistakes").addEventListener("change", (event) => { shown.mistakes = event.target.checked; drawMap(); drawPlays(); });
  $("plays").addEventListener("keydown", walk);
  showMap(0);
}
if (data.keys.length) {
  const choose = (index) => { fill($("key-encoder"), data.keys[index].views.map((view) => view.encoder), drawKeys); drawKeys(); };
  fill($("key-task"), data.keys.map((item) => item.task), choose);
  choose(0);
}
if (data.beats.length) {
  for (const event of ["play", "timeupdate", "seeked"]) beatPlayer.addEventListener(event, moveCursor);
  $("strip-marks").addEventListener("click", (event) => {
    if (strip.clip.audio !== null) beatPlayer.currentTime = (strip.clip.length * (event.clientX - $("strip-marks").getBoundingClientRect().left)) / $("strip-marks").clientWidth;
  });
  fill($("beat-task"), data.beats.map((item) => item.task), showBeats);
  showBeats(0);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  charts.splice(0).forEach((chart) => chart.destroy());
  draw();
  if (shown.map) redraw();
});
