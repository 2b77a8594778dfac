"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const grid = at("grid"), place = at("place");
let cells = [];        // {figure, video, canvas, label} of the prompt that is shown
let playing = false;
let eager = !matchMedia("(prefers-reduced-motion: reduce)").matches;  // whether to play as soon as all can
let shown = 0;         // which prompt
let wanted = 0;        // counts seeks: an older one's end is not the newest one's

// ---- the videos of one prompt ----

function show(index) {
  shown = (index + data.cases.length) % data.cases.length;
  const chosen = data.cases[shown];
  eager ||= playing;
  pause(false);
  at("case").value = shown;
  at("prompt").textContent = chosen.title;
  if (chosen.note) {
    const note = document.createElement("small");
    note.textContent = chosen.note;
    at("prompt").append(note);
  }
  at("given").hidden = !chosen.given.length;
  at("given").replaceChildren(...chosen.given.map(given));
  for (const cell of cells) cell.video.removeAttribute("src");
  cells = [];
  grid.replaceChildren(...data.runs.map((run) => figure(run, chosen.clips[run.label])));
  update();
}

function loaded() {
  // A file that cannot be played keeps none of the others waiting.
  if (!eager || !cells.every(({ video }) => video.readyState >= 1 || video.error)) return;
  eager = false;
  play();
}

function given({ about, picture }) {
  const made = document.createElement("figure");
  made.append(
    Object.assign(document.createElement("img"), { src: picture, alt: about }),
    Object.assign(document.createElement("figcaption"), { textContent: about }),
  );
  return made;
}

function figure(run, clip) {
  const made = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const name = document.createElement("b"), stages = document.createElement("small");
  name.innerHTML = run.mark;
  name.append(run.label);
  stages.textContent = run.stages;
  caption.title = `${run.label} ${run.stages}`;
  caption.append(name, stages);
  made.append(caption);
  const screen = document.createElement("div");
  screen.className = "screen";
  made.append(screen);
  if (!clip) {
    screen.classList.add("missing");
    screen.textContent = "not made";
    return made;
  }
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true, preload: "auto", src: clip.video });
  const canvas = document.createElement("canvas");
  screen.append(video, canvas);
  const figures = document.createElement("p");
  for (const text of clip.figures) figures.append(Object.assign(document.createElement("span"), { textContent: text }), " ");
  made.append(figures);
  const cell = { figure: made, video, canvas, label: run.label };
  cells.push(cell);
  video.addEventListener("loadedmetadata", () => {
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    // Clips of a few pixels are shown as pixels, and small.
    made.classList.toggle("pixels", video.videoWidth < 200);
    grid.style.setProperty("--cell", `${Math.max(200, Math.min(380, video.videoWidth))}px`);
    update();
    loaded();
  });
  for (const event of ["loadeddata", "seeked"]) video.addEventListener(event, draw);
  video.addEventListener("error", loaded);
  video.addEventListener("ended", ended);
  return made;
}

// ---- time: the first video leads, and the others keep within a frame of it ----

const leader = () => cells[0]?.video;
const rate = () => data.frameRate;
const frames = () => Math.max(1, Math.round((leader()?.duration || 0) * rate()));
const current = () => Math.min(frames() - 1, Math.floor((leader()?.currentTime || 0) * rate() + 1e-3));

function seek(frame) {
  const target = Math.max(0, Math.min(frames() - 1, frame));
  const mine = ++wanted;
  const moved = cells.map(({ video }) => new Promise((done) => {
    const time = (target + 0.5) / rate();
    if (video.readyState === 0 || (Math.abs(video.currentTime - time) < 1e-6 && !video.seeking)) return done();
    video.addEventListener("seeked", done, { once: true });
    video.currentTime = time;
  }));
  update(target);
  return Promise.all(moved).then(() => mine === wanted);
}

async function play() {
  eager = false;
  if (!cells.length) return;
  playing = true;
  update();
  const over = leader().ended || current() >= frames() - 1;
  if (!(await seek(over ? 0 : current())) || !playing) return;
  for (const { video } of cells) video.playbackRate = Number(at("speed").value);
  await Promise.all(cells.map(({ video }) => video.play().catch(() => {})));
  if (playing && leader().paused && !leader().ended) pause();  // browsers may forbid to play unasked
  requestAnimationFrame(follow);
}

