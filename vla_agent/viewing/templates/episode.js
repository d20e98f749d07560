"use strict";
// One number, the frame that is shown, decides everything else: the film, the slider, the cursors and the values.
const data = JSON.parse(document.getElementById("data").textContent);
const film = document.getElementById("film");
const slider = document.getElementById("time");
const now = document.getElementById("now");
const button = document.getElementById("play");
const plots = [...document.querySelectorAll(".plot")].map((section) => ({
  svg: section.querySelector("svg"),
  cursor: section.querySelector(".cursor"),
  lines: [...section.querySelectorAll(".value")].map((label) => ({
    label, values: data.values[section.dataset.plot][label.dataset.line],
  })),
}));
let frame = 0;

function show(index) {
  frame = Math.min(Math.max(Math.round(index), 0), data.n - 1);
  slider.value = frame;
  now.textContent = `${(frame / data.fps).toFixed(2)} s of ${((data.n - 1) / data.fps).toFixed(2)}, frame ${frame}`;
  for (const plot of plots) {
    const x = plot.svg.viewBox.baseVal.width * frame / Math.max(data.n - 1, 1);
    plot.cursor.setAttribute("x1", x);
    plot.cursor.setAttribute("x2", x);
    for (const line of plot.lines) {
      const value = line.values[frame];
      line.label.textContent = value === null ? "\u2013" : String(value);
    }
  }
}

function go(index) {
  film.pause();
  show(index);
  film.currentTime = (frame + 0.5) / data.fps;  // the middle of a frame, which rounding cannot leave
}

function follow() {
  if (!film.paused) show(Math.floor(film.currentTime * data.fps + 1e-6));
  requestAnimationFrame(follow);
}

function toggle() {
  if (!film.paused) film.pause();
  else {
    if (frame >= data.n - 1) film.currentTime = 0;
    film.play();
  }
}

slider.addEventListener("input", () => go(Number(slider.value)));
button.addEventListener("click", toggle);
film.addEventListener("click", toggle);
for (const kind of ["play", "pause", "ended"]) {
  film.addEventListener(kind, () => { button.textContent = film.paused ? "\u25B6" : "\u275A\u275A"; });
}
film.addEventListener("ended", () => show(data.n - 1));
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step === undefined && event.key !== " ") return;
  event.preventDefault();
  if (step === undefined) toggle();
  else go(frame + step);
});
for (const plot of plots) {
  const pick = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = plot.svg.getBoundingClientRect();
    go((event.clientX - box.left) / box.width * (data.n - 1));
  };
  plot.svg.addEventListener("pointerdown", pick);
  plot.svg.addEventListener("pointermove", pick);
}
show(Number((location.hash.match(/^#(\d+)$/) || [0, 0])[1]));
film.addEventListener("loadeddata", () => { if (frame) go(frame); }, { once: true });
follow();