function pause(byHand = true) {
  const was = playing;
  playing = false;
  if (byHand) eager = false;
  for (const { video } of cells) video.pause();
  if (was) seek(current());  // all on the same frame
  update();
}

function ended(event) {
  if (!playing || event.target !== leader()) return;
  if (at("loop").checked) play();
  else pause();
}

function follow() {
  if (!playing) return;
  const time = leader().currentTime;
  for (const { video } of cells.slice(1)) {
    if (!video.seeking && !video.ended && Math.abs(video.currentTime - time) > 1.5 / rate()) video.currentTime = time;
  }
  draw();
  update();
  requestAnimationFrame(follow);
}

// ---- the difference: |this - the other|, drawn over each video ----

function draw() {
  if (at("mode").value !== "difference") return;
  const other = cells.find(({ label }) => label === at("against").value)?.video;
  for (const { video, canvas } of cells) {
    const pen = canvas.getContext("2d");
    pen.globalCompositeOperation = "source-over";
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (!other || video.readyState < 2 || other.readyState < 2) continue;
    pen.drawImage(video, 0, 0);
    pen.globalCompositeOperation = "difference";
    pen.drawImage(other, 0, 0);
    canvas.style.filter = `brightness(${at("gain").value})`;
  }
}

function update(frame = current()) {
  at("play").textContent = playing ? "❚❚" : "▶";
  at("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  place.max = frames() - 1;
  place.value = frame;
  at("frame").textContent = `${frame + 1} / ${frames()}`;
  const difference = at("mode").value === "difference";
  grid.classList.toggle("difference-shown", difference);
  at("bar").classList.toggle("choosing", difference);
}

const step = (by) => { const frame = current(); pause(); seek(frame + by); };
at("play").onclick = () => (playing ? pause() : play());
at("back").onclick = () => step(-1);
at("forward").onclick = () => step(1);
place.oninput = () => { const frame = Number(place.value); pause(); seek(frame); };
at("speed").onchange = () => cells.forEach(({ video }) => { video.playbackRate = Number(at("speed").value); });
for (const id of ["mode", "against", "gain"]) at(id).onchange = () => { update(); draw(); };
at("case").onchange = () => show(Number(at("case").value));
at("previous").onclick = () => show(shown - 1);
at("next").onclick = () => show(shown + 1);
at("chooser").hidden = data.cases.length < 2;
document.addEventListener("keydown", (event) => {
  if (event.target.closest?.("input, select, button") || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = { " ": at("play"), ArrowLeft: at("back"), ArrowRight: at("forward"), p: at("previous"), n: at("next") };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key].click();
});

// ---- the table ----

const wide = document.querySelector(".wide");
function fit() {
  wide.classList.remove("narrow");
  const over = () => wide.scrollWidth > wide.clientWidth;
  wide.classList.toggle("narrow", over());  // names go on in the next line first
  at("more").hidden = !over();
}
addEventListener("resize", fit);
fit();
wide.onscroll = () => wide.classList.toggle("aside-scrolled", wide.scrollLeft > 0);

for (const button of document.querySelectorAll("#figures th button")) {
  button.onclick = () => {
    const heading = button.parentElement, row = heading.parentElement, column = [...row.children].indexOf(heading);
    const first = heading.dataset.first;
    const order = heading.getAttribute("aria-sort") === first ? (first === "ascending" ? "descending" : "ascending") : first;
    for (const each of row.children) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = (line) => line.children[column].dataset.value;
    const compare = (a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");  // what has no figure comes last
      return sign * (heading.dataset.text ? x.localeCompare(y) : Number(x) - Number(y));
    };
    const body = document.querySelector("#figures tbody");
    body.append(...[...body.children].sort(compare));
  };
}

// ---- the charts' choices ----

function choose() {
  for (const chart of document.querySelectorAll(".scatter")) {
    chart.hidden = chart.dataset.x !== at("cost").value || chart.dataset.y !== at("quality").value;
  }
}
if (at("cost")) {
  at("cost").onchange = at("quality").onchange = choose;
  choose();
}
if (at("measure")) {
  at("measure").onchange = () => {
    for (const chart of document.querySelectorAll(".measure")) chart.hidden = chart.dataset.measure !== at("measure").value;
  };
  at("measure").onchange();
}

show(0);
